"""Figure of one run: memory over time by kind, under the limit of the device."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import require_extra
from runtime_ref.device.run import DeviceRun
from runtime_ref.memory import MB
from runtime_ref.reports.atomic import write_whole
from runtime_ref.reports.run_tables import outcome
from runtime_ref.reports.tables import device_title, mb_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

# Of Okabe and Ito, for all kinds of colour vision; dirty and clean differ in brightness too.
DIRTY, CLEAN, LIMIT, AVAILABLE, PHASE = "#0072B2", "#9BD3F5", "#D55E00", "#CC79A7", "#555555"
ABOVE = 1.1  # of the axis, over the highest that it shows
FAR = 3.0  # times the highest: a limit farther up would flatten all else, so it is named instead
DPI, SMALL, LABEL_POINTS = 120, 9, 12  # size of texts, and height of a row of labels


def plot_memory(run: DeviceRun, path: Path) -> None:
    """Writes the figure as a PNG. Raises OSError."""
    write_whole(path, memory_png(run))


def memory_png(run: DeviceRun) -> bytes:
    """Figure as the bytes of a PNG."""
    png = io.BytesIO()
    memory_figure(run).savefig(png, format="png")
    return png.getvalue()


def memory_figure(run: DeviceRun) -> Figure:
    """Figure of stacked dirty and clean memory, in MB over seconds.

    It shows where phases begin, the limits, and what was predicted. Raises MissingComponentError.
    """
    require_extra("report", ("matplotlib",), "a figure of memory")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _draw_areas(axes, run)
    _draw_lines(axes, run)
    labels = _draw_phases(axes, run)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2, fontsize=SMALL, frameon=False)
    figure.supxlabel(_caption(run), x=0.01, ha="left", fontsize=SMALL, color=PHASE)
    rows = _spread(figure, labels)
    axes.set_title(
        _title(run), loc="left", fontsize=12, pad=8 + LABEL_POINTS * rows, parse_math=False
    )
    return figure


def _title(run: DeviceRun) -> str:
    plan = run.plan
    what = f"{device_title(plan)}: {plan.package}, residency {plan.residency.mode}"
    dirty, limit = mb_text(run.report.peak_dirty_bytes), mb_text(plan.budget.dirty_bytes)
    return f"{what}\n{outcome(run)}, {dirty} MB dirty of {limit} MB"


def _caption(run: DeviceRun) -> str:
    return f"Measured on Linux under an enforced limit ({run.report.mechanism}), not on the phone."


def _draw_areas(axes: Axes, run: DeviceRun) -> None:
    """Draws dirty and clean memory over time."""
    report = run.report
    # The last look comes after the end of the run.
    samples = [s for s in report.samples if s.ms <= report.wall_ms]
    seconds = [s.ms / 1e3 for s in samples]
    dirty, clean = [s.anonymous_bytes / MB for s in samples], [s.file_bytes / MB for s in samples]
    labels = ["dirty: anonymous memory", "clean: pages of files, charged"]
    axes.stackplot(seconds, dirty, clean, labels=labels, colors=[DIRTY, CLEAN])
    axes.set_xlim(0, max(1e-3, report.wall_ms / 1e3))
    axes.set_xlabel("seconds since the limit began")
    axes.set_ylabel("MB")
    axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_lines(axes: Axes, run: DeviceRun) -> None:
    """Draws the limits and what was predicted.

    The scale follows what was used and predicted, and the limits where they are near.
    """
    budget, predicted, samples = (
        run.plan.budget,
        run.plan.prediction.dirty_bytes,
        run.report.samples,
    )
    axes.axhline(
        predicted / MB,
        color="black",
        linestyle="--",
        label=f"dirty, as predicted: {mb_text(predicted)} MB",
    )
    used = max(
        [
            predicted,
            run.report.peak_dirty_bytes,
            *(s.anonymous_bytes + s.file_bytes for s in samples),
        ]
    )
    limits = [(budget.dirty_bytes, "limit of dirty memory", LIMIT)]
    if budget.available_bytes != budget.dirty_bytes:
        limits.append((budget.available_bytes, "available to dirty and clean", AVAILABLE))
    top = max([used, *(n_bytes for n_bytes, _, _ in limits if n_bytes <= FAR * used)])
    for n_bytes, what, colour in limits:
        where = "" if n_bytes <= top else ", far above this figure"
        axes.axhline(
            n_bytes / MB, color=colour, linewidth=2, label=f"{what}: {mb_text(n_bytes)} MB{where}"
        )
    axes.set_ylim(0, ABOVE * top / MB)


def _draw_phases(axes: Axes, run: DeviceRun) -> list[Annotation]:
    """Draws a line where each phase begins, and where a run ended before it was done.

    Labels, which are returned, stand above the figure.
    """
    report = run.report
    marks = [(phase.start_ms, phase.name, PHASE) for phase in report.phases]
    marks += [] if report.outcome == "ok" else [(report.wall_ms, report.outcome, LIMIT)]
    for ms, _, colour in marks:
        axes.axvline(ms / 1e3, color=colour, linewidth=1, linestyle=":")
    return [
        axes.annotate(
            name,
            (ms / 1e3, 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if colour == PHASE else "right",
            color=colour,
            fontsize=SMALL,
        )
        for ms, name, colour in marks
    ]


def _spread(figure: Figure, labels: Sequence[Annotation]) -> int:
    """Number of rows that labels take, moved up until none covers another."""
    figure.draw_without_rendering()
    ends: list[float] = []  # of the last label in each row, in pixels
    for label in labels:
        extent = label.get_window_extent()
        row = next((i for i, end in enumerate(ends) if end < extent.x0), len(ends))
        ends[row : row + 1] = [extent.x1 + 4]
        label.set_position((0, 3 + LABEL_POINTS * row))
    return len(ends)

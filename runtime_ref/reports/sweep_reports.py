"""Reports of a sweep: its table on a terminal, in Markdown and in HTML with a plot of the best.

A file is whole or not there; the OSError of a full disk or of a path that cannot be written goes to
the caller.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from exporter.errors import require_extra
from runtime_ref.memory import MB
from runtime_ref.reports.atomic import write_whole
from runtime_ref.reports.files import environment, xml_text
from runtime_ref.reports.svg import COLOURS, MARKERS, SMALL, new_figure, svg_text
from runtime_ref.reports.tables import columns
from runtime_ref.sweep_table import SweepRow, SweepTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXTS = ("model", "package", "device")
NUMBERS = ("MB", "KL", "best token", "dirty MB", "tokens/s, projected")
LAST = ("tasks", "verdict")
BEST = "#222222"
LINE_BREAK = " "


def rows_table(table: SweepTable) -> Table:
    """Table of all rows; the best of each device have a star."""
    shown = columns("Sweep", ("", *TEXTS), NUMBERS, LAST)
    for star, row in zip(_stars(table), table.rows, strict=True):
        shown.add_row(star, *map(escape, _cells(row)))
    shown.caption = "* no other on the device is as good in everything and better in something"
    return shown


def choices(table: SweepTable) -> list[str]:
    """What each rule chooses, in words."""
    said = []
    for rule in table.rules:
        row = table.chosen(rule)
        found = "none" if row is None else f"{row.name}, {row.format}: {', '.join(_figures(row))}"
        said.append(f"{rule.name} ({rule.words}): {found}")
    return said


def write_markdown(table: SweepTable, path: Path) -> None:
    """Writes the choices and the table as Markdown."""
    template = environment(autoescape=False).get_template("sweep.md")
    write_whole(path, xml_text(template.render(_content(table))).encode())


def write_html(table: SweepTable, path: Path) -> None:
    """Writes the same with a plot, in one file that needs no other.

    Raises MissingComponentError.
    """
    require_extra("report", ("matplotlib",), "a plot of a sweep")
    template = environment(autoescape=True).get_template("sweep.html")
    content = {**_content(table), "plot": best_svg(table)}
    write_whole(path, xml_text(template.render(content)).encode())


def _content(table: SweepTable) -> dict[str, Any]:
    """Values that both templates show, by name."""
    return {
        "head": ("", *TEXTS, *NUMBERS, *LAST),
        "n_texts": 1 + len(TEXTS),
        "rows": [(star, *_cells(row)) for star, row in zip(_stars(table), table.rows, strict=True)],
        "choices": choices(table),
        "failed": [(row.name, row.device or "", row.message) for row in table.failed],
    }


def _stars(table: SweepTable) -> list[str]:
    return ["*" if best else "" for best in table.best]


def _cells(row: SweepRow) -> tuple[str, ...]:
    """Texts of a row."""
    n_bytes = None if row.n_bytes is None else row.n_bytes / MB
    dirty = None if row.dirty_bytes is None else row.dirty_bytes / MB
    return (
        row.name,
        row.format or "-",
        row.device or "-",
        _text(n_bytes, ".1f"),
        _text(row.kl, ".4f"),
        _text(row.top1, ".4f"),
        _text(dirty, ".1f"),
        _text(row.speed, ".1f"),
        ", ".join(f"{name} {value:.3f}" for name, value in row.tasks.items()) or "-",
        _verdict(row),
    )


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _verdict(row: SweepRow) -> str:
    """What speaks against a row, or that nothing does."""
    if row.message:
        return f"FAIL: {LINE_BREAK.join(row.message.split())}"
    against = [*(["does not fit"] if row.fits is False else [])]
    against += ["parity failed"] if row.parity is False else []
    return ", ".join(against) or "ok"


def _figures(row: SweepRow) -> list[str]:
    """Figures of a row that was chosen, in words."""
    found = [f"{(row.n_bytes or 0) / MB:.1f} MB", f"KL {_text(row.kl, '.4f')}"]
    found += [f"{row.dirty_bytes / MB:.1f} MB dirty"] if row.dirty_bytes is not None else []
    return found + ([f"{row.speed:.1f} tokens/s projected"] if row.speed is not None else [])


# ---- the plot


def best_svg(table: SweepTable) -> str | None:
    """Figure of the loss over size, memory and projected speed; None where nothing can be drawn.

    The best of each device are joined by a line.
    """
    axes = (
        ("bytes of the package, MB", lambda row: _mb(row.n_bytes)),
        ("predicted dirty memory, MB", lambda row: _mb(row.dirty_bytes)),
        ("projected tokens/s", lambda row: row.speed),
    )
    drawn = [(row, best) for row, best in zip(table.rows, table.best, strict=True) if row.kl]
    kinds = [(what, of) for what, of in axes if any(of(row) is not None for row, _ in drawn)]
    if not kinds:
        return None
    figure = new_figure(4.2 * len(kinds), 4.4)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, (what, of) in zip(panels, kinds, strict=True):
        _draw(panel, [(row, of(row), best) for row, best in drawn])
        panel.set_xlabel(what)
    panels[0].set_ylabel("KL from the original, nats")
    named = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    place: dict[str, Any] = {"loc": "outside lower left", "ncols": 2, "frameon": False}
    figure.legend(named.values(), named.keys(), fontsize=SMALL, **place)
    return svg_text(figure)


def _mb(n_bytes: int | None) -> float | None:
    return None if n_bytes is None else n_bytes / MB


def _draw(panel: Axes, points: list[tuple[SweepRow, float | None, bool]]) -> None:
    """Draws a point for each row: the marker says the device, the colour the model and scheme."""
    devices = list(dict.fromkeys(row.device for row, _, _ in points))
    kinds = list(dict.fromkeys((row.model, row.scheme, row.format) for row, _, _ in points))
    for row, x, _ in points:
        kind = (row.model, row.scheme, row.format)
        named = " ".join(filter(None, kind)) + (f" on {row.device}" if row.device else "")
        marker = MARKERS[devices.index(row.device) % len(MARKERS)]
        colour = COLOURS[kinds.index(kind) % len(COLOURS)]
        place, kl = math.nan if x is None else x, row.kl or math.nan
        panel.plot([place], [kl], marker, color=colour, label=named, alpha=0.8)
    for device in devices:
        best = [(x, row.kl or math.nan) for row, x, b in points if b and row.device == device and x]
        line = sorted(best)
        panel.plot([x for x, _ in line], [kl for _, kl in line], color=BEST, linewidth=0.8)
    panel.set_yscale("log")
    panel.spines[["top", "right"]].set_visible(False)

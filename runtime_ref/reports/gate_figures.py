"""Figures of gates as SVG, to stand inside a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime_ref.gates import Facts, Gate
from runtime_ref.memory import MB
from runtime_ref.reports.svg import SMALL, new_figure, svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of Okabe and Ito, for all kinds of colour vision.
PASSED, FAILED, BEFORE, LIMIT = "#0072B2", "#D55E00", "#B0B0B0", "#222222"
WIDTH, ROW, MARGIN = 9.0, 0.34, 1.0  # inches: of a figure, of a bar, and above and below them
FARTHEST = 200.0  # percent: what is farther beyond its limit is cut, and its number says how far


def shares_svg(gates: Sequence[Gate]) -> str | None:
    """Figure of how much of each limit is used, in percent; None where no limit is a number."""
    shares = [(gate, 100 * gate.share) for gate in reversed(gates) if gate.share is not None]
    if not shares:
        return None
    figure = _figure(len(shares))
    axes = figure.add_subplot()
    colours = [PASSED if gate.passed else FAILED for gate, _ in shares]
    widths = [min(share, FARTHEST) for _, share in shares]
    bars = axes.barh(range(len(shares)), widths, color=colours)
    axes.bar_label(bars, [f"{share:,.0f} %" for _, share in shares], padding=3, fontsize=SMALL)
    _name_rows(figure, [gate.name for gate, _ in shares])
    axes.axvline(100, color=LIMIT, linewidth=1)
    axes.set_xlim(0, max(115.0, 1.12 * max(widths)))
    axes.set_xlabel("percent of the limit")
    return svg_text(figure)


def packages_svg(facts: Facts, baseline: Facts | None) -> str | None:
    """Figure of bytes and predicted memory of each package, in MB, beside those of a baseline."""
    names = list(reversed(facts.packages))
    if not names:
        return None
    labels = [f"{what} of {name}" for name in names for what in ("memory", "bytes")]
    figure = _figure(2 * len(labels))
    axes = figure.add_subplot()
    bars = axes.barh(
        [i + 0.2 for i in range(len(labels))], _sizes(facts, names), 0.38, color=PASSED
    )
    axes.bar_label(bars, fmt="{:,.1f}", padding=3, fontsize=SMALL)
    bars.set_label("now")
    if baseline is not None:
        places, sizes = [i - 0.2 for i in range(len(labels))], _sizes(baseline, names)
        before = axes.barh(places, sizes, 0.38, color=BEFORE, label="baseline")
        axes.bar_label(before, fmt="{:,.1f}", padding=3, fontsize=SMALL)
        axes.legend(fontsize=SMALL, frameon=False)
    _name_rows(figure, labels)
    axes.margins(x=0.12)
    axes.set_xlabel("MB")
    return svg_text(figure)


def _sizes(facts: Facts, names: Sequence[str]) -> list[float]:
    """Memory and bytes of packages in MB, one after another; 0 of one that is not there."""
    found = [facts.packages.get(name) for name in names]
    pairs = [(p.dirty_bytes, p.n_bytes) if p else (0, 0) for p in found]
    return [n_bytes / MB for pair in pairs for n_bytes in pair]


def _figure(rows: int) -> Figure:
    return new_figure(WIDTH, MARGIN + ROW * rows)


def _name_rows(figure: Figure, names: Sequence[str]) -> None:
    (axes,) = figure.axes
    axes.set_yticks(range(len(names)), names, fontsize=SMALL, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)

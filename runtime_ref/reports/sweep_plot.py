"""Plot of a sweep: the loss over size, memory and projected speed, with the best of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime_ref.memory import MB
from runtime_ref.reports.svg import COLOURS, MARKERS, SMALL, new_figure, svg_text
from runtime_ref.sweep_table import SweepRow, SweepTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT = "#222222"
SEVERAL, OF_DEVICES = MARKERS[0], MARKERS[1:]
TINY = 7.5  # points, of the numbers in a panel


@dataclass(frozen=True)
class Axis:
    """What the loss is drawn over: a value of a row, and whether more of it is better."""

    label: str
    value: Callable[[SweepRow], float | None]
    more_is_better: bool = False


AXES = (
    Axis("bytes of the package, MB", lambda row: row.n_bytes and row.n_bytes / MB),
    Axis("predicted dirty memory, MB", lambda row: row.dirty_bytes and row.dirty_bytes / MB),
    Axis("projected tokens/s", lambda row: row.speed, more_is_better=True),
)


def plot_svg(table: SweepTable) -> str | None:
    """Figure of all rows with a loss as an SVG element; None where nothing can be drawn."""
    rows = [row for row in table.rows if row.kl]
    axes = [axis for axis in AXES if any(axis.value(row) for row in rows)]
    return svg_text(figure_of(rows, axes)) if axes else None


def figure_of(rows: Sequence[SweepRow], axes: Sequence[Axis]) -> Figure:
    """A panel for each axis. Colours are models and schemes, markers are devices."""
    figure, looks = new_figure(4.2 * len(axes), 4.4), _Looks.of(rows)
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    used = set[str]()
    for panel, axis in zip(panels, axes, strict=True):
        used |= _draw(panel, axis, rows, looks)
        panel.set_xlabel(axis.label)
    panels[0].set_ylabel("KL from the original, nats")
    place: dict[str, Any] = {"loc": "outside lower left", "ncols": 2, "frameon": False}
    figure.legend(handles=looks.handles(used), fontsize=SMALL, **place)
    return figure


def front(rows: Sequence[SweepRow], axis: Axis) -> list[tuple[float, float]]:
    """Values and losses of the rows that no other beats in both, by value."""
    points = [(x, row.kl) for row in rows if (x := axis.value(row)) is not None and row.kl]
    best: list[tuple[float, float]] = []
    for x, kl in sorted(points, key=lambda p: (-p[0] if axis.more_is_better else p[0], p[1])):
        if not best or kl < best[-1][1]:
            best.append((x, kl))
    return best


@dataclass(frozen=True)
class _Looks:
    """The colour of each model with its scheme and format, and the marker of each device."""

    colours: dict[str, str]
    markers: dict[str | None, str]

    @classmethod
    def of(cls, rows: Sequence[SweepRow]) -> _Looks:
        kinds, devices = dict.fromkeys(map(_kind, rows)), dict.fromkeys(row.device for row in rows)
        return cls(
            {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)},
            {device: OF_DEVICES[i % len(OF_DEVICES)] for i, device in enumerate(devices)},
        )

    def handles(self, used: Collection[str]) -> list[Any]:
        """The entries of a legend, of the markers that are used."""
        from matplotlib.lines import Line2D

        devices = {name or "no device": marker for name, marker in self.markers.items()}
        places = [*devices.items(), ("several devices", SEVERAL)]
        entries = [*((name, SEVERAL, colour) for name, colour in self.colours.items())]
        entries += [(name, marker, "grey") for name, marker in places if marker in used]
        return [
            Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
            for name, marker, colour in entries
        ]


def _kind(row: SweepRow) -> str:
    return f"{row.model} {row.scheme}, {row.format}"


def _passes(row: SweepRow) -> bool:
    return not row.message and row.fits is not False and row.parity is not False


def _draw(panel: Axes, axis: Axis, rows: Sequence[SweepRow], looks: _Looks) -> set[str]:
    """Draws what is equal on several devices once, and the front of what passes on each.

    Returns the markers that it used.
    """
    used = set[str]()
    for same, x, kl in _together(rows, axis):
        colour, row = looks.colours[_kind(same[0])], same[0]
        marker = looks.markers[row.device] if len(same) == 1 else SEVERAL
        used.add(marker)
        face = colour if _passes(row) else "none"
        panel.plot([x], [kl], marker, color=colour, markerfacecolor=face)
        if row.bits is not None:
            place: dict[str, Any] = {"xytext": (5, 4), "textcoords": "offset points"}
            panel.annotate(f"{row.bits:g}", (x, kl), fontsize=TINY, **place)
    for device in looks.markers:
        line = front([row for row in rows if row.device == device and _passes(row)], axis)
        panel.plot([x for x, _ in line], [kl for _, kl in line], color=FRONT, lw=0.8, zorder=0)
    _scale(panel)
    return used


def _together(
    rows: Sequence[SweepRow], axis: Axis
) -> Iterator[tuple[list[SweepRow], float, float]]:
    """The rows of a bundle that are equal here, with their value and loss."""
    found = defaultdict[Any, list[SweepRow]](list)
    for row in rows:
        found[_kind(row), row.bits, axis.value(row), row.kl, _passes(row)].append(row)
    for (_, _, x, kl, _), same in found.items():
        if x is not None:
            yield same, x, kl


def _scale(panel: Axes) -> None:
    """A logarithmic scale of the loss with plain numbers, and room for what stands at points."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_yscale("log")
    panel.margins(0.12)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.spines[["top", "right"]].set_visible(False)

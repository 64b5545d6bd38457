"""Figures as SVG elements that stand inside a page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of Okabe and Ito, for all kinds of colour vision; markers differ too, with another period.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
SMALL = 9  # points, of most texts


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_text(figure: Figure) -> str:
    """The figure as an SVG element whose texts are texts; the same figure gives the same bytes."""
    import matplotlib as mpl

    written = io.StringIO()
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tinyqmoe",
        "font.family": "sans-serif",
    }
    with mpl.rc_context(settings):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return text[text.index("<svg") :]

"""Figure of a comparison: KL, perplexity and top-1 agreement over the size of the weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from exporter.evaluation.compare import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MB = 1e6
# Of Okabe and Ito, for all kinds of colour vision; markers differ too, with another period.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, ORIGINAL = "osD^vPX*", "#555555"
DPI, SMALL, LEGEND_COLUMNS = 120, 9, 3


def draw(comparison: Comparison, form: str) -> bytes:
    """The figure in a form that matplotlib writes, "png" or "svg"."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=DPI, layout="constrained")
    kl, perplexity, top1 = figure.subplots(1, 3)
    divergences = [c.score.divergence for c in comparison.others]
    means = [d.kl_mean.value for d in divergences if d]
    _draw(kl, "KL from the original, nats", comparison, means)
    if all(mean > 0 for mean in means):
        kl.set_yscale("log")
    values = [c.score.perplexity.value for c in comparison.others]
    _draw(perplexity, "perplexity", comparison, values)
    best = comparison.original.score.perplexity.value
    perplexity.axhline(best, color=ORIGINAL, linestyle="--", label=f"original: {best:.2f}")
    _draw(top1, "same best token, %", comparison, [100 * d.top1.value for d in divergences if d])
    name, n = comparison.original.model.name, comparison.n_tokens
    title = f"Against {name} on {n:,} tokens of {comparison.file}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, parse_math=False)
    handles, labels = perplexity.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=LEGEND_COLUMNS,
        fontsize=SMALL,
        frameon=False,
    )
    written = io.BytesIO()
    figure.savefig(written, format=form)
    return written.getvalue()


def _draw(axes: Axes, what: str, comparison: Comparison, values: Sequence[float]) -> None:
    """Draws a point for the value of each model but the original."""
    axes.set_xlabel("weights, MB")
    axes.set_title(what, loc="left", fontsize=SMALL + 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.1)
    for i, (compared, value) in enumerate(zip(comparison.others, values, strict=True)):
        axes.plot(
            compared.model.weight_bytes / MB,
            value,
            MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)],
            label=compared.model.name,
        )

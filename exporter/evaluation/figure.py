"""Figure of a comparison: KL, perplexity and top-1 agreement over the size of the weights."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from exporter.evaluation.compare import Compared, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MB = 1e6
POINT, ORIGINAL = "#0072B2", "#555555"  # of Okabe and Ito
DPI, SMALL = 120, 9


def draw(comparison: Comparison, form: str) -> bytes:
    """The figure in a form that matplotlib writes, "png" or "svg"."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=DPI, layout="constrained")
    kl, perplexity, top1 = figure.subplots(1, 3)
    others = [(c, c.score.divergence) for c in comparison.others]
    _draw(kl, "KL from the original, nats", [(c, d.kl_mean.value) for c, d in others if d])
    if all(d and d.kl_mean.value > 0 for _, d in others):
        kl.set_yscale("log")
    _draw(perplexity, "perplexity", [(c, c.score.perplexity.value) for c, _ in others])
    best = comparison.original.score.perplexity.value
    perplexity.axhline(best, color=ORIGINAL, linestyle="--", label=f"original: {best:.2f}")
    perplexity.legend(fontsize=SMALL, frameon=False)
    _draw(top1, "same best token, %", [(c, 100 * d.top1.value) for c, d in others if d])
    name, n = comparison.original.model.name, comparison.n_tokens
    title = f"Against {name} on {n:,} tokens of {comparison.file}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, parse_math=False)
    written = io.BytesIO()
    figure.savefig(written, format=form)
    return written.getvalue()


def _draw(axes: Axes, what: str, points: list[tuple[Compared, float]]) -> None:
    """Draws a named point for each model."""
    axes.set_xlabel("weights, MB")
    axes.set_title(what, loc="left", fontsize=SMALL + 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.25, y=0.15)
    for compared, value in points:
        at = (compared.model.weight_bytes / MB, value)
        axes.plot(*at, "o", color=POINT)
        axes.annotate(
            compared.model.name,
            at,
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            parse_math=False,
        )

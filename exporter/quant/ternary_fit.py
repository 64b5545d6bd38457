"""Ternary levels of weights that were not trained for them, by what is known of their inputs.

A row w of a matrix with inputs x loses (w - v)^T H (w - v), H = mean x x^T, where v are its
quantized weights: levels -1, 0, 1 times the scale of their group. That is made small in two steps:

1. Group after group, a scale is fitted to what feedback (exporter.quant.feedback) has left of the
   weights of the group, and its columns are rounded with feedback to all that follow.
2. All scales of a row together become the least-squares solution for its levels.

Coordinate descent on the levels afterwards makes this loss smaller still, and the model worse: see
docs/quality.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.quant.feedback import Price, Rounding, round_with_feedback
from exporter.quant.rate import Curvature
from exporter.quant.tensor import short_scales

MOST = 1  # the largest level
ROUNDS = 8  # of fitting a scale and its levels to each other
REFIT = (0.5, 2.0)  # how far least squares may take a scale
SMALLEST = 1e-30  # the scale of a group of zeros, until it gets none


def fit_rows(w: Tensor, curvature: Curvature, group_size: int) -> tuple[Tensor, Tensor]:
    """Levels int8 [n, cols] and scales float32 [n, groups] of weights float32 [n, cols].

    Of `curvature` only what is known of the inputs counts.
    """
    cols = w.shape[1]
    groups = [slice(i, min(i + group_size, cols)) for i in range(0, cols, group_size)]
    rounding, scales = Rounding.of(w), torch.empty(len(w), len(groups))
    upper, worth = curvature.inputs.upper, curvature.inputs.errors
    for i, group in enumerate(groups):
        fitted = _fitted(rounding.rest[:, group], worth[group])
        scales[:, i] = fitted
        for now in rounding.blocks(upper, group.start, group.stop):
            price = Price.none(now.stop - now.start, MOST)
            round_with_feedback(rounding.columns(now), upper[now, now], fitted, price)
    best = _best_scales(w, rounding.levels.float(), curvature.inputs.gram, groups)
    limited = best.clamp(REFIT[0] * scales, REFIT[1] * scales)
    scales = torch.where(_sums(rounding.levels.abs(), groups) > 0, limited, 0.0)
    return rounding.levels, short_scales(scales, up=False)


def _fitted(w: Tensor, worth: Tensor) -> Tensor:
    """The scales float32 [n] that suit weights [n, size] best, whose errors are `worth` [size]."""
    scales = w.abs().mean(1).clamp(min=SMALLEST)
    for _ in range(ROUNDS):
        levels = (w / scales[:, None]).round_().clamp_(-MOST, MOST)
        power = levels.square() @ worth
        scales = ((w * levels) @ worth / power.clamp(min=SMALLEST)).clamp(min=SMALLEST)
    return scales


def _best_scales(w: Tensor, levels: Tensor, gram: Tensor, groups: list[slice]) -> Tensor:
    """The least-squares scales float32 [n, groups] of levels, float32 [n, cols]."""
    products = torch.empty(len(w), len(groups), len(groups))
    for i, group in enumerate(groups):
        products[:, i] = _sums(levels[:, group] @ gram[group] * levels, groups)
    power = products.diagonal(dim1=1, dim2=2)
    power += power == 0  # a group of zeros may have any scale
    best: Tensor = torch.linalg.solve(products, _sums(w @ gram * levels, groups))
    return best


def _sums(values: Tensor, groups: list[slice]) -> Tensor:
    """Sums over groups of columns, [n, groups], of values [n, cols]."""
    return torch.stack([values[:, group].sum(1) for group in groups], 1)

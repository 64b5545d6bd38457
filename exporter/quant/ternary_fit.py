"""Ternary levels of weights that were not trained for them, by what is known of their inputs.

A row w of a matrix with inputs x loses (w - v)^T H (w - v), H = mean x x^T, where v are its
quantized weights: levels -1, 0, 1 times the scale of their group. That is made small in three
steps:

1. Group after group, a scale is fitted to what feedback (exporter.quant.feedback) has left of the
   weights of the group, and its columns are rounded with feedback to all that follow.
2. All scales of a row together become the least-squares solution for its levels.
3. Each level in turn becomes the best one while all others stay (coordinate descent, as in
   QuantEase, arXiv 2309.01885), SWEEPS times; step 2 follows each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.quant.feedback import BLOCK, Price, Rounding, round_with_feedback
from exporter.quant.rate import Curvature
from exporter.quant.tensor import short_scales

MOST = 1  # the largest level
ROUNDS = 8  # of fitting a scale and its levels to each other
SWEEPS = 2
REFIT = (0.5, 2.0)  # how far least squares may take a scale at a time
SMALLEST = 1e-30  # the scale of a group of zeros, until all is done


def fit_rows(w: Tensor, curvature: Curvature, group_size: int) -> tuple[Tensor, Tensor]:
    """Levels int8 [n, cols] and scales float32 [n, groups] of weights float32 [n, cols].

    Of `curvature` only what is known of the inputs counts.
    """
    levels, scales = _with_feedback(w, curvature, group_size)
    loss = Loss(w, curvature.gram, group_size)
    scales = loss.best_scales(levels, scales)
    for _ in range(SWEEPS):
        levels = loss.best_levels(levels, scales)
        scales = loss.best_scales(levels, scales)
    return levels.to(torch.int8), short_scales(loss.used(levels) * scales, up=False)


def _with_feedback(w: Tensor, curvature: Curvature, group_size: int) -> tuple[Tensor, Tensor]:
    """Levels float32 [n, cols] and scales float32 [n, groups] by step 1."""
    rounding, cols, scales = Rounding.of(w), w.shape[1], []
    upper, worth = curvature.upper, curvature.errors
    for begin in range(0, cols, group_size):
        group = slice(begin, min(begin + group_size, cols))
        scales.append(_fitted(rounding.rest[:, group], worth[group]))
        for now in rounding.blocks(upper, group.start, group.stop):
            price = Price.none(now.stop - now.start, MOST)
            round_with_feedback(rounding.columns(now), upper[now, now], scales[-1], price)
    return rounding.levels.float(), torch.stack(scales, 1)


def _fitted(w: Tensor, worth: Tensor) -> Tensor:
    """The scales float32 [n] that suit weights [n, size] best, whose errors are `worth` [size]."""
    scales = w.abs().mean(1).clamp(min=SMALLEST)
    for _ in range(ROUNDS):
        levels = (w / scales[:, None]).round_().clamp_(-MOST, MOST)
        power = levels.square() @ worth
        scales = ((w * levels) @ worth / power.clamp(min=SMALLEST)).clamp(min=SMALLEST)
    return scales


@dataclass(frozen=True)
class Loss:
    """The loss of rows `w`, float32 [n, cols], with H = `gram`, float32 [cols, cols].

    Each `group_size` weights of a row share a scale.
    """

    w: Tensor
    gram: Tensor
    group_size: int

    def best_scales(self, levels: Tensor, scales: Tensor) -> Tensor:
        """The least-squares scales float32 [n, groups] of levels, float32 [n, cols].

        Each lies within REFIT of what it is in `scales`.
        """
        products = torch.empty(*scales.shape, scales.shape[1])
        for group, begin in enumerate(range(0, levels.shape[1], self.group_size)):
            part = slice(begin, begin + self.group_size)
            products[:, group] = self._sums(levels[:, part] @ self.gram[part] * levels)
        power = products.diagonal(dim1=1, dim2=2)
        power += power == 0  # a group of zeros may have any scale
        best: Tensor = torch.linalg.solve(products, self._sums(self.w @ self.gram * levels))
        return best.clamp(REFIT[0] * scales, REFIT[1] * scales)

    def best_levels(self, levels: Tensor, scales: Tensor) -> Tensor:
        """Levels float32 [n, cols], each in turn the best for the scales and all other levels."""
        cols = levels.shape[1]
        # Columns are rows here: each of them is a run in memory.
        steps = scales.repeat_interleave(self.group_size, 1)[:, :cols].T.contiguous()
        best = levels.T.contiguous()
        pull = self.gram @ (self.w.T - best * steps)  # half of the slope of the loss, downwards
        for first in range(0, cols, BLOCK):
            last = min(first + BLOCK, cols)
            moved = torch.empty_like(best[first:last])
            for j in range(first, last):
                level = best[j] + pull[j] / self.gram[j, j] / steps[j]
                level = level.round_().clamp_(-MOST, MOST)
                moved[j - first] = (level - best[j]) * steps[j]
                best[j] = level
                pull[j + 1 : last].addr_(self.gram[j + 1 : last, j], moved[j - first], alpha=-1)
            pull[last:].addmm_(self.gram[last:, first:last], moved, alpha=-1)
        return best.T.contiguous()

    def used(self, levels: Tensor) -> Tensor:
        """Whether groups have levels that are not zero, bool [n, groups]."""
        return self._sums(levels.abs()) > 0

    def _sums(self, values: Tensor) -> Tensor:
        """Sums over groups, float32 [n, groups], of float32 [n, cols]."""
        missing = -values.shape[1] % self.group_size
        groups: Tensor = F.pad(values, (0, missing)).unflatten(1, (-1, self.group_size))
        return groups.sum(-1)

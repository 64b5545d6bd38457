"""Ternary: levels -1, 0, 1 and one positive scale a row or group.

Without `sparsity`, the rule of Ternary Weight Networks (Li et al., arXiv 1605.04711, eq. 5 and 6):
|w| <= 0.7 mean |w| becomes zero, the scale is the mean |w| of the others. With `sparsity`, the
smallest |w| become zero up to that fraction, which sets the rate in bits per weight; the scale is
again the mean |w| of the kept, the least-squares optimum for any fixed set of kept weights. Scales
are rounded to the 11 significant bits of half precision. Where something is known of the inputs of
a matrix, and no `sparsity` is asked for, levels and scales are fitted to that: `ternary_fit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exporter.quant import ternary_fit
from exporter.quant.rate import Curvature
from exporter.quant.tensor import (
    JsonConfig,
    by_group,
    dequantize,
    effective_group_size,
    group_size_problems,
    recover_problems,
    short_scales,
)

__all__ = [
    "LEVEL_MIN",
    "NAME",
    "N_LEVELS",
    "Config",
    "dequantize",
    "expected_entropy",
    "fit_rows",
    "quantize_rows",
    "zeros_per_group",
]

NAME = "ternary"
LEVEL_MIN, N_LEVELS = -1, 3
THRESHOLD = 0.7
USUAL_ZEROS = 0.42  # of normal weights where no sparsity is asked for


@dataclass(frozen=True)
class Config(JsonConfig):
    """The settings of ternary.

    `group_size` weights share a scale (None: a row). `sparsity`: fraction of zeros in [0, 1); None:
    the TWN rule. `recover`: steps of training of all layers after they are fitted; None: none.
    """

    group_size: int | None = None
    sparsity: float | None = None
    recover: int | None = None

    def problems(self) -> list[str]:
        problems = group_size_problems(self.group_size) + sparsity_problems(self.sparsity)
        problems += recover_problems(self.recover)
        if None not in (self.recover, self.sparsity):
            problems.append("recover and sparsity exclude each other: training moves the zeros")
        return problems

    @property
    def is_fitted(self) -> bool:
        """Whether levels are fitted to the inputs of a matrix, so far as these are known."""
        return self.sparsity is None


def expected_entropy(config: Config) -> float:
    """Entropy of the levels of typical trained weights, in bits per weight."""
    zeros = USUAL_ZEROS if config.sparsity is None else config.sparsity
    rest = (1 - zeros) / 2
    return -(zeros * math.log2(zeros) + 2 * rest * math.log2(rest)) if zeros > 0 else 1.0


def sparsity_problems(sparsity: object) -> list[str]:
    """Problems of a sparsity; empty for None or a number from 0 up to, but not including, 1."""
    if sparsity is None:
        return []
    if isinstance(sparsity, int | float) and not isinstance(sparsity, bool) and 0 <= sparsity < 1:
        return []
    return [f"sparsity must be a number from 0 up to, but not including, 1; got {sparsity!r}"]


def zeros_per_group(sparsity: float, size: int) -> int:
    """Number of weights, of `size`, that become zero: floor(sparsity * size).

    One is always kept.
    """
    # The 1e-9 is for 0.29 * 100, which is 28.999999999999996 in binary.
    return min(size - 1, math.floor(sparsity * size + 1e-9))


def quantize_rows(w: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Levels int8 [n, cols] and scales float32 [n, groups] of weights float32 [n, cols].

    NaN or infinity gives a scale of it.
    """
    sparsity = config.sparsity
    if sparsity is None:
        return by_group(
            w,
            config.group_size,
            lambda groups: _with_support(groups, _above_threshold(groups.abs())),
        )
    return by_group(
        w, config.group_size, lambda groups: _with_support(groups, _largest(groups.abs(), sparsity))
    )


def fit_rows(w: Tensor, config: Config, curvature: Curvature) -> tuple[Tensor, Tensor]:
    """Levels int8 [n, cols] and scales float32 [n, groups] of weights float32 [n, cols].

    They are those of little loss by `curvature`, which is that of all rows of the matrix.
    """
    size = effective_group_size(config.group_size, w.shape[1])
    return ternary_fit.fit_rows(w, curvature, size)


def _above_threshold(magnitude: Tensor) -> Tensor:
    return magnitude > THRESHOLD * magnitude.mean(-1, keepdim=True)


def _largest(magnitude: Tensor, sparsity: float) -> Tensor:
    """Mask of each group that is True for all but the smallest |w|.

    Of equal ones, the first positions count as smaller. np.partition selects in linear time and,
    measured, 2-4 times as fast as torch.kthvalue and topk.
    """
    zeros = zeros_per_group(sparsity, magnitude.shape[-1])
    if zeros == 0:
        return torch.ones_like(magnitude, dtype=torch.bool)
    partitioned = np.partition(magnitude.numpy(), zeros - 1, axis=-1)
    # The threshold is the largest |w| that becomes zero.
    threshold = torch.from_numpy(partitioned[..., zeros - 1 : zeros].copy())
    keep = magnitude > threshold
    ties = magnitude == threshold
    ties_to_keep = magnitude.shape[-1] - zeros - keep.sum(-1, keepdim=True, dtype=torch.int32)
    # Rank 0 is the last of the ties.
    tie_rank = ties.sum(-1, keepdim=True, dtype=torch.int32) - ties.cumsum(-1, dtype=torch.int32)
    return keep | (ties & (tie_rank < ties_to_keep))


def _with_support(w: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of the kept weights, and their mean |w|.

    An exact zero has no sign, so it is not counted as kept.
    """
    levels = w.sign().mul_(keep)
    count = levels.count_nonzero(-1).clamp(min=1)
    # The sum is float64: its order does not show in float32.
    scales = (w * levels).sum(-1, dtype=torch.float64) / count
    return levels.to(torch.int8), short_scales(scales.float(), up=False)

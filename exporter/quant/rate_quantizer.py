"""The quantization of a checkpoint's matrices by what is known of them, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.quant import load, rate
from exporter.quant.calibration import Statistics
from exporter.quant.plan import MatrixPlan
from exporter.quant.rate import Curvature

SAMPLE = 16  # every so many rows, if these are SAMPLE_WEIGHTS or more
SAMPLE_WEIGHTS = 1 << 16
BLOCK_WEIGHTS = 1 << 23  # quantized at a time; at least one row

QuantizedBlock = tuple[int, Tensor, Tensor]
"""The number of its first row, levels int8 [n, cols] and scales float32 [n, groups]."""


@dataclass(frozen=True)
class RateQuantizer:
    """Quantizes matrices of a model: at a rate by a constant c of their own, others by a plan.

    The model is `checkpoint`, which may compute the same with other weights than the one that was
    given (exporter.quant.column_steps). `statistics` know something of its matrices. The scheme of
    a plan has `fit_rows`.
    """

    checkpoint: Checkpoint
    statistics: Statistics
    constants: Mapping[str, float]
    plans: Mapping[str, MatrixPlan] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the matrices."""
        return [*self.constants, *self.plans]

    def blocks(self, name: str) -> Iterator[QuantizedBlock]:
        """The blocks of a matrix."""
        curvature = self.statistics.curvature(name)
        if name in self.plans:
            plan = self.plans[name]
            for begin, w in self._weights(name):
                yield begin, *load(plan.scheme).fit_rows(w, plan.config, curvature)
            return
        c = self.constants[name]
        prices = rate.learn_prices(*sample(self.checkpoint, name, curvature), c)
        for begin, w in self._weights(name):
            of_rows = curvature.rows(slice(begin, begin + len(w)))
            yield begin, *rate.quantize_rows(w, of_rows, c, prices)

    def _weights(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The first row of each block of a matrix, and its weights, float32 [n, cols]."""
        rows, cols = self.checkpoint.shape(name)
        step = max(1, BLOCK_WEIGHTS // cols)
        for begin in range(0, rows, step):
            yield begin, self.checkpoint.rows(name, begin, min(rows, begin + step))


def sample(checkpoint: Checkpoint, name: str, curvature: Curvature) -> tuple[Tensor, Curvature]:
    """Some rows of a matrix, float32 [n, cols], evenly spread, and the curvature of them."""
    weights = math.prod(checkpoint.shape(name))
    stride = max(1, min(SAMPLE, weights // SAMPLE_WEIGHTS))
    blocks = checkpoint.blocks(name)
    w = torch.cat([block[-begin % stride :: stride] for begin, block in blocks])
    return w, curvature.rows(slice(None, None, stride))

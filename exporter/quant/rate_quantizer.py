"""The quantization of a checkpoint's matrices at a rate: `rate`, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.quant import rate
from exporter.quant.calibration import Statistics
from exporter.quant.rate import Curvature
from exporter.quant.trained_matrix import ScaledMatrix

SAMPLE = 16  # every so many rows, if these are SAMPLE_WEIGHTS or more
SAMPLE_WEIGHTS = 1 << 16
BLOCK_WEIGHTS = 1 << 23  # quantized at a time; at least one row

QuantizedBlock = tuple[int, Tensor, Tensor]
"""The number of its first row, levels int8 [n, cols] and scales float32 [n, groups]."""


@dataclass(frozen=True)
class RateQuantizer:
    """Quantizes matrices of a model, each by a constant c of its own.

    The model is `checkpoint`, which may compute the same with other weights than the one that was
    given (exporter.quant.column_steps). `statistics` know something of its matrices.
    """

    checkpoint: Checkpoint
    statistics: Statistics
    constants: Mapping[str, float]

    @property
    def names(self) -> list[str]:
        """Names of the matrices."""
        return [*self.constants]

    def blocks(self, name: str) -> Iterator[QuantizedBlock]:
        """The blocks of a matrix."""
        curvature = self.statistics.curvature(name)
        c = self.constants[name]
        prices = rate.learn_prices(*sample(self.checkpoint, name, curvature), c)
        for begin, w in blocks_of(self.checkpoint, name):
            of_rows = curvature.rows(slice(begin, begin + len(w)))
            yield begin, *rate.quantize_rows(w, of_rows, c, prices)

    def in_training(self, name: str, w: Tensor) -> ScaledMatrix:
        """A matrix, weights float32 [rows, cols], as its training begins.

        Its levels stay as they are: their code has the size that was asked for.
        """
        _, *parts = zip(*self.blocks(name), strict=True)
        levels, scales = map(torch.cat, parts)
        return ScaledMatrix.of(levels, scales, levels.shape[1])


def blocks_of(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, Tensor]]:
    """The first row of each block of a matrix, with its weights, float32 [n, cols]."""
    rows, cols = checkpoint.shape(name)
    step = max(1, BLOCK_WEIGHTS // cols)
    for begin in range(0, rows, step):
        yield begin, checkpoint.rows(name, begin, min(rows, begin + step))


def sample(checkpoint: Checkpoint, name: str, curvature: Curvature) -> tuple[Tensor, Curvature]:
    """Some rows of a matrix, float32 [n, cols], evenly spread, and the curvature of them."""
    weights = math.prod(checkpoint.shape(name))
    stride = max(1, min(SAMPLE, weights // SAMPLE_WEIGHTS))
    blocks = checkpoint.blocks(name)
    w = torch.cat([block[-begin % stride :: stride] for begin, block in blocks])
    return w, curvature.rows(slice(None, None, stride))

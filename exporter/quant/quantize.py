"""Quantizes a checkpoint matrix by matrix, and each of them block by block."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.checkpoint.tensors import one_thread, row_spans
from exporter.checkpoint.ternary import LevelBlock
from exporter.errors import CheckpointError
from exporter.in_order import in_order
from exporter.progress import Progress
from exporter.quant import load
from exporter.quant.config import QuantConfig
from exporter.quant.plan import MatrixPlan, plan_matrix
from exporter.quant.rate_quantizer import QuantizedBlock
from exporter.quant.tensor import QuantizedTensor
from exporter.quant.trained_matrix import TrainedMatrix


class MatrixQuantizer(Protocol):
    """A quantizer of matrices whose levels are chosen by what is known of them."""

    @property
    def names(self) -> list[str]:
        """Names of the matrices."""

    def blocks(self, name: str) -> Iterator[QuantizedBlock]:
        """The blocks of a matrix."""

    def in_training(self, name: str, w: Tensor) -> TrainedMatrix:
        """A matrix, weights float32 [rows, cols], as its training begins."""


def quantize(
    checkpoint: Checkpoint,
    config: QuantConfig,
    progress: Progress | None = None,
    *,
    scratch: Path | None = None,
    skip: Collection[str] = (),
    fitted: Sequence[MatrixQuantizer] = (),
) -> Iterator[QuantizedTensor]:
    """All matrices in checkpoint order but those in `skip`, one at a time.

    The levels lie in a file that has no name, in the directory `scratch` (None: that of temporary
    files), and are memory-mapped: memory holds the scales of one matrix and a block of its weights.
    The `fitted` quantize the matrices that they name. `progress` gets weights done and weights in
    all. Raises CheckpointError at a tensor that is not finite.
    """
    names = [name for name in checkpoint.names if config.scheme_for(name)]
    sizes = {name: math.prod(checkpoint.shape(name)) for name in names}
    done = sum(sizes[name] for name in names if name in skip)
    for name in names:
        if name in skip:
            continue
        given = next((q.blocks(name) for q in fitted if name in q.names), None)
        yield _quantize_tensor(checkpoint, name, config, given, scratch)
        done += sizes[name]
        if progress:
            progress("quantize and code", done, sum(sizes.values()))


def _quantize_tensor(
    checkpoint: Checkpoint,
    name: str,
    config: QuantConfig,
    blocks: Iterator[QuantizedBlock] | None,
    scratch: Path | None,
) -> QuantizedTensor:
    """A matrix of quantized blocks; None: of those that its plan makes."""
    plan = plan_matrix(config, checkpoint, name)
    assert plan is not None  # the caller leaves out norms
    scheme, (rows, cols) = load(plan.scheme), checkpoint.shape(name)
    group_size = plan.group_size(cols)
    scales = np.empty((rows, -(-cols // group_size)), np.float32)
    with tempfile.TemporaryFile(dir=scratch) as file:
        for begin, block_levels, block_scales in blocks or one_thread(
            _blocks(checkpoint, name, plan)
        ):
            scales[begin : begin + len(block_scales)] = block_scales.numpy()
            file.write(block_levels.contiguous().numpy().data)
        file.flush()
        # The mapping keeps the file. It is private, because PyTorch warns of arrays that cannot be
        # written.
        levels = np.memmap(file, np.int8, "c", shape=(rows, cols))
    if not np.isfinite(scales).all():
        raise CheckpointError(
            f"{name} has weights that are not finite, or too large to add up in float32",
            hint="check the checkpoint; weights must be far below 1e38",
        )
    return QuantizedTensor(
        name,
        levels,
        scales,
        group_size,
        plan.scheme,
        scheme.LEVEL_MIN,
        scheme.N_LEVELS,
        plan.own_levels,
    )


def _blocks(checkpoint: Checkpoint, name: str, plan: MatrixPlan) -> Iterator[LevelBlock]:
    """The levels and scales of a matrix: those that it has, or else those of the plan's scheme."""
    own = checkpoint.ternary(name)
    if plan.own_levels and own is not None:
        yield from own.level_blocks()
        return
    scheme = load(plan.scheme)

    def block(span: tuple[int, int]) -> LevelBlock:
        return span[0], *scheme.quantize_rows(checkpoint.rows(name, *span), plan.config)

    yield from in_order(row_spans(checkpoint.shape(name)), block)

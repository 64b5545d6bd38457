"""Quantizes a checkpoint matrix by matrix, and each of them block by block."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from exporter.checkpoint.checkpoint import Checkpoint, one_thread
from exporter.errors import CheckpointError
from exporter.progress import Progress
from exporter.quant import load
from exporter.quant.config import QuantConfig
from exporter.quant.tensor import QuantizedTensor, effective_group_size


def quantize(
    checkpoint: Checkpoint,
    config: QuantConfig,
    progress: Progress | None = None,
    *,
    scratch: Path | None = None,
    skip: Collection[str] = (),
) -> Iterator[QuantizedTensor]:
    """All matrices in checkpoint order but those in `skip`, one at a time.

    The levels lie in a file that has no name, in the directory `scratch` (None: that of temporary
    files), and are memory-mapped: memory holds the scales of one matrix and a block of its weights.
    `progress` gets weights done and weights in all. Raises CheckpointError at a tensor
    that is not finite.
    """
    names = [name for name in checkpoint.names if config.scheme_for(name)]
    sizes = {name: math.prod(checkpoint.shape(name)) for name in names}
    done = sum(sizes[name] for name in names if name in skip)
    for name in names:
        if name in skip:
            continue
        yield _quantize_tensor(checkpoint, name, config, scratch)
        done += sizes[name]
        if progress:
            progress("quantize and code", done, sum(sizes.values()))


def _quantize_tensor(
    checkpoint: Checkpoint, name: str, config: QuantConfig, scratch: Path | None
) -> QuantizedTensor:
    scheme_name, scheme_config = config.scheme_for(name), config.config_for(name)
    assert scheme_name is not None  # the caller leaves out norms
    assert scheme_config is not None
    scheme, (rows, cols) = load(scheme_name), checkpoint.shape(name)
    group_size = effective_group_size(scheme_config.group_size, cols)
    scales = np.empty((rows, -(-cols // group_size)), np.float32)
    with tempfile.TemporaryFile(dir=scratch) as file:
        for begin, block in one_thread(checkpoint.blocks(name)):
            block_levels, block_scales = scheme.quantize_rows(block, scheme_config)
            scales[begin : begin + len(block)] = block_scales.numpy()
            file.write(block_levels.contiguous().numpy().data)
        file.flush()
        # The mapping keeps the file. Private, because PyTorch warns of arrays that cannot be
        # written.
        levels = np.memmap(file, np.int8, "c", shape=(rows, cols))
    if not np.isfinite(scales).all():
        raise CheckpointError(
            f"{name} has weights that are not finite, or too large to add up in float32",
            hint="check the checkpoint; weights must be far below 1e38",
        )
    return QuantizedTensor(
        name, levels, scales, group_size, scheme_name, scheme.LEVEL_MIN, scheme.N_LEVELS
    )

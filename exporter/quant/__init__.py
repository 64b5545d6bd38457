"""Quantization: a stream of matrices of a checkpoint becomes a stream of integer levels and scales.

One scheme a file, with `Config`, `LEVEL_MIN`, `N_LEVELS`, `quantize_rows` and `dequantize`. A
calibrated quantizer is a new file quant/<scheme>.py with these names and a line in `SCHEMES`; what
it needs beyond the weights (activation statistics, say) goes into its `Config`, so that `quantize`
stays as it is.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.checkpoint import Checkpoint, one_thread
from exporter.errors import CheckpointError
from exporter.progress import Progress
from exporter.quant import int8, ternary
from exporter.quant.tensor import (
    JsonConfig,
    QuantizedTensor,
    effective_group_size,
    group_size_problems,
)

__all__ = ["SCHEMES", "QuantConfig", "QuantizedTensor", "quantize"]

SCHEMES: dict[str, ModuleType] = {"int8": int8, "ternary": ternary}
SchemeConfig = int8.Config | ternary.Config


@dataclass(frozen=True)
class QuantConfig(JsonConfig):
    """How to quantize a model. Norm weights always stay float32.

    `group_size` and `sparsity` are those of `scheme`. The embedding and the head take the scheme
    `embedding`: the same settings if that is the same scheme, else one scale a row and that
    scheme's defaults.
    """

    scheme: str = "ternary"
    group_size: int | None = None
    sparsity: float | None = None
    embedding: str = "int8"

    def problems(self) -> list[str]:
        fields = {"scheme": self.scheme, "embedding": self.embedding}
        problems = [
            f"{field} must be one of {', '.join(SCHEMES)}; got {value!r}"
            for field, value in fields.items()
            if value not in SCHEMES
        ]
        if self.sparsity is not None and self.scheme != "ternary":
            problems.append(
                f"sparsity is an option of scheme ternary, the scheme is {self.scheme!r}"
            )
        return (
            problems
            + group_size_problems(self.group_size)
            + ternary.sparsity_problems(self.sparsity)
        )

    def scheme_for(self, name: str) -> str | None:
        """The scheme of a checkpoint tensor; None for a norm weight, which is not quantized."""
        if name.endswith("norm.weight"):
            return None
        return self.embedding if name in (EMBEDDING, HEAD) else self.scheme

    def config_for(self, name: str) -> SchemeConfig | None:
        """The scheme's config for a checkpoint tensor; None for a norm weight, which is not
        quantized."""
        scheme = self.scheme_for(name)
        own = scheme == self.scheme
        if scheme == "ternary":
            return ternary.Config(self.group_size, self.sparsity) if own else ternary.Config()
        return None if scheme is None else int8.Config(self.group_size if own else None)


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
    scheme, (rows, cols) = SCHEMES[scheme_name], checkpoint.shape(name)
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
            do="check the checkpoint; weights must be far below 1e38",
        )
    return QuantizedTensor(
        name, levels, scales, group_size, scheme_name, scheme.LEVEL_MIN, scheme.N_LEVELS
    )

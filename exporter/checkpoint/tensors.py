"""The tensors of a checkpoint as the exporter reads them: blocks of rows in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

BLOCK_WEIGHTS = 1_000_000  # larger blocks leave the CPU's cache: measured twice as slow to quantize


class TensorSource(Protocol):
    """A tensor on disk, of which rows are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape: (out_features, in_features) of a matrix, (length,) of a vector."""

    @property
    def dtype(self) -> str:
        """Name of the type of its values on disk, such as BF16 or Q4_K."""

    @property
    def size_bytes(self) -> int:
        """Its size on disk, in bytes."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from."""

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) as float32; only they are read.

        Raises CheckpointError if a file has changed since it was opened.
        """


@dataclass(frozen=True)
class ScaledTensor:
    """A tensor times a factor."""

    source: TensorSource
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> str:
        return self.source.dtype

    @property
    def size_bytes(self) -> int:
        return self.source.size_bytes

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    def rows(self, begin: int, end: int) -> torch.Tensor:
        return self.source.rows(begin, end) * self.factor


def check_range(begin: int, end: int, length: int) -> None:
    """Checks that there are rows [begin, end). Raises IndexError."""
    if not 0 <= begin <= end <= length:
        raise IndexError(f"rows {begin}..{end} of a tensor that has {length}")


def row_spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The ranges of rows of the blocks of a tensor, of about BLOCK_WEIGHTS weights each."""
    step = max(1, BLOCK_WEIGHTS // max(1, math.prod(shape[1:])))
    return [(begin, min(begin + step, shape[0])) for begin in range(0, shape[0], step)]

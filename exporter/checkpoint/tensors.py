"""The tensors of a checkpoint as the exporter reads them: blocks of rows in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")
Block = tuple[int, torch.Tensor]
"""The number of its first row, and rows as float32 [n, ..]."""

# Larger blocks leave the CPU's cache: measured twice as slow to quantize. Some are in work at once.
BLOCK_WEIGHTS = 500_000


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
class WrappedTensor:
    """A tensor of which another says what it is on disk."""

    source: TensorSource

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
        return self.source.rows(begin, end)


@dataclass(frozen=True)
class ScaledTensor(WrappedTensor):
    """A tensor times a factor."""

    factor: float

    def rows(self, begin: int, end: int) -> torch.Tensor:
        return self.source.rows(begin, end) * self.factor


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite: both pass through aminmax, and nothing is copied."""
    return bool(torch.stack(values.aminmax()).isfinite().all())


def check_range(begin: int, end: int, length: int) -> None:
    """Checks that there are rows [begin, end). Raises IndexError."""
    if not 0 <= begin <= end <= length:
        raise IndexError(f"rows {begin}..{end} of a tensor that has {length}")


def row_spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The ranges of rows of the blocks of a tensor, of about BLOCK_WEIGHTS weights each."""
    step = max(1, BLOCK_WEIGHTS // max(1, math.prod(shape[1:])))
    return [(begin, min(begin + step, shape[0])) for begin in range(0, shape[0], step)]


def blocks_of(tensor: TensorSource) -> Iterator[Block]:
    """The blocks of a whole tensor, of about BLOCK_WEIGHTS weights each."""
    for begin, end in row_spans(tensor.shape):
        yield begin, tensor.rows(begin, end)


def one_thread(blocks: Iterator[T]) -> Iterator[T]:
    """The same blocks, with torch at one thread while they are worked on.

    A block is too short to share out: on a busy machine, threads that wait for each other took five
    times the CPU time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from blocks
    finally:
        torch.set_num_threads(threads)


def two_bit_codes(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes 0..3 of bytes that hold four each, the first in the lowest bits.

    uint8 [.., n] -> uint8 [.., 4 n].
    """
    codes = packed[..., None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
    return codes.reshape(*packed.shape[:-1], -1)

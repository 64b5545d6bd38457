"""Constants of an ML Program that stay packed, and are dequantized a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime_ref.coreml.package import Packed

BLOCK_WEIGHTS = 1 << 19  # dequantized at a time: 2 MB, which stays in a cache


class Rows(Protocol):
    """Source of a tensor that gives its rows along axis 0 as float32."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, begin: int, end: int) -> Tensor: ...


@dataclass(frozen=True)
class Stored:
    """Rows of values as they are in the file."""

    packed: Packed

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end`, float32 [end - begin, *shape[1:]].

        They are a view if the file holds float32.
        """
        return torch.from_numpy(self.packed.rows(begin, end)).to(torch.float32)


class LookedUp:
    """Rows of `constexpr_lut_to_dense`: indices [*shape] into tables [*groups, NUM, 1].

    There is a table for each block of the tensor. Raises ValueError if the tables do not fit the
    indices, or hold vectors.
    """

    def __init__(self, indices: Packed, tables: Tensor) -> None:
        *groups, entries, vector = tables.shape
        if vector != 1:
            raise ValueError(f"tables of vectors, lut {list(tables.shape)}, are not supported")
        if (
            not indices.dtype.startswith("uint")
            or indices.storage.bits > 8
            or entries != 2**indices.storage.bits
        ):
            raise ValueError(
                f"indices of type {indices.dtype} do not go with lut {list(tables.shape)}"
            )
        self.indices, self.shape = indices, indices.shape
        self.blocks = _Blocks(indices.shape, tuple(groups))
        self.tables = tables.to(torch.float32).reshape(*groups, entries)
        self._one = _one_table(self.tables)

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end`, float32 [end - begin, *shape[1:]]."""
        if self._one is not None:  # four times as fast as the general way
            table, scales = self._one
            found = torch.from_numpy(self.indices.look_up(table, begin, end))
            return self.blocks.apply(found, scales, begin, Tensor.mul_)
        entries = self.tables.shape[-1]
        places = torch.from_numpy(
            self.indices.look_up(np.arange(entries, dtype=np.int32), begin, end)
        )
        first = torch.arange(0, self.tables.numel(), entries, dtype=torch.int32).reshape(
            self.tables.shape[:-1]
        )
        places = self.blocks.apply(places, first, begin, torch.add)
        return torch.from_numpy(np.take(self.tables.reshape(-1).numpy(), places.numpy()))


def _one_table(tables: Tensor) -> tuple[NDArray[np.float32], Tensor] | None:
    """Table [NUM] and scales [*groups], if each table is exactly that one times its scale.

    None if it is not.
    """
    scales = tables.abs().amax(dim=-1)
    where = int(scales.argmax())
    if tables[..., 0].numel() == 1:
        return tables.reshape(-1).numpy(), torch.ones_like(scales)
    table = tables.reshape(-1, tables.shape[-1])[where] / scales.reshape(-1)[where]
    return (table.numpy(), scales) if torch.equal(scales[..., None] * table, tables) else None


class ShiftedScaled:
    """Rows of `constexpr_blockwise_shift_scale`: (data - offset) * scale.

    Scale and offset are [*groups], one for each block. `rounded`: difference and product are
    rounded to half precision. Raises ValueError if the shapes do not fit.
    """

    def __init__(self, data: Rows, scale: Tensor, offset: Tensor | None, rounded: bool) -> None:
        if offset is not None and offset.shape != scale.shape:
            raise ValueError(
                f"offset {list(offset.shape)} is not of the shape of scale {list(scale.shape)}"
            )
        self.data, self.shape, self.rounded = data, data.shape, rounded
        self.blocks = _Blocks(data.shape, tuple(scale.shape))
        self.scale = scale.to(torch.float32)
        self.offset = None if offset is None else offset.to(torch.float32)

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end`, float32 [end - begin, *shape[1:]]."""
        values = self.data.rows(begin, end)
        if self.offset is not None:
            values = self._round(self.blocks.apply(values, self.offset, begin, torch.sub))
        return self._round(self.blocks.apply(values, self.scale, begin, torch.mul))

    def _round(self, values: Tensor) -> Tensor:
        return values.to(torch.float16).to(torch.float32) if self.rounded else values


class _Blocks:
    """Division of a tensor [*shape] into [*groups] equal blocks. Raises ValueError."""

    def __init__(self, shape: tuple[int, ...], groups: tuple[int, ...]) -> None:
        if len(shape) != len(groups) or any(
            g == 0 or n % g for n, g in zip(shape, groups, strict=False)
        ):
            raise ValueError(f"{list(groups)} blocks do not divide a tensor {list(shape)}")
        self.rows_in_block = shape[0] // groups[0]
        # A row [n, m] is seen as [groups of n, block of n, groups of m, block of m].
        self._row_shape = [
            size for n, g in zip(shape[1:], groups[1:], strict=True) for size in (g, n // g)
        ]
        self._parameter_shape = [size for g in groups[1:] for size in (g, 1)]

    def apply(
        self,
        rows: Tensor,
        parameters: Tensor,
        begin: int,
        operation: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Results of `operation(value, parameter of its block)` for rows from `begin` on.

        Parameters are [*groups].
        """
        count = rows.shape[0]
        block = torch.arange(begin, begin + count) // self.rows_in_block
        of_rows = parameters[block].reshape(count, *self._parameter_shape)
        return operation(rows.reshape(count, *self._row_shape), of_rows).reshape(rows.shape)


@dataclass
class WeightCache:
    """Dense float32 weights, kept first come, first served while they fit into `free_bytes`."""

    free_bytes: int
    dense: dict[str, Tensor] = field(default_factory=dict)


class Weight:
    """Floating-point constant that is dequantized when it is needed.

    `held` is the type a computed value of its type would be held as. `key` names its content in the
    cache.
    """

    def __init__(self, source: Rows, held: torch.dtype, cache: WeightCache, key: str) -> None:
        self.source, self.held, self.key = source, held, key
        self.shape = source.shape
        self._cache = cache

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end`, float32 [end - begin, *shape[1:]]."""
        if (kept := self._cache.dense.get(self.key)) is not None:
            return kept[begin:end]
        return self.source.rows(begin, end)

    def take(self, indices: Tensor) -> Tensor:
        """Rows with these numbers, float32 [*indices.shape, *shape[1:]]. Raises IndexError."""
        numbers = indices.reshape(-1).tolist()
        if any(not 0 <= n < self.shape[0] for n in numbers):
            raise IndexError(
                f"an index of {min(numbers)}..{max(numbers)} is not in [0, {self.shape[0]})"
            )
        rows = [self.rows(n, n + 1) for n in numbers]
        return torch.cat([self.rows(0, 0), *rows]).reshape(*indices.shape, *self.shape[1:])

    def kept(self) -> Tensor | None:
        """All values, float32 [*shape], if the cache holds them or has room now; else None."""
        if self.key not in self._cache.dense:
            n_bytes = 0 if self._is_view else 4 * math.prod(self.shape)
            if n_bytes > self._cache.free_bytes:
                return None
            self._cache.dense[self.key] = self._decoded()
            self._cache.free_bytes -= n_bytes
        return self._cache.dense[self.key]

    def all(self) -> Tensor:
        """All values, float32 [*shape]."""
        kept = self.kept()
        return self._decoded() if kept is None else kept

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """First row and rows of each block of the tensor, in order.

        A block is small enough to stay in a processor's cache while it is used.
        """
        step = max(1, BLOCK_WEIGHTS // max(1, math.prod(self.shape[1:])))
        for begin in range(0, self.shape[0], step):
            yield begin, self.rows(begin, min(begin + step, self.shape[0]))

    @property
    def _is_view(self) -> bool:
        return isinstance(self.source, Stored) and self.source.packed.dtype == "float32"

    def _decoded(self) -> Tensor:
        if self._is_view:
            return self.rows(0, self.shape[0])
        dense = torch.empty(self.shape)
        for begin, rows in self.blocks():
            dense[begin : begin + len(rows)] = rows
        return dense

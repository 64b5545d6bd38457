"""Rounding with feedback of the errors: GPTQ, arXiv 2210.17323.

The columns of a matrix are rounded one after the other. With the inverse of H = mean x x^T of its
inputs as U^T U, U upper triangular, an error e of column j, divided by U_jj, is fed back to each
later column k as -e U_jk. What a level costs in the end is d_j = 1 / U_jj^2 times its squared
error alone. Within a block of columns that is done in the C++ core, through ctypes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exporter.codec import native


class _CFeedbackArgs(ctypes.Structure):
    _fields_ = (
        ("rest", ctypes.c_void_p),
        ("rows", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("stride", ctypes.c_uint64),
        ("upper", ctypes.c_void_p),
        ("upper_stride", ctypes.c_uint64),
        ("steps", ctypes.c_void_p),
        ("bits", ctypes.c_void_p),
        ("most", ctypes.c_uint32),
        ("saved", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
    )


BLOCK = 64  # columns whose errors are fed back among themselves first

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "round_with_feedback": (ctypes.c_int, (ctypes.POINTER(_CFeedbackArgs),)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled core, with the signature of the rounding set."""
    loaded = native.library()
    native.declare(loaded, _SIGNATURES, native.REBUILD)
    return loaded


@dataclass(frozen=True)
class Rounding:
    """A matrix that is being rounded, or some of its columns.

    rest: what is left of the weights, float32 [n, cols]. levels: int8 [n, cols]. errors: float32
    [n, cols], divided by the diagonal of U.
    """

    rest: Tensor
    levels: Tensor
    errors: Tensor

    @classmethod
    def of(cls, w: Tensor) -> Rounding:
        """The beginning: weights float32 [n, cols], of which none are rounded."""
        return cls(w.clone(), torch.empty_like(w, dtype=torch.int8), torch.empty_like(w))

    def columns(self, part: slice) -> Rounding:
        """Some columns, in the same memory."""
        return Rounding(*(x[:, part] for x in (self.rest, self.levels, self.errors)))

    def blocks(self, upper: Tensor, begin: int, end: int) -> Iterator[slice]:
        """The columns [begin, end) in blocks, each of which the caller rounds before the next.

        The errors are fed back to all columns that follow. upper: U, float32 [cols, cols].
        """
        for first in range(begin, end, BLOCK):
            now = slice(first, min(first + BLOCK, end))
            yield now
            later = slice(now.stop, None)
            self.rest[:, later].addmm_(self.errors[:, now], upper[now, later], alpha=-1)


@dataclass(frozen=True)
class Price:
    """What bits are worth.

    bits: of a bit in each column, in squared steps, float32 [columns]. saved: the bits that one
    step nearer zero saves, float32 [2 * most + 1] by level from -most up.
    """

    bits: Tensor
    saved: Tensor

    @classmethod
    def none(cls, columns: int, most: int) -> Price:
        """Bits that are worth nothing: levels from -most to most are the nearest ones."""
        return cls(torch.zeros(columns), torch.zeros(2 * most + 1))


def round_with_feedback(columns: Rounding, upper: Tensor, steps: Tensor, price: Price) -> None:
    """Rounds some columns of a matrix with feedback among them: tinyqmoe_encode.h.

    upper: float32 [columns, columns]. steps: float32 [n], above zero.
    """
    rest, levels, errors = columns.rest, columns.levels, columns.errors
    tensors = [x.contiguous() for x in (upper, steps, price.bits, price.saved)]
    assert rest.stride() == levels.stride() == errors.stride() == (rest.stride(0), 1)
    of_upper, of_steps, of_bits, of_saved = (x.data_ptr() for x in tensors)
    args = _CFeedbackArgs(
        rest=rest.data_ptr(),
        rows=rest.shape[0],
        columns=rest.shape[1],
        stride=rest.stride(0),
        upper=of_upper,
        upper_stride=tensors[0].stride(0),
        steps=of_steps,
        bits=of_bits,
        most=len(price.saved) // 2,
        saved=of_saved,
        levels=levels.data_ptr(),
        errors=errors.data_ptr(),
    )
    status = library().tinyqmoe_round_with_feedback(ctypes.byref(args))
    native.check(status, f"rounding {rest.shape[0]} x {rest.shape[1]} weights")

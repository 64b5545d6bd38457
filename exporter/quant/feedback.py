"""Rounding with feedback of the errors, in the C++ core, through ctypes."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

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
        ("saved", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
    )


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

    def columns(self, part: slice) -> Rounding:
        """Some columns, in the same memory."""
        return Rounding(*(x[:, part] for x in (self.rest, self.levels, self.errors)))


def round_with_feedback(
    columns: Rounding, upper: Tensor, steps: Tensor, bits: Tensor, saved: Tensor
) -> None:
    """Rounds some columns of a matrix with feedback among them: tinyqmoe_encode.h.

    upper: float32 [columns, columns]. steps: float32 [n]. bits: float32 [columns]. saved: float32
    [255].
    """
    rest, levels, errors = columns.rest, columns.levels, columns.errors
    upper, bits = upper.contiguous(), bits.contiguous()
    assert rest.stride() == levels.stride() == errors.stride() == (rest.stride(0), 1)
    assert steps.is_contiguous()
    assert saved.is_contiguous()
    args = _CFeedbackArgs(
        rest=rest.data_ptr(),
        rows=rest.shape[0],
        columns=rest.shape[1],
        stride=rest.stride(0),
        upper=upper.data_ptr(),
        upper_stride=upper.stride(0),
        steps=steps.data_ptr(),
        bits=bits.data_ptr(),
        saved=saved.data_ptr(),
        levels=levels.data_ptr(),
        errors=errors.data_ptr(),
    )
    status = library().tinyqmoe_round_with_feedback(ctypes.byref(args))
    native.check(status, f"rounding {rest.shape[0]} x {rest.shape[1]} weights")

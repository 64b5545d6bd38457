"""Coordinate descent on the levels of a matrix, after they were rounded.

Rounding column after column looks at each level once. The loss of a row with levels q and weights
u, both in steps, is (u - q) H (u - q)^T, H = mean x x^T of the inputs. Another level q_j + t,
t = -1 or 1, changes it by

    H_jj - 2 t ((u - q) H)_j,

and changes the bits of the level. Where both together fall, the level is changed, until none does.
This is done in the C++ core, through ctypes.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from torch import Tensor

from exporter.codec import native

SWEEPS = 10  # over all columns of a row; a few are enough


class _CDescentArgs(ctypes.Structure):
    _fields_ = (
        ("gradient", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("rows", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("gram", ctypes.c_void_p),
        ("most", ctypes.c_uint32),
        ("bits", ctypes.c_void_p),
        ("bit", ctypes.c_float),
        ("sweeps", ctypes.c_uint32),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "descend": (ctypes.c_int, (ctypes.POINTER(_CDescentArgs),)),
}


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled core, with the signature of the descent set."""
    loaded = native.library()
    native.declare(loaded, _SIGNATURES, native.REBUILD)
    return loaded


def descend(levels: Tensor, gradient: Tensor, gram: Tensor, bits: Tensor, worth: float) -> None:
    """Changes levels int8 [n, cols] in their place.

    gradient: (u - q) H, float32 [n, cols], which follows the levels. gram: H, float32 [cols, cols].
    bits: of each level, float32 [2 * most + 1] from -most up. worth: of a bit, as a loss in squared
    steps. All are contiguous.
    """
    assert all(x.is_contiguous() for x in (levels, gradient, gram, bits))
    args = _CDescentArgs(
        gradient=gradient.data_ptr(),
        levels=levels.data_ptr(),
        rows=levels.shape[0],
        columns=levels.shape[1],
        gram=gram.data_ptr(),
        most=len(bits) // 2,
        bits=bits.data_ptr(),
        bit=worth,
        sweeps=SWEEPS,
    )
    status = _library().tinyqmoe_descend(ctypes.byref(args))
    native.check(status, f"descent on {levels.shape[0]} x {levels.shape[1]} levels")

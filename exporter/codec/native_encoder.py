"""The fast half of the encoder, in the C++ core, through ctypes."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.codec import native
from exporter.codec.native import Int8Array, check


class _CEncodeArgs(ctypes.Structure):
    _fields_ = (
        ("levels", ctypes.c_void_p),
        ("rows", ctypes.c_uint32),
        ("cols", ctypes.c_uint32),
        ("level_min", ctypes.c_int8),
        ("n_levels", ctypes.c_uint32),
        ("code_bits", ctypes.c_uint32),
        ("payload", ctypes.c_void_p),
        ("payload_capacity", ctypes.c_uint64),
    )


class _CEncodeDictionary(ctypes.Structure):
    _fields_ = (
        ("cap", ctypes.c_uint32),
        ("n_entries", ctypes.c_uint32),
        ("bytes", ctypes.c_void_p),
        ("n_bytes", ctypes.c_uint64),
    )


_P = ctypes.c_void_p
_U64 = ctypes.c_uint64
_INT = ctypes.c_int

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "count_levels": (_INT, (_P, _U64, _P)),
    "encode_lzw": (
        _INT,
        (
            ctypes.POINTER(_CEncodeArgs),
            ctypes.POINTER(_CEncodeDictionary),
            _P,
            ctypes.POINTER(_U64),
        ),
    ),
    "encode_raw": (_INT, (ctypes.POINTER(_CEncodeArgs),)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled core, with the signatures of the encoder set."""
    loaded = native.library()
    native.declare(loaded, _SIGNATURES, native.REBUILD)
    return loaded


def _levels(levels: npt.ArrayLike) -> Int8Array:
    array = np.asarray(levels)
    if array.dtype != np.int8 or array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"levels must be a matrix of int8 with elements, got {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array)


def count_levels(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.uint64]:
    """How often each level occurs: counts[level + 128]."""
    flat = np.ascontiguousarray(levels, np.int8)
    counts = np.zeros(256, np.uint64)
    check(
        library().tinyqmoe_count_levels(flat.ctypes.data, flat.size, counts.ctypes.data), "levels"
    )
    return counts


def _encode_args(
    levels: npt.NDArray[np.int8],
    level_min: int,
    n_levels: int,
    code_bits: int,
    payload: npt.NDArray[np.uint8] | None,
) -> _CEncodeArgs:
    return _CEncodeArgs(
        levels=levels.ctypes.data,
        rows=levels.shape[0],
        cols=levels.shape[1],
        level_min=level_min,
        n_levels=n_levels,
        code_bits=code_bits,
        payload=None if payload is None else payload.ctypes.data,
        payload_capacity=0 if payload is None else payload.size,
    )


def encode_lzw(
    levels: npt.NDArray[np.int8],
    level_min: int,
    n_levels: int,
    code_bits: int,
    cap: int,
    n_entries: int,
    dictionary: bytes,
    count_only: bool = False,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8] | None, int]:
    """Codewords a row, the payload (None with `count_only`), and its exact size in bytes."""
    matrix = _levels(levels)
    rows, cols = matrix.shape
    what = f"encoding {rows} x {cols} levels from {level_min}, {n_levels} of them"
    row_codes = np.empty(rows, np.uint16)
    size = _U64()
    tree = np.frombuffer(dictionary, np.uint8)
    c_dictionary = _CEncodeDictionary(cap, n_entries, tree.ctypes.data, tree.size)

    def encode(payload: npt.NDArray[np.uint8] | None) -> None:
        args = _encode_args(matrix, level_min, n_levels, code_bits, payload)
        status = library().tinyqmoe_encode_lzw(
            ctypes.byref(args),
            ctypes.byref(c_dictionary),
            row_codes.ctypes.data,
            ctypes.byref(size),
        )
        check(status, what)

    if count_only:
        encode(None)
        return row_codes, None, size.value
    # No more than one codeword a level; pages that stay unwritten cost nothing.
    room = np.empty(rows * ((cols * code_bits + 7) // 8), np.uint8)
    encode(room)
    return row_codes, room[: size.value].copy(), size.value


def encode_raw(
    levels: npt.NDArray[np.int8], level_min: int, n_levels: int, code_bits: int
) -> npt.NDArray[np.uint8]:
    """Levels packed as `level - level_min`, each row to a whole number of bytes."""
    matrix = _levels(levels)
    rows, cols = matrix.shape
    payload = np.empty(rows * ((cols * code_bits + 7) // 8), np.uint8)
    args = _encode_args(matrix, level_min, n_levels, code_bits, payload)
    status = library().tinyqmoe_encode_raw(ctypes.byref(args))
    check(
        status,
        f"packing {rows} x {cols} levels from {level_min}, {n_levels} of them, into {code_bits} "
        "bits",
    )
    return payload

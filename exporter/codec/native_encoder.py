"""The fast half of the encoder, in the C++ core, through ctypes."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.codec import native
from exporter.codec.dictionary import Dictionary
from exporter.codec.native import check
from exporter.codec.native_tensor import Int8Array


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
        ("core_first", ctypes.c_uint32),
        ("n_core", ctypes.c_uint32),
        ("n_entries", ctypes.c_uint32),
        ("bytes", ctypes.c_void_p),
        ("n_bytes", ctypes.c_uint64),
    )


_P = ctypes.c_void_p
_U64 = ctypes.c_uint64
_INT = ctypes.c_int

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "count_levels": (_INT, (_P, _U64, _P)),
    "count_phrases": (
        _INT,
        (ctypes.POINTER(_CEncodeArgs), ctypes.POINTER(_CEncodeDictionary), _P),
    ),
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
    "encode_base3": (_INT, (ctypes.POINTER(_CEncodeArgs),)),
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
    """Number of times each level occurs, uint64 [256]: counts[level + 128]."""
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


def _encode_dictionary(d: Dictionary) -> tuple[_CEncodeDictionary, npt.NDArray[np.uint8]]:
    """The dictionary for a call, and its bytes, which must outlive the call."""
    section = np.frombuffer(d.to_bytes(), np.uint8)
    c_dictionary = _CEncodeDictionary(
        *(d.cap, d.core_first, d.n_core, d.n_entries, section.ctypes.data, section.size)
    )
    return c_dictionary, section


def _what(matrix: Int8Array, d: Dictionary) -> str:
    rows, cols = matrix.shape
    return f"encoding {rows} x {cols} levels from {d.level_min}, {d.n_levels} of them"


def count_phrases(levels: npt.NDArray[np.int8], dictionary: Dictionary) -> npt.NDArray[np.uint64]:
    """Number of times each phrase of a dictionary occurs, uint64 [n_entries]."""
    matrix = _levels(levels)
    c_dictionary, section = _encode_dictionary(dictionary)
    args = _encode_args(matrix, dictionary.level_min, dictionary.n_levels, 0, None)
    counts = np.zeros(dictionary.n_entries, np.uint64)
    status = library().tinyqmoe_count_phrases(
        ctypes.byref(args), ctypes.byref(c_dictionary), counts.ctypes.data
    )
    del section
    check(status, _what(matrix, dictionary))
    return counts


def encode_lzw(
    levels: npt.NDArray[np.int8], dictionary: Dictionary, count_only: bool = False
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """Bytes of each row, and the payload.

    The payload is empty with `count_only`.
    """
    matrix = _levels(levels)
    row_bytes = np.empty(len(matrix), np.uint32)
    size = _U64()
    c_dictionary, section = _encode_dictionary(dictionary)

    def encode(payload: npt.NDArray[np.uint8] | None) -> None:
        args = _encode_args(matrix, dictionary.level_min, dictionary.n_levels, 0, payload)
        status = library().tinyqmoe_encode_lzw(
            ctypes.byref(args),
            ctypes.byref(c_dictionary),
            row_bytes.ctypes.data,
            ctypes.byref(size),
        )
        check(status, _what(matrix, dictionary))

    if count_only:
        encode(None)
        return row_bytes, np.zeros(0, np.uint8)
    # A codeword and an escaped level are 20 bits; pages that stay unwritten cost nothing.
    room = np.empty(matrix.size * 20 // 8 + len(matrix), np.uint8)
    encode(room)
    del section
    return row_bytes, room[: size.value].copy()


def encode_base3(levels: npt.NDArray[np.int8], level_min: int) -> npt.NDArray[np.uint8]:
    """Three levels from `level_min` up, five to a byte, each row to a whole number of bytes."""
    matrix = _levels(levels)
    rows, cols = matrix.shape
    payload = np.empty(rows * -(-cols // 5), np.uint8)
    args = _encode_args(matrix, level_min, 3, 8, payload)
    status = library().tinyqmoe_encode_base3(ctypes.byref(args))
    check(status, f"packing {rows} x {cols} levels from {level_min}, five to a byte")
    return payload


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

"""The C++ core through ctypes: loading it, the signatures of its functions, and their statuses.

`exporter/native/include/tinyqmoe/tinyqmoe.h` is the authority on what each call computes.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from exporter.codec.scale_types import ScaleType
from exporter.errors import CodecError, MissingComponentError
from exporter.native import library_file, native_dir

ABI_VERSION = 6
REBUILD = "reinstall tiny-qmoe where a C++17 compiler is present (g++ or clang++)"

Isa = Literal["auto", "scalar", "avx2", "avx512", "neon", "neon_dotprod", "neon_i8mm"]
SCALE_NUMBER: dict[ScaleType, int] = {"float32": 0, "ue6m10": 1}
ISA_NUMBER: dict[str, int] = {
    "auto": 0,
    "scalar": 1,
    "avx2": 2,
    "neon": 3,
    "neon_dotprod": 4,
    "avx512": 5,
    "neon_i8mm": 7,
}

# Statuses that blame the caller and not the bytes; NON_FINITE and BAD_ID depend on data, so they
# are CodecErrors.
_ARGUMENT_STATUSES = frozenset({"BAD_ARGUMENT", "BUFFER_TOO_SMALL", "NO_ISA"})

# Anything with the buffer protocol will do, as an mmap.
Bytes = bytes | bytearray | memoryview | npt.NDArray[np.uint8] | Any


class CInfo(ctypes.Structure):
    _fields_ = (
        ("codec", ctypes.c_uint8),
        ("code_bits", ctypes.c_uint8),
        ("cap", ctypes.c_uint8),
        ("level_min", ctypes.c_int8),
        ("n_levels", ctypes.c_uint32),
        ("rows", ctypes.c_uint32),
        ("cols", ctypes.c_uint32),
        ("n_entries", ctypes.c_uint32),
        ("header_crc32", ctypes.c_uint32),
        ("payload_bytes", ctypes.c_uint64),
        ("total_bytes", ctypes.c_uint64),
    )


class CEmbeddingArgs(ctypes.Structure):
    _fields_ = (
        ("tensor", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("scale_type", ctypes.c_int),
        ("group_size", ctypes.c_uint32),
        ("isa", ctypes.c_int),
        ("ids", ctypes.c_void_p),
        ("n_ids", ctypes.c_uint64),
        ("out", ctypes.c_void_p),
    )


class CLinearArgs(ctypes.Structure):
    _fields_ = (
        ("tensor", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("scale_type", ctypes.c_int),
        ("group_size", ctypes.c_uint32),
        ("n_tokens", ctypes.c_uint32),
        ("row_begin", ctypes.c_uint32),
        ("row_end", ctypes.c_uint32),
        ("isa", ctypes.c_int),
        ("scratch", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_uint64),
        ("y", ctypes.c_void_p),
    )


_P = ctypes.c_void_p
_U32 = ctypes.c_uint32
_U64 = ctypes.c_uint64
_INT = ctypes.c_int


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "abi_version": (_U32, ()),
    "status_name": (ctypes.c_char_p, (_INT,)),
    "best_isa": (_INT, ()),
    "crc32": (_U32, (_U32, _P, _U64)),
    "open": (_INT, (_P, _U64, _U32, ctypes.POINTER(_P))),
    "close": (None, (_P,)),
    "get_info": (None, (_P, ctypes.POINTER(CInfo))),
    "decode_rows": (_INT, (_P, _U32, _U32, _INT, _P)),
    "embedding": (_INT, (ctypes.POINTER(CEmbeddingArgs),)),
    "quantized_bytes": (_U64, (_U32,)),
    "quantize_x16": (_INT, (_P, _U32, _U32, _INT, _P, _P)),
    "linear_scratch_bytes": (_U64, (_P, _U32)),
    "linear_x16": (_INT, (ctypes.POINTER(CLinearArgs), _P, _P)),
    "linear_f32": (_INT, (ctypes.POINTER(CLinearArgs), _P)),
    "acquire": (_INT, (_P, ctypes.POINTER(_P))),
    "form_tensor": (_P, (_P,)),
    "form_next_rows": (ctypes.c_bool, (_P, ctypes.POINTER(_U32), ctypes.POINTER(_U32))),
    "release": (None, (_P,)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled core, with the signatures of all its functions set."""
    file = library_file()
    if file is None:
        raise MissingComponentError(f"the compiled codec is not in {native_dir()}", hint=REBUILD)
    loaded = ctypes.CDLL(str(file))
    declare(loaded, _SIGNATURES, REBUILD)
    if (version := loaded.tinyqmoe_abi_version()) != ABI_VERSION:
        raise MissingComponentError(
            f"{file.name} has ABI version {version}, expected {ABI_VERSION}", hint=REBUILD
        )
    return loaded


def declare(
    loaded: ctypes.CDLL, signatures: dict[str, tuple[Any, tuple[Any, ...]]], hint: str
) -> None:
    """Sets the signatures of functions.

    Raises MissingComponentError where one lacks.
    """
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, f"tinyqmoe_{name}", None)
        if function is None:
            raise MissingComponentError(
                f"{Path(loaded._name).name} lacks tinyqmoe_{name}", hint=hint
            )
        function.restype = result
        function.argtypes = arguments


def check(status: int, what: str) -> None:
    """Checks the status of a call and raises what it means.

    MemoryError is for memory, ValueError for arguments, CodecError for bytes.
    """
    if status == 0:
        return
    name = library().tinyqmoe_status_name(status).decode()
    if name == "OUT_OF_MEMORY":
        raise MemoryError(what)
    if name in _ARGUMENT_STATUSES:
        raise ValueError(f"{name}: {what}")
    hint = "export the model again" if name == "BAD_VERSION" else ""
    raise CodecError(name, what, hint=hint)


def available_isas() -> list[Isa]:
    """The instruction sets this machine can be asked for, slowest first."""
    best = library().tinyqmoe_best_isa()
    by_best: dict[int, list[Isa]] = {
        1: ["scalar"],
        2: ["scalar", "avx2"],
        3: ["scalar", "neon"],
        4: ["scalar", "neon", "neon_dotprod"],
        7: ["scalar", "neon", "neon_dotprod", "neon_i8mm"],
        5: ["scalar", "avx2", "avx512"],
    }
    return by_best[best]


def crc32(data: Bytes, crc: int = 0) -> int:
    """CRC-32 of `data`, as `zlib.crc32` computes it."""
    view = np.frombuffer(data, np.uint8)
    return int(library().tinyqmoe_crc32(crc, view.ctypes.data, view.size))

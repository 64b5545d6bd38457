"""The size of a KV cache in a `.pte`, as the C++ core lays it out."""

from __future__ import annotations

import ctypes

from exporter.bundle import KVType
from exporter.codec.native import library

# Numbers of tinyqmoe_kv_type.
KV_TYPES: dict[KVType, int] = {"float16": 1, "float32": 2, "int8": 3}


class _KVCache(ctypes.Structure):
    """The struct tinyqmoe_kv_cache."""

    _fields_ = (
        ("bytes", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("kv_heads", ctypes.c_uint32),
        ("head_dim", ctypes.c_uint32),
        ("context", ctypes.c_uint32),
    )


def cache_bytes(kv_type: KVType, kv_heads: int, head_dim: int, context: int) -> int:
    """Size of one layer's cache, in bytes. Raises ValueError if there is no such cache."""
    size = library().tinyqmoe_kv_cache_bytes
    size.restype = ctypes.c_uint64
    shape = _KVCache(None, KV_TYPES[kv_type], kv_heads, head_dim, context)
    n_bytes = int(size(ctypes.byref(shape)))
    if n_bytes == 0:
        raise ValueError(f"no KV cache has {kv_heads} heads of {head_dim}, {context} positions")
    return n_bytes

"""The residency manager of the C++ core through ctypes: which memory expanded weights may take."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from exporter.codec.native import check, declare, library

UNLIMITED = 2**64 - 1  # of a budget


@dataclass(frozen=True)
class ResidencyStats:
    """What a copy of the core holds and has done; the fields are those of tinyqmoe.h."""

    budget_bytes: int
    clean_budget_bytes: int
    dirty_bytes: int
    dirty_peak_bytes: int
    file_bytes: int
    tensors_known: int
    tensors_raw: int
    tensors_expanded: int
    tensors_from_file: int
    tensors_streamed: int
    expansions: int
    products_raw: int
    products_from_codes: int
    products_from_forms: int
    file_failures: int
    code_bytes_read: int
    pinned_bytes: int
    given_back_bytes: int


class _CResidencyStats(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", ctypes.c_uint64),
        *((f.name, ctypes.c_uint64) for f in fields(ResidencyStats)),
    )


_U64 = ctypes.c_uint64
_INT = ctypes.c_int

_RESIDENCY_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "set_budget": (None, (_U64,)),
    "trim": (None, (_U64, ctypes.POINTER(_U64))),
    "set_cache_dir": (_INT, (ctypes.c_char_p,)),
    "set_clean_budget": (None, (_U64,)),
    "stats": (_INT, (ctypes.POINTER(_CResidencyStats),)),
}


class ResidencyManager:
    """Where a copy of the core holds the weights that its products read: the codec's own copy, or
    that of `loaded`.

    Each shared library has a manager of its own. All calls may be made from any thread, also during
    products.
    """

    def __init__(self, loaded: ctypes.CDLL | None = None) -> None:
        self._library = loaded or library()
        declare(
            self._library,
            _RESIDENCY_SIGNATURES,
            "build the library anew from the sources of this package",
        )

    def set_budget(self, n_bytes: int) -> None:
        """Anonymous memory that expanded forms may take: 0 none, UNLIMITED all of them."""
        self._library.tinyqmoe_set_budget(n_bytes)

    def trim(self, n_bytes: int) -> int:
        """Frees expanded forms of at least `n_bytes`, if there are, and lowers the budget; returns
        the bytes freed."""
        freed = _U64()
        self._library.tinyqmoe_trim(n_bytes, ctypes.byref(freed))
        return freed.value

    def set_cache_dir(self, path: Path | None) -> None:
        """The folder of expanded forms in files, which must exist; None: no files."""
        status = self._library.tinyqmoe_set_cache_dir(None if path is None else os.fsencode(path))
        check(status, f"cache directory {path}")

    def set_clean_budget(self, n_bytes: int) -> None:
        """Memory that pages of mapped weights may take; UNLIMITED: the system decides."""
        self._library.tinyqmoe_set_clean_budget(n_bytes)

    def stats(self) -> ResidencyStats:
        """What is held now and was done since the start."""
        raw = _CResidencyStats(struct_bytes=ctypes.sizeof(_CResidencyStats))
        check(self._library.tinyqmoe_stats(ctypes.byref(raw)), "residency statistics")
        return ResidencyStats(**{f.name: getattr(raw, f.name) for f in fields(ResidencyStats)})

"""Sessions of the C++ core through ctypes: exporter/native/include/tinyqmoe/session.h says what
each call does."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.codec.native import REBUILD, declare, library
from exporter.errors import BundleError, UsageError

_ERROR_BYTES = 1000
_P, _U32, _U64, _INT = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int


class _COptions(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", _U64),
        ("bundle", ctypes.c_char_p),
        ("context", _U32),
        ("n_threads", _U32),
        ("batch_tokens", _U32),
        ("kv_type", _INT),
        ("isa", _INT),
    )


@dataclass(frozen=True)
class SessionState:
    """State of a session, with the fields of session.h."""

    n_positions: int
    context: int
    vocab: int
    n_threads: int
    mapped_bytes: int
    kv_cache_bytes: int
    buffer_bytes: int
    n_fed: int
    feed_ns: int


class _CState(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", _U64),
        *((f.name, _U32) for f in fields(SessionState)[:4]),
        *((f.name, _U64) for f in fields(SessionState)[4:]),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "session_open": (
        _INT,
        (ctypes.POINTER(_COptions), ctypes.POINTER(_P), ctypes.c_char_p, _U64),
    ),
    "session_feed": (_INT, (_P, _P, _U32, _P)),
    "session_trim": (_INT, (_P, _U32)),
    "session_stats": (_INT, (_P, ctypes.POINTER(_CState))),
    "session_close": (None, (_P,)),
}


class Session:
    """An open bundle with its KV cache and threads.

    `batch_tokens` are computed at once at most. Raises BundleError, MissingComponentError,
    MemoryError.
    """

    def __init__(self, bundle: Path, threads: int, batch_tokens: int) -> None:
        self._library = library()
        declare(self._library, _SIGNATURES, REBUILD)
        options = _COptions(
            struct_bytes=ctypes.sizeof(_COptions),
            bundle=os.fsencode(bundle),
            n_threads=threads,
            batch_tokens=batch_tokens,
        )
        handle, said = _P(), ctypes.create_string_buffer(_ERROR_BYTES)
        status = self._library.tinyqmoe_session_open(
            ctypes.byref(options), ctypes.byref(handle), said, _ERROR_BYTES
        )
        if status != 0:
            self._refuse(status, f"{bundle} does not open: {said.value.decode(errors='replace')}")
        self._handle = handle
        self.close = weakref.finalize(self, self._library.tinyqmoe_session_close, handle)

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens; returns the logits after the last of them, float32 [V].

        Raises UsageError for a token outside the vocabulary, BundleError for weights that overflow,
        MemoryError.
        """
        state = self.state()
        if wrong := [token for token in tokens if not 0 <= token < state.vocab]:
            what = f"token {wrong[0]} is outside the vocabulary of {state.vocab}"
            raise UsageError(what, hint=f"give ids from 0 to {state.vocab - 1}")
        ids, logits = np.array(tokens, np.int32), np.empty(state.vocab, np.float32)
        status = self._library.tinyqmoe_session_feed(
            self._handle, ids.ctypes.data, ids.size, logits.ctypes.data
        )
        if status != 0:
            self._refuse(status, f"{ids.size} tokens at position {state.n_positions} failed")
        return logits

    def trim(self, n_positions: int) -> None:
        """Forgets all positions from `n_positions` on. Raises ValueError if it holds fewer."""
        if self._library.tinyqmoe_session_trim(self._handle, n_positions) != 0:
            held = self.state().n_positions
            raise ValueError(f"position {n_positions} of a session that holds {held}")

    def state(self) -> SessionState:
        """State as it is now."""
        raw = _CState(struct_bytes=ctypes.sizeof(_CState))
        self._library.tinyqmoe_session_stats(self._handle, ctypes.byref(raw))
        return SessionState(**{f.name: getattr(raw, f.name) for f in fields(SessionState)})

    def _refuse(self, status: int, what: str) -> None:
        """Raises what a status that is no success means."""
        name = self._library.tinyqmoe_status_name(status).decode()
        if name == "OUT_OF_MEMORY":
            raise MemoryError(what)
        raise BundleError(f"{what} ({name})", hint="copy the bundle again, or export again")

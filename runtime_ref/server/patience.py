"""The HTTP protocol of uvicorn, which waits for the headers of a request for a limited time."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime_ref.server.gate import CLIENT_SECONDS


class PatientProtocol(H11Protocol):
    """A connection that is closed when the headers of a request are not whole after a time.

    uvicorn itself limits only the wait for the first byte of a further request. The body and the
    answer are limited by the gate.
    """

    seconds = CLIENT_SECONDS
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait: a client may also send nothing at all."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Passes bytes on, and ends the wait when they make the headers whole."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_wait()
        elif self._waiting is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait with the connection."""
        self._end_wait()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.seconds, self.transport.close)

    def _end_wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

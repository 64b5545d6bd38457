"""Limits of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """Limits of a server.

    They are of requests that wait, of bytes of a request, of tokens and of seconds of an answer.
    """

    waiting: int = 8
    request_bytes: int = 1_000_000
    new_tokens: int = 1024
    seconds: float = 300.0

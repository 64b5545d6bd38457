"""Calls of a runner over a socket: a header and token ids int32 go, logits float32 [V] come."""

from __future__ import annotations

import socket
import struct

HEADER = struct.Struct("<II")  # number of tokens, position of the first


def receive(connection: socket.socket, n_bytes: int) -> bytes:
    """Exactly so many bytes. Raises ConnectionError where the other side has gone."""
    parts = bytearray()
    while len(parts) < n_bytes:
        part = connection.recv(n_bytes - len(parts))
        if not part:
            raise ConnectionError("the other side has gone")
        parts += part
    return bytes(parts)

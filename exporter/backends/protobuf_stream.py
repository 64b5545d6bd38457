"""Writes protobuf messages that are larger than memory should be: a message is the concatenation of its fields.

A message is a list of pieces: bytes that protobuf serialized, and files whose content goes in as it is. The result is
what protobuf itself would write, as long as the fields are given in the order of their numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

Piece = bytes | Path

LENGTH_DELIMITED = 2  # the wire type of messages, bytes, strings and packed numbers
COPY_BYTES = 1 << 20


def varint(value: int) -> bytes:
    """An unsigned integer in groups of seven bits, lowest first; the top bit of a byte says that another follows."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def length(pieces: Sequence[Piece]) -> int:
    """Bytes of all pieces."""
    return sum(len(p) if isinstance(p, bytes) else p.stat().st_size for p in pieces)


def field(number: int, pieces: Sequence[Piece]) -> list[Piece]:
    """A length-delimited field: its tag, the length of `pieces`, and `pieces`."""
    return [varint(number << 3 | LENGTH_DELIMITED) + varint(length(pieces)), *pieces]


def write(pieces: Sequence[Piece], path: Path) -> dict[Path, int]:
    """Writes the pieces one after another; returns the offset of each file."""
    offsets = {}
    with path.open("wb") as out:
        for piece in pieces:
            if isinstance(piece, bytes):
                out.write(piece)
                continue
            offsets[piece] = out.tell()
            with piece.open("rb") as source:
                shutil.copyfileobj(source, out, COPY_BYTES)
    return offsets

"""Writes protobuf messages that are larger than memory should be: a message is the concatenation of
its fields.

A message is a list of fragments: bytes that protobuf serialized, and files whose content goes in as
it is. The result is what protobuf itself would write, as long as the fields are given in the order
of their numbers. `shortened` is for reading them: the same message without most of the bytes that
make it large.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Fragment = bytes | Path

# The wire types; 2 is messages, bytes, strings, packed numbers.
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = (0, 1, 2, 5)
COPY_BYTES = 1 << 20
KEPT_BYTES = 64  # of a shortened value, a multiple of the size of every packed number of fixed size


def varint(value: int) -> bytes:
    """An unsigned integer in groups of seven bits, lowest first; the top bit of a byte says that
    another follows."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def length(fragments: Sequence[Fragment]) -> int:
    """Bytes of all fragments."""
    return sum(len(p) if isinstance(p, bytes) else p.stat().st_size for p in fragments)


def field(number: int, fragments: Sequence[Fragment]) -> list[Fragment]:
    """A length-delimited field: its tag, the length of `fragments`, and `fragments`."""
    return [varint(number << 3 | LENGTH_DELIMITED) + varint(length(fragments)), *fragments]


def write(fragments: Sequence[Fragment], path: Path) -> dict[Path, int]:
    """Writes the fragments one after another; returns the offset of each file."""
    offsets = {}
    with path.open("wb") as out:
        for fragment in fragments:
            if isinstance(fragment, bytes):
                out.write(fragment)
                continue
            offsets[fragment] = out.tell()
            with fragment.open("rb") as source:
                shutil.copyfileobj(source, out, COPY_BYTES)
    return offsets


@dataclass(frozen=True)
class _Field:
    """A field of a message: where it starts, and where its value begins and ends."""

    number: int
    wire_type: int
    start: int
    begin: int
    end: int


def shortened(path: Path, to: Sequence[int]) -> bytes:
    """The message in a file, with stand-ins for what is long in the messages that the field numbers
    `to` lead to.

    A stand-in is the first bytes of a value, KEPT_BYTES to twice that, and as many modulo
    KEPT_BYTES: packed numbers that end inside a number still do. All other bytes are those of the
    file, but for lengths of messages around them. Only tags and lengths of what is cut are read.
    Raises ValueError unless every field ends where its message may.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return b"".join(_shortened(data, to, 0, len(data)))


def _shortened(data: mmap.mmap, to: Sequence[int], begin: int, end: int) -> list[bytes]:
    out = []
    for f in _fields(data, begin, end):
        if f.wire_type != LENGTH_DELIMITED or (to and f.number != to[0]):
            out.append(data[f.start : f.end])
            continue
        value = b"".join(_shortened(data, to[1:], f.begin, f.end)) if to else _stand_in(data, f)
        out += [varint(f.number << 3 | LENGTH_DELIMITED), varint(len(value)), value]
    return out


def _stand_in(data: mmap.mmap, f: _Field) -> bytes:
    n = f.end - f.begin
    return data[f.begin : f.begin + min(n, KEPT_BYTES + n % KEPT_BYTES)]


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[_Field]:
    """The fields of the message at data[begin:end]. Raises ValueError if that is no message."""
    while begin < end:
        key, value = _read_varint(data, begin, end)
        wire_type, at = key & 7, value
        if wire_type == VARINT:
            _, at = _read_varint(data, value, end)
        elif wire_type == LENGTH_DELIMITED:
            n, value = _read_varint(data, value, end)
            at = value + n
        elif wire_type in (FIXED64, FIXED32):
            at += 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"the field at byte {begin} has wire type {wire_type}")
        if at > end:
            raise ValueError(f"the field at byte {begin} ends at {at}, its message at {end}")
        yield _Field(key >> 3, wire_type, begin, value, at)
        begin = at


def _read_varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for i in range(min(10, end - at)):  # protobuf's longest
        value |= (data[at + i] & 0x7F) << 7 * i
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise ValueError(f"the number at byte {at} does not end")

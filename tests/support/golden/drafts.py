"""Good blobs, each with one change, and all CRCs right but the one that is tested."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from exporter.codec.format import Header, packed_bytes
from tests.support.golden.blobs import INT4, INT8, TERNARY, Case
from tests.support.golden.slow_encoder import Parsed, pack_fields, parse_row, row_bits


@dataclass
class Draft:
    """A good blob to be spoiled."""

    blob: bytearray
    header: Header = field(init=False)

    def __post_init__(self) -> None:
        self.header = Header.parse(self.blob)

    def put(self, offset: int, form: str, value: int) -> None:
        """Overwrites one little-endian number; form: a `struct` character."""
        struct.pack_into("<" + form, self.blob, offset, value)

    def change_bits(self, change: Callable[[list[int]], list[int]]) -> None:
        """Changes the bits of the dictionary section."""
        end = 64 + self.header.layout.dictionary_bytes
        bits = np.unpackbits(np.frombuffer(self.blob[64:end], np.uint8), bitorder="little")
        self.blob[64:end] = np.packbits(change(bits.tolist()), bitorder="little").tobytes()

    def index(self, at: int = 0) -> int:
        """Offset of byte `at` of the row index."""
        return self.header.layout.index_offset + at

    def payload(self, at: int = 0) -> int:
        """Offset of byte `at` of the payload."""
        return self.header.layout.payload_offset + at

    def seal(self) -> bytes:
        """The bytes, with all CRCs right. Sections are where the good blob had them."""
        layout = self.header.layout
        self.put(48, "I", zlib.crc32(self.blob[64 : layout.payload_offset]))
        self.put(
            52, "I", zlib.crc32(self.blob[self.payload() : self.payload(layout.payload_bytes)])
        )
        return self.seal_header()

    def seal_header(self) -> bytes:
        """The bytes, with only the header's CRC right."""
        self.put(60, "I", zlib.crc32(self.blob[:60]))
        return bytes(self.blob)


SMALL = {
    "raw": Case("raw", (3, 43), TERNARY, "zeros50", "raw2"),
    "raw4": Case("raw4", (3, 11), INT4, "bell", "raw4"),
    "raw8": Case("raw8", (3, 11), INT8, "bell", "raw8"),
    "base3": Case("base3", (3, 43), TERNARY, "zeros50", "base3"),
    "lzw": Case("lzw", (40, 43), TERNARY, "zeros50", "lzw", 6, None, 63),
    "lzw_cap6": Case("lzw_cap6", (4, 43), TERNARY, "zeros95", "lzw", 6),
    "lzw_even": Case("lzw_even", (3, 43), (0, 16), "flat", "lzw", 3, (2, 11), 34),
    "lzw_core": Case("lzw_core", (8, 43), INT8, "bell", "lzw", 3, (118, 19), 58),
}


def draft(name: str) -> Draft:
    """A fresh copy of a good blob."""
    return Draft(bytearray(SMALL[name].blob()))


def cut(n_bytes: int) -> bytes:
    """The first bytes only; counted from the end where negative."""
    return bytes(draft("lzw").blob[:n_bytes])


def unsealed(base: str, offset: int, form: str, value: int) -> bytes:
    """One number of the header changed, the header's CRC as it was."""
    d = draft(base)
    d.put(offset, form, value)
    return bytes(d.blob)


def number(base: str, *changes: tuple[int, str, int]) -> bytes:
    """Numbers of the header changed."""
    d = draft(base)
    for offset, form, value in changes:
        d.put(offset, form, value)
    return d.seal()


def huge(base: str) -> bytes:
    """A header that is right in itself and claims 2^31 - 1 rows."""
    d = draft(base)
    rows = Header.MAX_ROWS
    if base == "raw":
        header = replace(d.header, rows=rows, payload_bytes=rows * packed_bytes(43, 2))
    else:
        header = replace(d.header, rows=rows, payload_bytes=2**32 - 1, index_bytes=2**31)
    return header.pack() + bytes(d.blob[64:])


def crc_off(base: str, offset: int) -> bytes:
    """One of the CRCs changed, the header's own right."""
    d = draft(base)
    d.blob[offset] ^= 1
    return d.seal_header()


def bits(change: Callable[[list[int]], list[int]], base: str = "lzw") -> bytes:
    """The dictionary's bits changed."""
    d = draft(base)
    d.change_bits(change)
    return d.seal()


def flip(*at: int) -> Callable[[list[int]], list[int]]:
    """Some bits turned over; counted from the end where negative."""

    def change(bits: list[int]) -> list[int]:
        for place in at:
            bits[place] ^= 1
        return bits

    return change


def lengths(base: str, change: Callable[[list[int]], list[int]]) -> bytes:
    """The lengths of the codewords changed."""
    d = draft(base)
    start = 64 + packed_bytes(d.header.n_nodes, 1)
    end = 64 + d.header.layout.dictionary_bytes
    nibbles = [half for byte in d.blob[start:end] for half in (byte & 15, byte >> 4)]
    d.blob[start:end] = pack_fields(change(nibbles), 4)
    return d.seal()


def swap(one: int, other: int) -> Callable[[list[int]], list[int]]:
    """The first length `one` becomes `other`."""

    def change(nibbles: list[int]) -> list[int]:
        nibbles[nibbles.index(one)] = other
        return nibbles

    return change


def tile_head(tile_at: int, by: int) -> bytes:
    """The head of a tile, which lies at `tile_at` in the index, changed."""
    d = draft("lzw")
    at = d.index(tile_at)
    d.put(at, "I", int.from_bytes(d.blob[at : at + 4], "little") + by)
    return d.seal()


def second_tile() -> int:
    """Where the second tile of the index begins."""
    d = draft("lzw")
    return 4 + 4 * d.blob[d.index(3)]


def moved_byte() -> bytes:
    """The first byte of a row moved to the row before it."""
    d = draft("lzw")
    width = d.blob[d.index(3)]
    deltas = int.from_bytes(d.blob[d.index(4) : d.index(4 + 4 * width)], "little")
    sizes = [deltas >> (row * width) & ((1 << width) - 1) for row in range(32)]
    row = next(r for r in range(31) if sizes[r] + 1 < 1 << width and sizes[r + 1] > 0)
    deltas += (1 << row * width) - (1 << (row + 1) * width)
    d.blob[d.index(4) : d.index(4 + 4 * width)] = deltas.to_bytes(4 * width, "little")
    return d.seal()


def byte_at(base: str, where: Callable[[Draft], int], value: int) -> bytes:
    """Bits set in one byte."""
    d = draft(base)
    d.blob[where(d)] |= value
    return d.seal()


def other_columns(base: str, by: int) -> bytes:
    """Rows whose header claims other columns."""
    d = draft(base)
    d.put(20, "I", d.header.cols + by)
    return d.seal()


def bad_escape() -> bytes:
    """A level after an escape that lies past the alphabet."""
    d = draft("lzw_core")
    dictionary, row = SMALL["lzw_core"].dictionary(), SMALL["lzw_core"].levels().tolist()[0]
    parsed = parse_row(row, dictionary)
    first = next(i for i, level in enumerate(parsed.escaped) if level is not None)
    before = Parsed(parsed.entries[: first + 1], parsed.escaped[: first + 1])
    end = len(row_bits(before, dictionary))
    for bit in range(end - 8, end):
        d.blob[d.payload(bit // 8)] |= 1 << bit % 8
    return d.seal()


def unused_bits() -> bytes:
    """The last bit of the first row that does not fill its last byte."""
    d, case = draft("lzw"), SMALL["lzw"]
    end = 0
    for row in case.levels().tolist():
        n_bits = len(row_bits(parse_row(row, case.dictionary()), case.dictionary()))
        end += packed_bytes(n_bits, 1)
        if n_bits % 8:
            break
    d.blob[d.payload(end - 1)] |= 0x80
    return d.seal()


def after_escape() -> bytes:
    """A tree of which an escape is an inner node: the root's first child and its escape change
    places."""
    d = draft("lzw_core")
    n_children = d.header.n_core + 1
    first = [1, *[0] * d.header.n_core, 1, *[0] * n_children]
    d.change_bits(lambda bits: [*first, *bits[len(first) :]])
    return d.seal()


def longest_unused(nibbles: list[int]) -> list[int]:
    """One of the longest codewords gone."""
    nibbles[nibbles.index(max(nibbles))] = 0
    return nibbles


def shortest_of_tile_0() -> int:
    """Bytes of its shortest row."""
    d = draft("lzw")
    return int.from_bytes(d.blob[d.index() : d.index(3)], "little")


def width_of_tile_0() -> int:
    """Bits of its deltas."""
    d = draft("lzw")
    return d.blob[d.index(3)]


def last_of_index(d: Draft) -> int:
    """The last byte of the row index."""
    return d.index(d.header.index_bytes - 1)


def after_payload(d: Draft) -> int:
    """The first byte of the tail."""
    return d.payload(d.header.payload_bytes)


def set_byte(base: str, begin: int, end: int, value: int) -> bytes:
    """Bytes of the payload set."""
    d = draft(base)
    d.blob[d.payload(begin) : d.payload(end)] = bytes([value] * (end - begin))
    return d.seal()

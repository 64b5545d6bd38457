"""Writes tests/golden anew: `python tests/support/make_golden.py [FOLDER]`.

The README there describes the files.

Deterministic to the byte on every machine: own random numbers, and a slow encoder that shares no
code with the native one.
"""

from __future__ import annotations

import functools
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exporter.codec.dictionary import Dictionary
from exporter.codec.format import (
    CodecId,
    Header,
    new_blob,
    pack_index,
    packed_bytes,
    seal,
    write_tables,
)
from exporter.codec.growth import grow, with_codewords

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
FORMAT_MD = ROOT / "exporter" / "codec" / "FORMAT.md"
STATUS_NUMBERS = {
    "TRUNCATED": 1,
    "BAD_MAGIC": 2,
    "BAD_VERSION": 3,
    "BAD_HEADER_CRC": 4,
    "BAD_RESERVED": 5,
    "BAD_CODEC": 6,
    "BAD_ALPHABET": 7,
    "BAD_SHAPE": 8,
    "BAD_ENTRIES": 9,
    "BAD_SECTION": 10,
    "BAD_TABLES_CRC": 11,
    "BAD_DICTIONARY": 12,
    "BAD_INDEX": 13,
    "BAD_PADDING": 14,
    "BAD_PAYLOAD_CRC": 15,
    "BAD_CODE": 16,
    "BAD_ROW_LENGTH": 17,
    "BAD_LEVEL": 18,
}

# ---- Numbers -------------------------------------------------------------------------------------


def uniform(seed: int, n: int) -> npt.NDArray[np.float64]:
    """`n` numbers in [0, 1): splitmix64, which no library version changes."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def bell(seed: int, n: int) -> npt.NDArray[np.float64]:
    """`n` numbers of mean 0 and deviation 1: sums of twelve uniform ones, without a library's
    logarithm."""
    total = np.full(n, -6.0)
    for i in range(12):
        total = total + uniform(1000 * seed + i, n)
    return total


def draw_levels(
    seed: int, shape: tuple[int, int], low: int, n_levels: int, kind: str
) -> npt.NDArray[np.int8]:
    """Levels int8 [rows, cols]. kind: `zerosNN` ternary-like with NN % zeros, `flat`, `bell`, or
    `same`."""
    n = shape[0] * shape[1]
    if kind.startswith("zeros"):
        u = uniform(seed, 2 * n)
        others = np.array([v for v in range(low, low + n_levels) if v != 0])
        drawn = np.where(
            u[:n] < int(kind[5:]) / 100, 0, others[(u[n:] * len(others)).astype(np.int64)]
        )
    elif kind == "flat":
        drawn = low + (uniform(seed, n) * n_levels).astype(np.int64)
    elif kind == "bell":
        middle = low + (n_levels - 1) / 2
        drawn = np.clip(np.rint(bell(seed, n) * n_levels / 8 + middle), low, low + n_levels - 1)
    else:
        drawn = np.full(n, max(low, 0))
    return drawn.astype(np.int8).reshape(shape)


# ---- A slow encoder ------------------------------------------------------------------------------


def pack_fields(fields: list[int], bits: int) -> bytes:
    """Fields of `bits` bits, the first in the lowest bits."""
    joined = sum(value << (bits * i) for i, value in enumerate(fields))
    return joined.to_bytes(packed_bytes(len(fields), bits), "little")


def as_bits(value: int, n: int) -> list[int]:
    """The lowest `n` bits of a number, the lowest first."""
    return [value >> bit & 1 for bit in range(n)]


@dataclass(frozen=True)
class Parsed:
    """A row as entries of the dictionary, and for each the level that follows an escape."""

    entries: list[int]
    escaped: list[int | None]


@functools.lru_cache(maxsize=8)
def entries_by_phrase(dictionary: Dictionary) -> dict[tuple[tuple[int, ...], bool], int]:
    """The entry of every phrase, by its levels and whether an escape ends it."""
    return {(p.levels, p.is_escape): entry for entry, p in enumerate(dictionary.phrases())}


@functools.lru_cache(maxsize=8)
def codes_by_entry(dictionary: Dictionary) -> dict[int, tuple[int, int]]:
    """The codeword of every entry that is used: its bits and its value."""
    return {entry: code for code, entry in dictionary.codewords().items()}


def parse_row(row: list[int], dictionary: Dictionary) -> Parsed:
    """The phrases of one row; the last one is filled up with zeros or the core's lowest level."""
    first = dictionary.level_min + dictionary.core_first
    core = range(first, first + dictionary.n_core)
    entry_of = entries_by_phrase(dictionary)
    fill = 0 if 0 in core else first
    parsed, phrase, left = Parsed([], []), (), [*row]
    while left or phrase:
        level = left.pop(0) if left else fill
        escaped = None if level in core else level
        phrase = phrase if escaped is not None else (*phrase, level)
        entry = entry_of.get((phrase, escaped is not None))
        if entry is not None:
            parsed.entries.append(entry)
            parsed.escaped.append(escaped)
            phrase = ()
    return parsed


def row_bits(parsed: Parsed, dictionary: Dictionary) -> list[int]:
    """The bits of a row: codewords from their highest bit, levels from their lowest."""
    code_of = codes_by_entry(dictionary)
    bits: list[int] = []
    for entry, escaped in zip(parsed.entries, parsed.escaped, strict=True):
        n, value = code_of[entry]
        bits.extend(reversed(as_bits(value, n)))
        if escaped is not None:
            bits.extend(as_bits(escaped - dictionary.level_min, 8))
    return bits


def count_entries(levels: npt.NDArray[np.int8], tree: Dictionary) -> npt.NDArray[np.int64]:
    """Number of times each entry occurs in a parse, [n_entries]."""
    entries = [entry for row in levels.tolist() for entry in parse_row(row, tree).entries]
    return np.bincount(entries, minlength=tree.n_entries)


def slow_lzw(levels: npt.NDArray[np.int8], dictionary: Dictionary) -> bytes:
    """A blob of codec `lzw`; levels: int8 [rows, cols]."""
    d = dictionary
    rows = [
        np.packbits(row_bits(parse_row(row, d), d), bitorder="little").tobytes()
        for row in levels.tolist()
    ]
    index = pack_index(np.array([len(row) for row in rows]))
    header = Header(
        *(CodecId.LZW, 12, d.cap, d.level_min, d.n_levels, *levels.shape, d.n_entries),
        payload_bytes=sum(map(len, rows)),
        core_first=d.core_first,
        n_core=d.n_core,
        index_bytes=len(index),
    )
    blob, payload = new_blob(header)
    write_tables(blob, header, d.to_bytes(), index)
    payload[:] = np.frombuffer(b"".join(rows), np.uint8)
    seal(blob, header)
    return blob.tobytes()


def slow_raw(levels: npt.NDArray[np.int8], low: int, n_levels: int, code_bits: int) -> bytes:
    """A blob of codec `raw`; levels: int8 [rows, cols]."""
    packed = [pack_fields([level - low for level in row], code_bits) for row in levels.tolist()]
    return packed_blob(CodecId.RAW, code_bits, 0, (low, n_levels), levels.shape, b"".join(packed))


def slow_base3(levels: npt.NDArray[np.int8], low: int) -> bytes:
    """A blob of codec `base3`; levels: int8 [rows, cols]."""
    packed = bytearray()
    for row in levels.tolist():
        for begin in range(0, len(row), 160):
            block = [level - low for level in row[begin : begin + 160]]
            n = -(-len(block) // 5)
            digits = [*block, *[0] * (5 * n - len(block))]
            for i in range(n):
                code = int("".join(map(str, digits[i::n])), 3)
                packed.append(-(-code * 256 // 243))
    return packed_blob(CodecId.BASE3, 8, 5, (low, 3), levels.shape, bytes(packed))


def packed_blob(
    codec: CodecId,
    code_bits: int,
    cap: int,
    alphabet: tuple[int, int],
    shape: tuple[int, ...],
    packed: bytes,
) -> bytes:
    """A blob without tables."""
    rows, cols = shape
    header = Header(codec, code_bits, cap, *alphabet, rows, cols, 0, len(packed))
    blob, payload = new_blob(header)
    payload[:] = np.frombuffer(packed, np.uint8)
    seal(blob, header)
    return blob.tobytes()


# ---- Blobs that decode ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One line of decode.tsv."""

    name: str
    shape: tuple[int, int]
    alphabet: tuple[int, int]  # level_min, n_levels
    kind: str
    codec: str  # raw2, raw4, raw8, base3 or lzw
    cap: int = 0  # lzw only, as the next two
    core: tuple[int, int] | None = None  # first offset and number of levels; None: all
    max_entries: int = 256
    followed_by: bytes = b""

    def levels(self) -> npt.NDArray[np.int8]:
        """Levels int8 [rows, cols], seeded by the name."""
        return draw_levels(
            zlib.crc32(self.name.encode()) & 0xFFFF, self.shape, *self.alphabet, self.kind
        )

    def dictionary(self) -> Dictionary:
        """The dictionary of an lzw case, with codewords for the phrases that occur."""
        levels, (low, n_levels) = self.levels(), self.alphabet
        counts = np.bincount(levels.ravel().astype(np.int64) - low, minlength=n_levels)
        core = self.core or (0, n_levels)
        tree = grow(counts, low, core, self.cap, self.max_entries).dictionary
        return with_codewords(tree, count_entries(levels, tree))

    def blob(self) -> bytes:
        """The bytes of the file."""
        levels = self.levels()
        if self.codec == "lzw":
            return slow_lzw(levels, self.dictionary()) + self.followed_by
        if self.codec == "base3":
            return slow_base3(levels, self.alphabet[0]) + self.followed_by
        return slow_raw(levels, *self.alphabet, int(self.codec[3:])) + self.followed_by

    @property
    def fields(self) -> tuple[str, int, int]:
        """Codec, code_bits and cap, as decode.tsv and the header have them."""
        if self.codec == "lzw":
            return "lzw", 12, self.cap
        return ("base3", 8, 5) if self.codec == "base3" else ("raw", int(self.codec[3:]), 0)


TERNARY, INT8, INT4 = (-1, 3), (-127, 255), (-7, 15)
EXAMPLE = Case("example_lzw_3x12", (3, 12), INT4, "bell", "lzw", 3, (5, 5), 16)
CASES = (
    EXAMPLE,
    Case("one_level_raw2", (1, 1), TERNARY, "same", "raw2"),
    Case("one_level_base3", (1, 1), TERNARY, "same", "base3"),
    Case("one_level_lzw", (1, 1), TERNARY, "same", "lzw", 3),
    Case("one_level_lzw_cap14", (1, 1), (0, 2), "same", "lzw", 14),
    Case("followed_by_other_bytes_raw2", (3, 10), TERNARY, "zeros50", "raw2", followed_by=b"more"),
    Case(
        *("followed_by_other_bytes_lzw", (3, 10), TERNARY, "zeros50", "lzw", 6),
        followed_by=b"other bytes",
    ),
    Case("one_column_lzw", (100, 1), TERNARY, "zeros33", "lzw", 6),
    Case("one_column_base3", (100, 1), TERNARY, "zeros33", "base3"),
    Case("one_long_row_lzw", (1, 65535), TERNARY, "zeros90", "lzw", 14),
    Case("one_long_row_base3", (1, 65535), TERNARY, "zeros33", "base3"),
    Case("ternary33_raw2_7x43", (7, 43), TERNARY, "zeros33", "raw2"),
    Case("ternary33_base3_7x43", (7, 43), TERNARY, "zeros33", "base3"),
    Case("ternary33_base3_33x172", (33, 172), TERNARY, "zeros33", "base3"),
    Case("ternary33_base3_5x320", (5, 320), TERNARY, "zeros33", "base3"),
    Case("ternary33_lzw_7x43", (7, 43), TERNARY, "zeros33", "lzw", 6),
    Case("ternary50_lzw_33x172", (33, 172), TERNARY, "zeros50", "lzw", 6),
    Case("ternary70_lzw_65x256", (65, 256), TERNARY, "zeros70", "lzw", 6),
    Case("ternary80_raw2_65x256", (65, 256), TERNARY, "zeros80", "raw2"),
    Case("ternary80_lzw_33x172", (33, 172), TERNARY, "zeros80", "lzw", 14),
    Case("ternary80_lzw_cap3_65x256", (65, 256), TERNARY, "zeros80", "lzw", 3, None, 27),
    Case("ternary90_lzw_65x256", (65, 256), TERNARY, "zeros90", "lzw", 14),
    Case("ternary95_lzw_129x100", (129, 100), TERNARY, "zeros95", "lzw", 14),
    Case("zeros_lzw_overhang_32x33", (32, 33), TERNARY, "same", "lzw", 14),
    Case("zeros_lzw_overhang_5x17", (5, 17), TERNARY, "same", "lzw", 6),
    Case("binary_raw2_9x30", (9, 30), (0, 2), "flat", "raw2"),
    Case("binary_lzw_9x30", (9, 30), (0, 2), "flat", "lzw", 6),
    Case("binary_lzw_40x75", (40, 75), (0, 2), "zeros80", "lzw", 14),
    Case("no_zero_lzw_6x50", (6, 50), (1, 3), "flat", "lzw", 3),
    Case("no_zero_base3_6x50", (6, 50), (1, 3), "flat", "base3"),
    Case("lowest_raw2_5x9", (5, 9), (-128, 3), "flat", "raw2"),
    Case("lowest_base3_5x9", (5, 9), (-128, 3), "flat", "base3"),
    Case("highest_lzw_5x9", (5, 9), (124, 4), "flat", "lzw", 3),
    Case("int4_raw4_33x171", (33, 171), INT4, "bell", "raw4"),
    Case("int4_lzw_33x171", (33, 171), INT4, "bell", "lzw", 3),
    Case("unsigned4_raw4_7x20", (7, 20), (0, 16), "flat", "raw4"),
    Case("int8_raw8_33x172", (33, 172), INT8, "bell", "raw8"),
    Case("int8_lzw_7x43", (7, 43), INT8, "bell", "lzw", 3, (80, 95)),
    Case("int8_lzw_33x172", (33, 172), INT8, "bell", "lzw", 3),
    Case("int8_lzw_escapes_33x172", (33, 172), INT8, "bell", "lzw", 6, (122, 11), 64),
    Case("int8_lzw_one_level_core_4x90", (4, 90), INT8, "zeros95", "lzw", 14, (127, 1)),
    Case("all256_raw8_16x64", (16, 64), (-128, 256), "flat", "raw8"),
    Case("all256_lzw_16x64", (16, 64), (-128, 256), "flat", "lzw", 3),
)


def crc(array: npt.NDArray[np.generic]) -> str:
    """CRC-32 of the array's bytes in row-major order."""
    return f"{zlib.crc32(np.ascontiguousarray(array)):08x}"


def write_table(path: Path, columns: str, lines: list[tuple[object, ...]]) -> None:
    """A .tsv as the README describes."""
    text = "\n".join(
        "\t".join(str(value) for value in line) for line in [tuple(columns.split()), *lines]
    )
    path.write_bytes((text + "\n").encode("ascii"))


def make_decode(out: Path) -> None:
    """decode.tsv and decode/."""
    (out / "decode").mkdir(parents=True)
    lines: list[tuple[object, ...]] = []
    for case in CASES:
        name = f"decode/{case.name}.tqlz"
        (out / name).write_bytes(case.blob())
        lines.append((name, *case.shape, *case.fields, *case.alphabet, crc(case.levels())))
    write_table(
        out / "decode.tsv",
        "file rows cols codec code_bits cap level_min n_levels levels_crc32",
        lines,
    )


# ---- Blobs that must be rejected -----------------------------------------------------------------


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


def core_errors() -> list[tuple[str, str, bytes]]:
    """What the core, entries and sizes of an lzw header can have wrong."""
    index_bytes = draft("lzw").header.index_bytes
    return [
        ("BAD_ALPHABET", "lzw with n_core 0", number("lzw", (14, "H", 0))),
        ("BAD_ALPHABET", "n_core 4 of 3 levels", number("lzw", (14, "H", 4))),
        ("BAD_ALPHABET", "a core past the alphabet", number("lzw_core", (28, "H", 237))),
        ("BAD_ALPHABET", "raw with n_core 3", number("raw", (14, "H", 3))),
        ("BAD_ALPHABET", "base3 with core_first 1", number("base3", (28, "H", 1))),
        ("BAD_ALPHABET", "base3 with n_levels 2", number("base3", (12, "H", 2))),
        ("BAD_ENTRIES", "raw with n_entries 3", number("raw", (24, "I", 3))),
        ("BAD_ENTRIES", "base3 with n_entries 3", number("base3", (24, "I", 3))),
        ("BAD_ENTRIES", "n_entries 1", number("lzw", (24, "I", 1))),
        ("BAD_ENTRIES", "n_entries 62 of 3 levels", number("lzw", (24, "I", 62))),
        ("BAD_ENTRIES", "n_entries 257", number("lzw", (24, "I", 257))),
        ("BAD_SECTION", "raw with an index", number("raw", (56, "I", 4))),
        ("BAD_SECTION", "lzw with no index", number("lzw", (56, "I", 0))),
        ("BAD_SECTION", "6 bytes more of index", number("lzw", (56, "I", index_bytes + 6))),
        ("BAD_SECTION", "fewer payload bytes than rows", number("lzw", (40, "Q", 39))),
    ]


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


Spoiled = tuple[str, str, str, bytes]  # status, stage, what was changed, the bytes


def header_errors() -> list[Spoiled]:
    """Checks 1 to 10 of FORMAT.md section 6."""
    raw_bytes = 3 * packed_bytes(43, 2)
    changes: list[tuple[str, str, bytes]] = [
        ("TRUNCATED", "63 bytes", cut(63)),
        ("BAD_MAGIC", "TQLY", number("raw", (3, "B", ord("Y")))),
        ("BAD_VERSION", "version 1", number("raw", (4, "H", 1))),
        ("BAD_VERSION", "version 3", number("raw", (4, "H", 3))),
        ("BAD_VERSION", "header_bytes 128", number("raw", (6, "H", 128))),
        ("BAD_HEADER_CRC", "another level_min", unsealed("raw", 11, "b", -2)),
        ("BAD_HEADER_CRC", "another CRC", unsealed("lzw", 60, "I", 0)),
        *(("BAD_RESERVED", f"byte {at} is 1", number("lzw", (at, "B", 1))) for at in (30, 31)),
        ("BAD_CODEC", "codec 3", number("raw", (8, "B", 3))),
        ("BAD_CODEC", "base3 with cap 4", number("base3", (10, "B", 4))),
        ("BAD_CODEC", "base3 with code_bits 5", number("base3", (9, "B", 5))),
        ("BAD_CODEC", "raw with code_bits 3", number("raw", (9, "B", 3))),
        ("BAD_CODEC", "raw with cap 16", number("raw", (10, "B", 16))),
        ("BAD_CODEC", "lzw with code_bits 11", number("lzw", (9, "B", 11))),
        ("BAD_CODEC", "lzw with cap 0", number("lzw", (10, "B", 0))),
        ("BAD_CODEC", "lzw with cap 16", number("lzw", (10, "B", 16))),
        ("BAD_ALPHABET", "n_levels 0", number("lzw", (12, "H", 0))),
        ("BAD_ALPHABET", "n_levels 1", number("lzw", (12, "H", 1))),
        ("BAD_ALPHABET", "n_levels 257", number("raw8", (11, "b", -128), (12, "H", 257))),
        ("BAD_ALPHABET", "2 bits with n_levels 5", number("raw", (12, "H", 5))),
        ("BAD_ALPHABET", "levels up to 128", number("raw", (11, "b", 126))),
        ("BAD_SHAPE", "rows 0", number("raw", (16, "I", 0), (40, "Q", 0))),
        ("BAD_SHAPE", "rows 2^31", number("raw", (16, "I", 2**31), (40, "Q", 2**31 * 11))),
        ("BAD_SHAPE", "cols 0", number("raw", (20, "I", 0), (40, "Q", 0))),
        ("BAD_SHAPE", "cols 65536", number("raw", (20, "I", 65536), (40, "Q", 3 * 16384))),
        *core_errors(),
        ("BAD_SECTION", "raw with payload_offset 128", number("raw", (32, "Q", 128))),
        ("BAD_SECTION", "lzw with payload_offset 0", number("lzw", (32, "Q", 0))),
        ("BAD_SECTION", "raw with one payload byte less", number("raw", (40, "Q", raw_bytes - 1))),
        ("BAD_SECTION", "lzw with 2^32 payload bytes", number("lzw", (40, "Q", 2**32))),
        ("BAD_SECTION", "lzw with 2^64 - 1 payload bytes", number("lzw", (40, "Q", 2**64 - 1))),
    ]
    return [(status, "open", what, blob) for status, what, blob in changes]


def table_errors() -> list[Spoiled]:
    """Checks 11 to 15 of FORMAT.md section 6."""
    changes: list[tuple[str, str, bytes]] = [
        ("TRUNCATED", "the header alone", cut(64)),
        ("TRUNCATED", "one byte missing", cut(-1)),
        ("TRUNCATED", "raw that claims 2^31 - 1 rows", huge("raw")),
        ("TRUNCATED", "lzw that claims 2^31 - 1 rows", huge("lzw")),
        ("BAD_TABLES_CRC", "another CRC", crc_off("lzw", 48)),
        ("BAD_TABLES_CRC", "raw with a CRC", crc_off("raw", 48)),
        ("BAD_DICTIONARY", "the root is a leaf", bits(flip(0))),
        ("BAD_DICTIONARY", "the tree ends early", bits(lambda b: [1, 0, 0, 0, *b[4:]])),
        ("BAD_DICTIONARY", "the tree does not end", bits(lambda b: [*b[:93], 1, *b[94:]])),
        ("BAD_DICTIONARY", "an unused bit is set", bits(flip(95))),
        ("BAD_DICTIONARY", "phrases of 6 levels with cap 3", number("lzw_cap6", (10, "B", 3))),
        ("BAD_DICTIONARY", "a phrase goes on after an escape", after_escape()),
        ("BAD_DICTIONARY", "a codeword of 13 bits", lengths("lzw", swap(0, 13))),
        ("BAD_DICTIONARY", "one codeword too many", lengths("lzw", swap(0, 12))),
        ("BAD_DICTIONARY", "one codeword too few", lengths("lzw", longest_unused)),
        ("BAD_DICTIONARY", "an unused half byte is set", lengths("lzw", lambda n: [*n[:-1], 1])),
        ("BAD_INDEX", "a shortest row of 0 bytes", tile_head(0, -shortest_of_tile_0())),
        ("BAD_INDEX", "deltas of 25 bits", tile_head(0, (25 << 24) - (width_of_tile_0() << 24))),
        ("BAD_INDEX", "a width more than the tile has", tile_head(second_tile(), 1 << 24)),
        ("BAD_INDEX", "a width less", tile_head(second_tile(), -1 << 24)),
        ("BAD_INDEX", "rows that end late", tile_head(second_tile(), 1)),
        ("BAD_INDEX", "rows that end early", tile_head(0, -1)),
        ("BAD_INDEX", "a delta of a row past the last", byte_at("lzw", last_of_index, 0x80)),
        (
            "BAD_PADDING",
            "after the dictionary",
            byte_at("lzw_even", lambda d: d.index(-1), 1),
        ),
        ("BAD_PADDING", "before the payload", byte_at("lzw_even", lambda d: d.payload(-1), 128)),
        ("BAD_PADDING", "first byte of the tail", byte_at("lzw", after_payload, 1)),
        ("BAD_PADDING", "last byte of the tail", byte_at("raw", lambda d: len(d.blob) - 1, 128)),
    ]
    return [(status, "open", what, blob) for status, what, blob in changes]


def row_errors() -> list[Spoiled]:
    """Checks 16 to 20 of FORMAT.md section 6."""
    return [
        ("BAD_PAYLOAD_CRC", "verify", "another CRC (lzw)", crc_off("lzw", 52)),
        ("BAD_PAYLOAD_CRC", "verify", "another CRC (raw)", crc_off("raw8", 52)),
        ("BAD_CODE", "row", "a byte that is no code", set_byte("base3", 0, 1, 60)),
        ("BAD_CODE", "row", "as the last byte of a row", set_byte("base3", 8, 9, 60)),
        ("BAD_ROW_LENGTH", "row", "columns that are missing", other_columns("lzw", 20)),
        ("BAD_ROW_LENGTH", "row", "columns too many", other_columns("lzw", -20)),
        ("BAD_ROW_LENGTH", "row", "a byte moved to the row before", moved_byte()),
        ("BAD_LEVEL", "row", "level 255 of 255 after an escape", bad_escape()),
        ("BAD_LEVEL", "row", "value 3 of 3 (2 bits)", byte_at("raw", lambda d: d.payload(), 0x03)),
        (
            "BAD_LEVEL",
            "row",
            "value 3 of 3 as the last level",
            byte_at("raw", lambda d: d.payload(32), 0x30),
        ),
        (
            "BAD_LEVEL",
            "row",
            "value 15 of 15 (4 bits)",
            byte_at("raw4", lambda d: d.payload(7), 0xF0),
        ),
        (
            "BAD_LEVEL",
            "row",
            "value 255 of 255 (8 bits)",
            byte_at("raw8", lambda d: d.payload(5), 0xFF),
        ),
        (
            "BAD_PADDING",
            "verify",
            "unused bits of a raw row",
            byte_at("raw", lambda d: d.payload(10), 0x80),
        ),
        ("BAD_PADDING", "verify", "unused bits of a row of phrases", unused_bits()),
        ("BAD_PADDING", "verify", "a digit past the last level", set_byte("base3", 8, 9, 2)),
    ]


def set_byte(base: str, begin: int, end: int, value: int) -> bytes:
    """Bytes of the payload set."""
    d = draft(base)
    d.blob[d.payload(begin) : d.payload(end)] = bytes([value] * (end - begin))
    return d.seal()


def make_errors(out: Path) -> None:
    """errors.tsv and errors/."""
    (out / "errors").mkdir()
    lines: list[tuple[object, ...]] = []
    seen: dict[str, int] = {}
    for status, stage, what, blob in [*header_errors(), *table_errors(), *row_errors()]:
        seen[status] = seen.get(status, 0) + 1
        name = f"errors/{status.lower()}_{seen[status]}.tqlz"
        (out / name).write_bytes(blob)
        lines.append((name, status, STATUS_NUMBERS[status], stage, what))
    write_table(out / "errors.tsv", "file status number stage what", lines)


# ---- Products and look-ups -----------------------------------------------------------------------

PRODUCTS = (  # case of decode.tsv, group_size
    ("one_level_lzw", 1),
    ("ternary33_base3_7x43", 43),
    ("ternary33_raw2_7x43", 16),
    ("ternary33_base3_33x172", 172),
    ("ternary33_base3_5x320", 64),
    ("ternary80_lzw_33x172", 172),
    ("ternary80_lzw_33x172", 64),
    ("ternary80_raw2_65x256", 128),
    ("ternary90_lzw_65x256", 256),
    ("ternary95_lzw_129x100", 32),
    ("int4_lzw_33x171", 32),
    ("int4_raw4_33x171", 171),
    ("int8_raw8_33x172", 172),
    ("int8_raw8_33x172", 128),
    ("int8_lzw_33x172", 172),
    ("int8_lzw_escapes_33x172", 43),
    ("all256_raw8_16x64", 64),
    ("all256_lzw_16x64", 64),
)
LOOKUPS = (
    ("one_level_raw2", 1),
    ("ternary33_base3_33x172", 172),
    ("ternary80_lzw_33x172", 64),
    ("ternary90_lzw_65x256", 256),
    ("ternary80_raw2_65x256", 32),
    ("int8_raw8_33x172", 172),
    ("int8_lzw_escapes_33x172", 50),
)
F32 = npt.NDArray[np.float32]


def draw_activations(seed: int, cols: int) -> F32:
    """float32 [5, cols]: usual, zeros, ties of the rounding, too small to scale, and large."""
    usual = bell(seed, cols).astype(np.float32)
    ties = (np.floor(uniform(seed + 1, cols) * 65023) - 32511.5).astype(np.float32)
    ties[0] = 32512.0  # so that the scale is 1 and every .5 is a tie
    tiny = np.float32(2.0**-101) * np.sign(usual)
    return np.stack([usual, np.zeros_like(usual), ties, tiny, usual * np.float32(1e30)])


def quantize(x: F32) -> tuple[npt.NDArray[np.int16], F32]:
    """int16 [n_tokens, cols] and float32 [n_tokens], as `tinyqmoe_quantize_x16`."""
    largest = np.abs(x).max(axis=1)
    used = largest >= np.float32(2.0**-100)
    inverse = np.zeros_like(largest)
    inverse[used] = np.float32(32512) / largest[used]
    return np.rint(x * inverse[:, None]).astype(np.int16), np.where(
        used, largest / np.float32(32512), np.float32(0)
    )


def product(
    levels: npt.NDArray[np.int8],
    scales: F32,
    group_size: int,
    q: npt.NDArray[np.int16],
    x_scales: F32,
) -> F32:
    """float32 [n_tokens, rows], as `tinyqmoe_linear_x16`."""
    starts = range(0, levels.shape[1], group_size)
    dots = [
        q[:, i : i + group_size].astype(np.int64) @ levels[:, i : i + group_size].T.astype(np.int64)
        for i in starts
    ]
    if len(dots) == 1:
        return dots[0].astype(np.float32) * (x_scales[:, None] * scales[:, 0])
    total = np.zeros(dots[0].shape, np.float32)
    for group, dot in enumerate(dots):
        total = total + dot.astype(np.float32) * scales[:, group]
    return x_scales[:, None] * total


def draw_scales(seed: int, rows: int, cols: int, group_size: int) -> F32:
    """float32 [rows, ceil(cols / group_size)] around 0.01."""
    groups = -(-cols // group_size)
    return (uniform(seed, rows * groups).reshape(rows, groups) * 0.01 + 0.005).astype(np.float32)


def make_products(out: Path) -> None:
    """linear.tsv, embedding.tsv and their folders."""
    cases = {case.name: case for case in CASES}
    (out / "linear").mkdir()
    lines: list[tuple[object, ...]] = []
    for seed, (name, group_size) in enumerate(PRODUCTS, 100):
        levels, stem = cases[name].levels(), f"linear/{name}_g{group_size}"
        x, scales = (
            draw_activations(seed, levels.shape[1]),
            draw_scales(seed, *levels.shape, group_size),
        )
        (out / f"{stem}.x.f32").write_bytes(x.astype("<f4").tobytes())
        (out / f"{stem}.scales.f32").write_bytes(scales.astype("<f4").tobytes())
        q, x_scales = quantize(x)
        y = product(levels, scales, group_size, q, x_scales)
        files = (f"decode/{name}.tqlz", f"{stem}.x.f32", f"{stem}.scales.f32")
        lines.append((*files, group_size, len(x), crc(q), crc(y.astype("<f4"))))
    write_table(
        out / "linear.tsv",
        "blob activations scales group_size n_tokens quantized_crc32 y_crc32",
        lines,
    )
    make_lookups(out, cases)


def make_lookups(out: Path, cases: dict[str, Case]) -> None:
    """embedding.tsv and embedding/."""
    (out / "embedding").mkdir()
    lines: list[tuple[object, ...]] = []
    for seed, (name, group_size) in enumerate(LOOKUPS, 200):
        levels, stem = cases[name].levels(), f"embedding/{name}_g{group_size}"
        rows, cols = levels.shape
        ids = np.array([0, rows - 1, rows // 2, 0, *(uniform(seed, 4) * rows)]).astype("<i8")
        scales = draw_scales(seed, rows, cols, group_size)
        (out / f"{stem}.ids.i64").write_bytes(ids.tobytes())
        (out / f"{stem}.scales.f32").write_bytes(scales.astype("<f4").tobytes())
        found = levels[ids].astype(np.float32) * np.repeat(scales, group_size, axis=1)[ids, :cols]
        files = (f"decode/{name}.tqlz", f"{stem}.ids.i64", f"{stem}.scales.f32")
        lines.append((*files, group_size, len(ids), crc(found.astype("<f4"))))
    write_table(out / "embedding.tsv", "blob ids scales group_size n_ids out_crc32", lines)


# ---- The example in FORMAT.md --------------------------------------------------------------------

HEADER_FIELDS = (  # offset, struct character, name
    *(
        (4, "H", "version"),
        (6, "H", "header_bytes"),
        (8, "B", "codec"),
        (9, "B", "code_bits"),
        (10, "B", "cap"),
    ),
    *(
        (11, "b", "level_min"),
        (12, "H", "n_levels"),
        (14, "H", "n_core"),
        (16, "I", "rows"),
        (20, "I", "cols"),
    ),
    *(
        (24, "I", "n_entries"),
        (28, "H", "core_first"),
        (30, "H", "reserved"),
        (32, "Q", "payload_offset"),
        (40, "Q", "payload_bytes"),
    ),
    *(
        (48, "I", "tables_crc32"),
        (52, "I", "payload_crc32"),
        (56, "I", "index_bytes"),
        (60, "I", "header_crc32"),
    ),
)


def dump_lines(blob: bytes, start: int, end: int, note: str) -> list[str]:
    """Bytes `start` to `end`, 16 a line, the note beside the first."""
    lines = []
    for at in range(start, end, 16):
        digits = blob[at : min(at + 16, end)].hex(" ")
        lines.append(f"{at:04x}  {digits:<48} {note if at == start else ''}".rstrip())
    return lines


def dump_header(blob: bytes) -> list[str]:
    """The fields of the header, one a line."""
    lines = dump_lines(blob, 0, 4, "magic TQLZ")
    for offset, form, name in HEADER_FIELDS:
        (value,) = struct.unpack_from("<" + form, blob, offset)
        shown = f"{value:08x}" if name.endswith("crc32") else str(value)
        lines += dump_lines(blob, offset, offset + struct.calcsize(form), f"{name} {shown}")
    return lines


def dump_rows(blob: bytes, header: Header, dictionary: Dictionary, sizes: list[int]) -> list[str]:
    """The rows, with their phrases."""
    lines, at, phrases = [], header.layout.payload_offset, dictionary.phrases()
    for row, (levels, n_bytes) in enumerate(zip(EXAMPLE.levels().tolist(), sizes, strict=True)):
        parsed = parse_row(levels, dictionary)
        shown = [
            " ".join(f"{level:+d}" if level else "0" for level in phrases[entry].levels)
            + ("" if escaped is None else f" [{escaped:+d}]")
            for entry, escaped in zip(parsed.entries, parsed.escaped, strict=True)
        ]
        joined = " | ".join(part.strip() for part in shown)
        lines += dump_lines(blob, at, at + n_bytes, f"row {row}: {joined}")
        at += n_bytes
    return lines


def hexdump() -> str:
    """The annotated bytes of `EXAMPLE`, as FORMAT.md shows them."""
    blob, dictionary = EXAMPLE.blob(), EXAMPLE.dictionary()
    header = Header.parse(blob)
    at = header.layout
    tree_end, dictionary_end = 64 + packed_bytes(header.n_nodes, 1), 64 + at.dictionary_bytes
    index_end, payload_end = at.index_offset + at.index_bytes, at.payload_offset + at.payload_bytes
    shortest, width = blob[at.index_offset], blob[at.index_offset + 3]
    deltas = int.from_bytes(blob[at.index_offset + 4 : index_end], "little")
    sizes = [
        shortest + (deltas >> (row * width) & ((1 << width) - 1)) for row in range(header.rows)
    ]
    lengths = "code lengths: " + " ".join(map(str, dictionary.code_bits))
    inner = header.n_nodes - header.n_entries
    return "\n".join(
        [
            *dump_header(blob),
            *dump_lines(
                blob, 64, tree_end, f"tree: {inner} inner nodes, {header.n_entries} leaves"
            ),
            *dump_lines(blob, tree_end, dictionary_end, lengths),
            *dump_lines(blob, dictionary_end, at.index_offset, "gap"),
            *dump_lines(
                *(blob, at.index_offset, at.index_offset + 4),
                f"row index: tile 0, shortest row {shortest} bytes, {width} bits a delta",
            ),
            *dump_lines(blob, at.index_offset + 4, index_end, f"rows of {sizes} bytes"),
            *dump_lines(blob, index_end, at.payload_offset, "gap"),
            *dump_rows(blob, header, dictionary, sizes),
            *dump_lines(blob, payload_end, at.total_bytes, "tail"),
        ]
    )


def with_hexdump(text: str) -> str:
    """FORMAT.md's text with the example as it is now."""
    begin, end = "<!-- hexdump:begin -->\n", "<!-- hexdump:end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}```\n{hexdump()}\n```\n{end}{rest.split(end)[1]}"


def make(out: Path) -> None:
    """Writes all tables and files into `out`, which holds none of them yet."""
    make_decode(out)
    make_errors(out)
    make_products(out)


def clear(out: Path) -> None:
    """Removes what an earlier run wrote."""
    for part in ("decode", "errors", "linear", "embedding"):
        shutil.rmtree(out / part, ignore_errors=True)
        (out / f"{part}.tsv").unlink(missing_ok=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    make(folder)
    if folder == GOLDEN:
        FORMAT_MD.write_text(with_hexdump(FORMAT_MD.read_text("utf-8")), "utf-8")

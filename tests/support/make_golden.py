"""Writes tests/golden anew: `python tests/support/make_golden.py [FOLDER]`.

The README there describes the files.

Deterministic to the byte on every machine: own random numbers, and a slow encoder that shares no
code with the native one.
"""

from __future__ import annotations

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
    packed_bytes,
    row_ends,
    seal,
    write_tables,
)

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


def parse_row(row: list[int], phrases: dict[tuple[int, ...], int], fill: int) -> list[int]:
    """Codewords of one row; `fill` completes its last phrase."""
    codes: list[int] = []
    phrase: tuple[int, ...] = ()
    for level in row:
        phrase = (*phrase, level)
        if phrase in phrases:
            codes.append(phrases[phrase])
            phrase = ()
    while phrase:
        phrase = (*phrase, fill)
        if phrase in phrases:
            codes.append(phrases[phrase])
            phrase = ()
    return codes


def slow_lzw(levels: npt.NDArray[np.int8], dictionary: Dictionary) -> bytes:
    """A blob of codec `lzw`; levels: int8 [rows, cols]."""
    low, n_levels = dictionary.level_min, dictionary.n_levels
    fill = 0 if low <= 0 < low + n_levels else low
    phrases = {phrase: code for code, phrase in enumerate(dictionary.phrases())}
    codes = [parse_row(row, phrases, fill) for row in levels.tolist()]
    row_codes = np.array([len(row) for row in codes])
    payload_bytes = int(row_ends(row_codes, dictionary.code_bits)[-1])
    header = Header(
        *(CodecId.LZW, dictionary.code_bits, dictionary.cap, low, n_levels, *levels.shape),
        *(dictionary.n_entries, payload_bytes),
    )
    blob, payload = new_blob(header)
    write_tables(blob, header, dictionary.to_bits(), row_codes)
    payload[:] = np.frombuffer(
        b"".join(pack_fields(row, dictionary.code_bits) for row in codes), np.uint8
    )
    seal(blob, header)
    return blob.tobytes()


def slow_raw(levels: npt.NDArray[np.int8], low: int, n_levels: int, code_bits: int) -> bytes:
    """A blob of codec `raw`; levels: int8 [rows, cols]."""
    rows, cols = levels.shape
    header = Header(
        CodecId.RAW,
        code_bits,
        0,
        low,
        n_levels,
        rows,
        cols,
        0,
        rows * packed_bytes(cols, code_bits),
    )
    blob, payload = new_blob(header)
    packed = (pack_fields([level - low for level in row], code_bits) for row in levels.tolist())
    payload[:] = np.frombuffer(b"".join(packed), np.uint8)
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
    code_bits: int
    cap: int = 0  # 0: raw
    followed_by: bytes = b""

    def levels(self) -> npt.NDArray[np.int8]:
        """Levels int8 [rows, cols], seeded by the name."""
        return draw_levels(
            zlib.crc32(self.name.encode()) & 0xFFFF, self.shape, *self.alphabet, self.kind
        )

    def blob(self) -> bytes:
        """The bytes of the file."""
        levels, (low, n_levels) = self.levels(), self.alphabet
        if not self.cap:
            return slow_raw(levels, low, n_levels, self.code_bits) + self.followed_by
        counts = np.bincount(levels.ravel().astype(np.int64) - low, minlength=n_levels)
        return (
            slow_lzw(levels, Dictionary.grow(counts, low, n_levels, self.code_bits, self.cap))
            + self.followed_by
        )


TERNARY, INT8, INT4 = (-1, 3), (-127, 255), (-7, 15)
EXAMPLE = Case("example_lzw8_3x12", (3, 12), TERNARY, "zeros50", 8, 16)
CASES = (
    EXAMPLE,
    Case("one_level_raw2", (1, 1), TERNARY, "same", 2),
    Case("one_level_lzw8", (1, 1), TERNARY, "same", 8, 16),
    Case("one_level_lzw12", (1, 1), TERNARY, "same", 12, 32),
    Case("one_level_lzw16", (1, 1), (0, 2), "same", 16, 16),
    Case(
        "followed_by_other_bytes_raw2", (3, 10), TERNARY, "zeros50", 2, followed_by=b"other bytes"
    ),
    Case(
        "followed_by_other_bytes_lzw8",
        (3, 10),
        TERNARY,
        "zeros50",
        8,
        16,
        followed_by=b"other bytes",
    ),
    Case("one_column_lzw8", (100, 1), TERNARY, "zeros33", 8, 16),
    Case("one_long_row_lzw12", (1, 65535), TERNARY, "zeros90", 12, 32),
    Case("ternary33_raw2_7x43", (7, 43), TERNARY, "zeros33", 2),
    Case("ternary33_lzw8_7x43", (7, 43), TERNARY, "zeros33", 8, 16),
    Case("ternary33_lzw12_7x43", (7, 43), TERNARY, "zeros33", 12, 16),
    Case("ternary33_lzw16_33x172", (33, 172), TERNARY, "zeros33", 16, 16),
    Case("ternary50_lzw8_33x172", (33, 172), TERNARY, "zeros50", 8, 16),
    Case("ternary70_lzw8_65x256", (65, 256), TERNARY, "zeros70", 8, 32),
    Case("ternary80_raw2_65x256", (65, 256), TERNARY, "zeros80", 2),
    Case("ternary80_lzw12_33x172", (33, 172), TERNARY, "zeros80", 12, 32),
    Case("ternary80_lzw12_cap16_65x256", (65, 256), TERNARY, "zeros80", 12, 16),
    Case("ternary90_lzw16_65x256", (65, 256), TERNARY, "zeros90", 16, 32),
    Case("ternary95_lzw12_129x100", (129, 100), TERNARY, "zeros95", 12, 32),
    Case("zeros_lzw8_overhang_32x33", (32, 33), TERNARY, "same", 8, 32),
    Case("zeros_lzw12_overhang_5x17", (5, 17), TERNARY, "same", 12, 16),
    Case("binary_raw2_9x30", (9, 30), (0, 2), "flat", 2),
    Case("binary_lzw8_9x30", (9, 30), (0, 2), "flat", 8, 16),
    Case("binary_lzw12_40x75", (40, 75), (0, 2), "zeros80", 12, 32),
    Case("no_zero_lzw8_6x50", (6, 50), (1, 3), "flat", 8, 16),
    Case("lowest_raw2_5x9", (5, 9), (-128, 3), "flat", 2),
    Case("lowest_lzw12_5x9", (5, 9), (-128, 3), "flat", 12, 16),
    Case("highest_lzw8_5x9", (5, 9), (124, 4), "flat", 8, 16),
    Case("int4_raw4_33x171", (33, 171), INT4, "bell", 4),
    Case("int4_lzw12_33x171", (33, 171), INT4, "bell", 12, 16),
    Case("unsigned4_raw4_7x20", (7, 20), (0, 16), "flat", 4),
    Case("int8_raw8_33x172", (33, 172), INT8, "bell", 8),
    Case("int8_lzw12_7x43", (7, 43), INT8, "bell", 12, 16),
    Case("int8_lzw16_33x172", (33, 172), INT8, "bell", 16, 16),
    Case("all256_raw8_16x64", (16, 64), (-128, 256), "flat", 8),
    Case("all256_lzw8_16x64", (16, 64), (-128, 256), "flat", 8, 16),
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
        codec = "lzw" if case.cap else "raw"
        lines.append(
            (name, *case.shape, codec, case.code_bits, case.cap, *case.alphabet, crc(case.levels()))
        )
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

    def put_bits(self, nodes: list[int]) -> None:
        """Overwrites the dictionary section with these nodes."""
        bits = np.packbits(np.array(nodes, np.uint8), bitorder="little").tobytes()
        self.blob[64 : 64 + len(bits)] = bits

    def index(self, row: int) -> int:
        """Offset of the row's number of codewords."""
        return self.header.layout.index_offset + 4 * self.header.n_tiles + 2 * row

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
    "raw": Case("raw", (3, 43), TERNARY, "zeros50", 2),
    "raw4": Case("raw4", (3, 11), INT4, "bell", 4),
    "raw8": Case("raw8", (3, 11), INT8, "bell", 8),
    "lzw": Case("lzw", (40, 43), TERNARY, "zeros50", 8, 16),
    "lzw_cap32": Case("lzw_cap32", (4, 43), TERNARY, "zeros95", 8, 32),
    "lzw_gaps": Case("lzw_gaps", (3, 43), (0, 16), "flat", 8, 16),  # its dictionary takes 273 bits
    "lzw12": Case("lzw12", (8, 43), TERNARY, "zeros80", 12, 32),
    "lzw16": Case("lzw16", (2, 43), INT8, "bell", 16, 16),
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
    payload_bytes = rows * packed_bytes(43, 2) if base == "raw" else 2**32 - 1
    header = replace(d.header, rows=rows, payload_bytes=payload_bytes)
    return header.pack() + bytes(d.blob[64:])


def crc_off(base: str, offset: int) -> bytes:
    """One of the CRCs changed, the header's own right."""
    d = draft(base)
    d.blob[offset] ^= 1
    return d.seal_header()


def nodes(change: Callable[[list[int]], list[int]]) -> bytes:
    """The dictionary's nodes changed."""
    d = draft("lzw")
    bits = np.unpackbits(np.frombuffer(d.blob[64:112], np.uint8), bitorder="little").tolist()
    d.put_bits(change(bits))
    return d.seal()


def one_too_deep() -> bytes:
    """A tree with phrases of 17 levels under a cap of 16."""
    tree = list(Dictionary.grow(np.array([1, 98, 1]), -1, 3, 8, 17).tree)
    return nodes(lambda _: tree)


def row_count(row: int, by: int, next_by: int = 0) -> bytes:
    """A row's number of codewords changed, and that of the row after it."""
    d = draft("lzw")
    for at, change in ((row, by), (row + 1, next_by)):
        if change:
            d.put(
                d.index(at),
                "H",
                int.from_bytes(d.blob[d.index(at) : d.index(at) + 2], "little") + change,
            )
    return d.seal()


def row_count_to(value: int) -> bytes:
    """The first row's number of codewords set."""
    d = draft("lzw")
    d.put(d.index(0), "H", value)
    return d.seal()


def tile_offset(tile: int, by: int) -> bytes:
    """A tile's offset moved."""
    d = draft("lzw")
    at = d.header.layout.index_offset + 4 * tile
    d.put(at, "I", int.from_bytes(d.blob[at : at + 4], "little") + by)
    return d.seal()


def byte_at(base: str, where: Callable[[Draft], int], value: int) -> bytes:
    """Bits set in one byte."""
    d = draft(base)
    d.blob[where(d)] |= value
    return d.seal()


def codes_of_row_0(d: Draft) -> int:
    """Number of codewords of the first row."""
    return int.from_bytes(d.blob[d.index(0) : d.index(0) + 2], "little")


def all_codes(pick: Callable[[list[int]], int]) -> bytes:
    """Every codeword of the first row replaced by the phrase whose length `pick` picks."""
    d = draft("lzw")
    counts = np.bincount(SMALL["lzw"].levels().ravel() + 1, minlength=3)
    lengths = [len(phrase) for phrase in Dictionary.grow(counts, -1, 3, 8, 16).phrases()]
    n = codes_of_row_0(d)
    d.blob[d.payload() : d.payload(n)] = bytes([lengths.index(pick(lengths))] * n)
    return d.seal()


def two_phrases(cols_by: Callable[[int, int], int]) -> bytes:
    """A row of two phrases whose header claims other columns; `cols_by` gets the lengths of the
    two."""
    dictionary = Dictionary.grow(np.array([1, 2, 1]), -1, 3, 8, 16)
    first, second = dictionary.phrases()[100:102]
    d = Draft(bytearray(slow_lzw(np.array([first + second], np.int8), dictionary)))
    d.put(20, "I", cols_by(len(first), len(second)))
    return d.seal()


def odd_row_padding() -> bytes:
    """The four unused bits of the first row with an odd number of 12-bit codewords."""
    d = draft("lzw12")
    row_codes = np.frombuffer(d.blob, "<u2", d.header.rows, d.index(0))
    odd = int(np.flatnonzero(row_codes % 2)[0])
    d.blob[d.payload(int(row_ends(row_codes, 12)[odd]) - 1)] |= 0x80
    return d.seal()


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
        ("BAD_VERSION", "version 2", number("raw", (4, "H", 2))),
        ("BAD_VERSION", "header_bytes 128", number("raw", (6, "H", 128))),
        ("BAD_HEADER_CRC", "another level_min", unsealed("raw", 11, "b", -2)),
        ("BAD_HEADER_CRC", "another CRC", unsealed("lzw", 60, "I", 0)),
        *(("BAD_RESERVED", f"byte {at} is 1", number("lzw", (at, "B", 1))) for at in (14, 31, 56)),
        ("BAD_CODEC", "codec 2", number("raw", (8, "B", 2))),
        ("BAD_CODEC", "raw with code_bits 3", number("raw", (9, "B", 3))),
        ("BAD_CODEC", "raw with cap 16", number("raw", (10, "B", 16))),
        ("BAD_CODEC", "lzw with code_bits 10", number("lzw", (9, "B", 10))),
        ("BAD_CODEC", "lzw with cap 0", number("lzw", (10, "B", 0))),
        ("BAD_CODEC", "lzw with cap 64", number("lzw", (10, "B", 64))),
        ("BAD_ALPHABET", "n_levels 0", number("lzw", (12, "H", 0))),
        ("BAD_ALPHABET", "n_levels 1", number("lzw", (12, "H", 1))),
        ("BAD_ALPHABET", "n_levels 257", number("raw8", (11, "b", -128), (12, "H", 257))),
        ("BAD_ALPHABET", "2 bits with n_levels 5", number("raw", (12, "H", 5))),
        ("BAD_ALPHABET", "levels up to 128", number("raw", (11, "b", 126))),
        ("BAD_SHAPE", "rows 0", number("raw", (16, "I", 0), (40, "Q", 0))),
        ("BAD_SHAPE", "rows 2^31", number("raw", (16, "I", 2**31), (40, "Q", 2**31 * 11))),
        ("BAD_SHAPE", "cols 0", number("raw", (20, "I", 0), (40, "Q", 0))),
        ("BAD_SHAPE", "cols 65536", number("raw", (20, "I", 65536), (40, "Q", 3 * 16384))),
        ("BAD_ENTRIES", "raw with n_entries 3", number("raw", (24, "I", 3))),
        ("BAD_ENTRIES", "n_entries 1", number("lzw", (24, "I", 1))),
        ("BAD_ENTRIES", "n_entries 254 of 3 levels", number("lzw", (24, "I", 254))),
        ("BAD_ENTRIES", "n_entries 257 of 8 bits", number("lzw", (24, "I", 257))),
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
        ("BAD_DICTIONARY", "the root is a leaf", nodes(lambda bits: [0, *bits[1:]])),
        ("BAD_DICTIONARY", "the tree ends early", nodes(lambda bits: [1, 0, 0, 0, *bits[4:]])),
        ("BAD_DICTIONARY", "the tree does not end", nodes(lambda bits: [*bits[:381], 1, 0, 0])),
        ("BAD_DICTIONARY", "an unused bit is set", nodes(lambda bits: [*bits[:383], 1])),
        ("BAD_DICTIONARY", "phrases of 17 levels with cap 16", one_too_deep()),
        ("BAD_DICTIONARY", "cap 16 on a tree of cap 32", number("lzw_cap32", (10, "B", 16))),
        ("BAD_INDEX", "a row of no codewords", row_count_to(0)),
        ("BAD_INDEX", "a row of more codewords than columns", row_count_to(44)),
        ("BAD_INDEX", "tile 0 at 1", tile_offset(0, 1)),
        ("BAD_INDEX", "tile 1 one byte late", tile_offset(1, 1)),
        ("BAD_INDEX", "the last row one codeword short", row_count(39, -1)),
        ("BAD_INDEX", "the last row one codeword long", row_count(39, 1)),
        (
            "BAD_PADDING",
            "after the dictionary",
            byte_at("lzw_gaps", lambda d: d.header.layout.index_offset - 1, 1),
        ),
        ("BAD_PADDING", "before the payload", byte_at("lzw_gaps", lambda d: d.payload(-1), 128)),
        ("BAD_PADDING", "first byte of the tail", byte_at("lzw", after_payload, 1)),
        ("BAD_PADDING", "last byte of the tail", byte_at("raw", lambda d: len(d.blob) - 1, 128)),
    ]
    return [(status, "open", what, blob) for status, what, blob in changes]


def row_errors() -> list[Spoiled]:
    """Checks 16 to 20 of FORMAT.md section 6."""
    return [
        ("BAD_PAYLOAD_CRC", "verify", "another CRC (lzw)", crc_off("lzw", 52)),
        ("BAD_PAYLOAD_CRC", "verify", "another CRC (raw)", crc_off("raw8", 52)),
        (
            "BAD_CODE",
            "row",
            "codeword 255 of 255 entries",
            byte_at("lzw", lambda d: d.payload(), 0xFF),
        ),
        (
            "BAD_CODE",
            "row",
            "as the last codeword",
            byte_at("lzw", lambda d: d.payload(codes_of_row_0(d) - 1), 0xFF),
        ),
        ("BAD_CODE", "row", "codeword 4095 of 4095 entries", two_bytes("lzw12", 0, 0xFF, 0x0F)),
        ("BAD_CODE", "row", "codeword 4095 in second place", two_bytes("lzw12", 1, 0xF0, 0xFF)),
        ("BAD_CODE", "row", "codeword 65535 of 65533 entries", two_bytes("lzw16", 0, 0xFF, 0xFF)),
        ("BAD_ROW_LENGTH", "row", "shortest phrases only", all_codes(min)),
        ("BAD_ROW_LENGTH", "row", "longest phrases only", all_codes(max)),
        (
            "BAD_ROW_LENGTH",
            "row",
            "one level missing",
            two_phrases(lambda first, second: first + second + 1),
        ),
        ("BAD_ROW_LENGTH", "row", "one codeword too many", two_phrases(lambda first, _: first)),
        ("BAD_ROW_LENGTH", "row", "a codeword moved to the row before", row_count(0, 1, -1)),
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
        ("BAD_PADDING", "verify", "unused bits of a row of 12-bit codewords", odd_row_padding()),
    ]


def two_bytes(base: str, at: int, first: int, second: int) -> bytes:
    """Bits set in two bytes of the payload."""
    d = draft(base)
    d.blob[d.payload(at)] |= first
    d.blob[d.payload(at + 1)] |= second
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
    ("one_level_lzw8", 1),
    ("ternary33_lzw8_7x43", 43),
    ("ternary33_raw2_7x43", 16),
    ("ternary80_lzw12_33x172", 172),
    ("ternary80_lzw12_33x172", 64),
    ("ternary80_raw2_65x256", 128),
    ("ternary90_lzw16_65x256", 256),
    ("ternary95_lzw12_129x100", 32),
    ("int4_lzw12_33x171", 32),
    ("int4_raw4_33x171", 171),
    ("int8_raw8_33x172", 172),
    ("int8_raw8_33x172", 128),
    ("int8_lzw16_33x172", 172),
    ("all256_raw8_16x64", 64),
)
LOOKUPS = (
    ("one_level_raw2", 1),
    ("ternary80_lzw12_33x172", 64),
    ("ternary90_lzw16_65x256", 256),
    ("ternary80_raw2_65x256", 32),
    ("int8_raw8_33x172", 172),
    ("int8_lzw16_33x172", 50),
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
        (14, "H", "reserved"),
        (16, "I", "rows"),
        (20, "I", "cols"),
    ),
    *(
        (24, "I", "n_entries"),
        (28, "I", "reserved"),
        (32, "Q", "payload_offset"),
        (40, "Q", "payload_bytes"),
    ),
    *(
        (48, "I", "tables_crc32"),
        (52, "I", "payload_crc32"),
        (56, "I", "reserved"),
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


def dump_rows(
    blob: bytes, header: Header, row_codes: list[int], phrases: list[tuple[int, ...]]
) -> list[str]:
    """The rows of 8-bit codewords, with their phrases."""
    lines, at = [], header.layout.payload_offset
    for row, n_codes in enumerate(row_codes):
        codes = blob[at : at + n_codes]
        joined = " | ".join(
            " ".join(f"{level:+d}" if level else "0" for level in phrases[code]) for code in codes
        )
        lines += dump_lines(blob, at, at + n_codes, f"row {row}: {joined}")
        at += n_codes
    return lines


def hexdump() -> str:
    """The annotated bytes of `EXAMPLE`, as FORMAT.md shows them."""
    blob = EXAMPLE.blob()
    header = Header.parse(blob)
    at = header.layout
    dictionary_end, tiles_end = 64 + at.dictionary_bytes, at.index_offset + 4 * header.n_tiles
    index_end, payload_end = at.index_offset + at.index_bytes, at.payload_offset + at.payload_bytes
    dictionary = Dictionary.from_bits(
        blob[64:dictionary_end],
        level_min=-1,
        n_levels=3,
        code_bits=8,
        cap=16,
        n_entries=header.n_entries,
    )
    row_codes = np.frombuffer(blob, "<u2", header.rows, tiles_end).tolist()
    nodes_note = f"dictionary: {header.n_internal} inner nodes, {header.n_entries} leaves"
    return "\n".join(
        [
            *dump_header(blob),
            *dump_lines(blob, 64, dictionary_end, nodes_note),
            *dump_lines(blob, dictionary_end, at.index_offset, "gap"),
            *dump_lines(blob, at.index_offset, tiles_end, "row index: offset of tile 0"),
            *dump_lines(
                blob, tiles_end, index_end, f"row index: codewords of the rows, {row_codes}"
            ),
            *dump_lines(blob, index_end, at.payload_offset, "gap"),
            *dump_rows(blob, header, row_codes, dictionary.phrases()),
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

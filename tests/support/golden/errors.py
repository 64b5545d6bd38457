"""Blobs that must be rejected: errors.tsv."""

from __future__ import annotations

from pathlib import Path

from exporter.codec.format import packed_bytes
from tests.support.golden.drafts import (
    after_escape,
    after_payload,
    bad_escape,
    bits,
    byte_at,
    crc_off,
    cut,
    draft,
    flip,
    huge,
    last_of_index,
    lengths,
    longest_unused,
    moved_byte,
    number,
    other_columns,
    second_tile,
    set_byte,
    shortest_of_tile_0,
    swap,
    tile_head,
    unsealed,
    unused_bits,
    width_of_tile_0,
)
from tests.support.golden.tables import write_table

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
Spoiled = tuple[str, str, str, bytes]  # status, stage, what was changed, the bytes


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

"""Blobs that decode: decode.tsv."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exporter.codec.dictionary import Dictionary
from exporter.codec.growth import grow, with_codewords
from tests.support.golden.numbers import draw_levels
from tests.support.golden.slow_encoder import count_entries, slow_base3, slow_lzw, slow_raw
from tests.support.golden.tables import crc, write_table


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

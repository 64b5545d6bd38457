"""A slow encoder that shares no code with the native one."""

from __future__ import annotations

import functools
from dataclasses import dataclass

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

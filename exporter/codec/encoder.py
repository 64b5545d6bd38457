"""Codes a matrix of levels as a TQLZ blob: tries the candidates, takes the best by size, and
verifies the result."""

from __future__ import annotations

import io
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from exporter.codec import native, native_encoder
from exporter.codec.dictionary import Dictionary, round_shares
from exporter.codec.format import (
    LZW_CAPS,
    LZW_CODE_BITS,
    RAW_CODE_BITS,
    CodecId,
    Header,
    packed_bytes,
    seal,
    write_tables,
)
from exporter.errors import CodecError

Codec = Literal["auto", "lzw", "raw"]
Levels = npt.NDArray[np.int8]

# Share of the blob that a codeword must save over a narrower one, because its table is larger. At
# 16 bits the table (1 to 2 MB) does not fit a phone's L2 cache; where it does fit, it still decodes
# a quarter more slowly than at 12.
WIDER_CODE_GAIN = {8: 0.0, 12: 0.005, 16: 0.02}
LONGER_CAP_GAIN = 0.01  # share of the codewords that cap 32 must save: its table is twice as large
BLOCK_BYTES = 1 << 24  # levels worked on at a time; at least one row


@dataclass(frozen=True)
class EncodedTensor:
    """A TQLZ blob and what is known about it. The entropy is of order 0, in bits per level."""

    header: Header
    blob: npt.NDArray[np.uint8]
    codec: Literal["lzw", "raw"]
    entropy_bits: float
    zeros: float  # share of the levels
    levels_crc32: int
    # Of every candidate considered, such as {"raw2": ..., "lzw12": ...}.
    sizes_bytes: dict[str, int]

    @property
    def code_bits(self) -> int:
        """Bits per level (raw) or per codeword (lzw)."""
        return self.header.code_bits

    @property
    def cap(self) -> int:
        """Longest phrase; 0 for raw."""
        return self.header.cap

    @property
    def bits_per_weight(self) -> float:
        """Of the whole blob: header, tables, payload and padding."""
        return self.blob.nbytes * 8 / (self.header.rows * self.header.cols)


@dataclass(frozen=True)
class Candidate:
    """A way to code the tensor, with the header it would have. `dictionary` is None for raw."""

    header: Header
    dictionary: Dictionary | None

    @property
    def name(self) -> str:
        """Codec and width, such as `lzw12`."""
        return f"{self.header.codec.name.lower()}{self.header.code_bits}"

    @property
    def n_bytes(self) -> int:
        """Size of the blob."""
        return self.header.layout.total_bytes


def encode(
    levels: Levels, level_min: int, n_levels: int, codec: Codec = "auto", path: Path | None = None
) -> EncodedTensor:
    """Codes `levels`, int8 [rows, cols], of the alphabet level_min to level_min + n_levels - 1.

    `auto` takes the smallest of raw and lzw by exact size; `lzw` and `raw` force one. With a `path`
    the blob is written there and memory-mapped, else it is in memory. It has been decoded again and
    compared when this returns. Everything is done in blocks of rows, so besides the blob little
    memory is used however large the matrix is, and of memory-mapped levels only a block is
    resident.
    """
    if levels.dtype != np.int8 or levels.ndim != 2:
        raise CodecError(
            "BAD_ARGUMENT",
            f"got levels {levels.dtype} {list(levels.shape)}, expected int8 [rows, cols]",
        )
    raw = _raw_candidate(levels, level_min, n_levels)
    counts, levels_crc32 = _count(levels, level_min, n_levels)
    candidates = [] if codec == "lzw" else [raw]
    if codec != "raw":
        candidates.extend(_lzw_candidates(levels, level_min, counts))
    chosen = choose(candidates)
    blob, header = _write(levels, chosen, path)
    verify(blob, levels)
    return EncodedTensor(
        header=header,
        blob=blob,
        codec="raw" if chosen.dictionary is None else "lzw",
        entropy_bits=entropy_bits(counts),
        zeros=zero_share(counts, level_min),
        levels_crc32=levels_crc32,
        sizes_bytes={candidate.name: candidate.n_bytes for candidate in candidates},
    )


def encode_with(levels: Levels, dictionary: Dictionary) -> npt.NDArray[np.uint8]:
    """An lzw blob of `levels`, int8 [rows, cols], with the dictionary given."""
    blob, _ = _write(levels, _lzw_candidate(levels, dictionary))
    verify(blob, levels)
    return blob


def choose(candidates: list[Candidate]) -> Candidate:
    """The smallest, where a wider codeword has to earn its larger table, and lzw has to be smaller
    than raw."""
    lzw = [candidate for candidate in candidates if candidate.dictionary is not None]
    raw = [candidate for candidate in candidates if candidate.dictionary is None]
    best: Candidate | None = None
    for candidate in lzw:  # in order of width
        if best is None or candidate.n_bytes < best.n_bytes * (
            1 - WIDER_CODE_GAIN[candidate.header.code_bits]
        ):
            best = candidate
    if best is None or (raw and raw[0].n_bytes <= best.n_bytes):
        return raw[0]
    return best


def entropy_bits(counts: npt.NDArray[np.integer]) -> float:
    """Order-0 entropy in bits per level of levels that occur `counts` times."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no negative zero


def zero_share(counts: npt.NDArray[np.integer], level_min: int) -> float:
    """Share of zeros among levels that occur `counts` times, from level_min up."""
    return float(counts[-level_min] / counts.sum()) if 0 <= -level_min < len(counts) else 0.0


def verify(blob: npt.NDArray[np.uint8], levels: Levels) -> None:
    """Decodes the blob with the native decoder and compares it with `levels`; raises `CodecError`
    where they differ."""
    with native.NativeTensor(blob) as tensor:
        for begin, end, block in _blocks(levels):
            if not np.array_equal(tensor.decode_rows(begin, end), block):
                raise CodecError(
                    "BAD_LEVEL",
                    f"rows {begin} to {end} do not decode to what was coded",
                    hint="report this as a bug",
                )
            release(blob)


def release(*arrays: npt.NDArray[Any]) -> None:
    """Lets go of the pages of memory-mapped files, which count as memory of this process; reading
    brings them back."""
    for array in arrays:
        if isinstance(array, np.memmap):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def _blocks(levels: Levels) -> Iterator[tuple[int, int, Levels]]:
    """Ranges of rows with their levels, contiguous and small enough to work on without much
    memory."""
    rows, cols = levels.shape
    step = max(1, BLOCK_BYTES // cols)
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        yield begin, end, np.ascontiguousarray(levels[begin:end])
        release(levels)


def _count(levels: Levels, level_min: int, n_levels: int) -> tuple[npt.NDArray[np.uint64], int]:
    """How often each level of the alphabet occurs, [n_levels], and the CRC-32 of all.

    Raises `BAD_LEVEL` for levels outside the alphabet.
    """
    all_counts, crc = np.zeros(256, np.uint64), 0
    for _, _, block in _blocks(levels):
        all_counts += native_encoder.count_levels(block)
        crc = zlib.crc32(block.data, crc)
    counts = all_counts[level_min + 128 :][:n_levels]
    outside = levels.size - int(counts.sum())
    if outside:
        raise CodecError(
            "BAD_LEVEL",
            f"{outside} of {levels.size} levels lie outside {level_min} to "
            f"{level_min + n_levels - 1}",
        )
    return counts, crc


def _raw_candidate(levels: Levels, level_min: int, n_levels: int) -> Candidate:
    """Packed with the least bits. Raises for a shape or an alphabet that the format cannot hold."""
    rows, cols = levels.shape
    code_bits = next((bits for bits in RAW_CODE_BITS if n_levels <= 2**bits), RAW_CODE_BITS[-1])
    payload_bytes = rows * packed_bytes(cols, code_bits)
    header = Header(CodecId.RAW, code_bits, 0, level_min, n_levels, rows, cols, 0, payload_bytes)
    header.check()
    return Candidate(header, None)


def _lzw_candidates(
    levels: Levels, level_min: int, counts: npt.NDArray[np.uint64]
) -> list[Candidate]:
    """One candidate for each width that has room to split a leaf; without that every phrase is a
    single level."""
    widths = [code_bits for code_bits in LZW_CODE_BITS if 2 * len(counts) - 1 <= 2**code_bits]
    shares = round_shares(counts)
    return [
        _lzw_candidate(levels, best_dictionary(shares, level_min, code_bits))
        for code_bits in widths
    ]


def _lzw_candidate(levels: Levels, dictionary: Dictionary) -> Candidate:
    """Parses all rows to know the exact size, without keeping the codewords."""
    payload_bytes = sum(
        _encode_lzw(block, dictionary, count_only=True)[2] for _, _, block in _blocks(levels)
    )
    rows, cols = levels.shape
    header = Header(
        *(
            CodecId.LZW,
            dictionary.code_bits,
            dictionary.cap,
            dictionary.level_min,
            dictionary.n_levels,
            rows,
            cols,
        ),
        *(dictionary.n_entries, payload_bytes),
    )
    header.check()
    return Candidate(header, dictionary)


@lru_cache(maxsize=256)
def best_dictionary(shares: tuple[int, ...], level_min: int, code_bits: int) -> Dictionary:
    """The dictionary for levels with these shares, with the shorter cap unless the longer one saves
    enough."""
    short, long = (Dictionary.from_shares(shares, level_min, code_bits, cap) for cap in LZW_CAPS)
    if short.tree == long.tree:
        return short
    saved = 1 - short.mean_phrase_length(shares) / long.mean_phrase_length(shares)
    return long if saved > LONGER_CAP_GAIN else short


def _write(
    levels: Levels, chosen: Candidate, path: Path | None = None
) -> tuple[npt.NDArray[np.uint8], Header]:
    """The blob, in memory or in a file, and its sealed header."""
    if path is None:
        memory = io.BytesIO()
        header = _write_to(memory, levels, chosen)
        return np.frombuffer(memory.getbuffer(), np.uint8), header
    with path.open("wb") as file:
        header = _write_to(file, levels, chosen)
    return np.memmap(path, np.uint8, "r"), header


def _write_to(file: BinaryIO, levels: Levels, chosen: Candidate) -> Header:
    """The payload block by block, then what precedes it: the row index is not known earlier."""
    header, dictionary = chosen.header, chosen.dictionary
    layout = header.layout
    row_codes = np.zeros(header.rows, np.uint16)
    payload_crc32 = 0
    file.seek(layout.payload_offset)
    for begin, end, block in _blocks(levels):
        if dictionary is None:
            part = native_encoder.encode_raw(
                block, header.level_min, header.n_levels, header.code_bits
            )
        else:
            row_codes[begin:end], part, _ = _encode_lzw(block, dictionary)
        payload_crc32 = zlib.crc32(part.data, payload_crc32)
        file.write(part.data)
    file.write(bytes(layout.total_bytes - file.tell()))
    head = np.zeros(layout.payload_offset, np.uint8)
    if dictionary is not None:
        write_tables(head, header, dictionary.to_bits(), row_codes)
    sealed = seal(head, header, payload_crc32)
    file.seek(0)
    file.write(head.data)
    return sealed


def _encode_lzw(
    levels: Levels, dictionary: Dictionary, count_only: bool = False
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], int]:
    """Codewords of each row, the payload (empty when only counting), and the payload's size in
    bytes."""
    d = dictionary
    row_codes, payload, n_bytes = native_encoder.encode_lzw(
        levels,
        d.level_min,
        d.n_levels,
        d.code_bits,
        d.cap,
        d.n_entries,
        d.to_bits(),
        count_only=count_only,
    )
    return row_codes, np.zeros(0, np.uint8) if payload is None else payload, n_bytes

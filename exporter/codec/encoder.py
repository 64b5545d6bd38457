"""The encoder: it codes a matrix of levels as a TQLZ blob.

It tries the candidates, takes the best by size, and verifies the result.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from exporter.codec import native, native_encoder, native_tensor
from exporter.codec.dictionary import Dictionary
from exporter.codec.format import (
    BASE3_DIGITS,
    LZW_CODE_BITS,
    RAW_CODE_BITS,
    CodecId,
    Header,
    pack_index,
    packed_bytes,
    seal,
    write_tables,
)
from exporter.codec.growth import best_tree, entropy_bits, with_codewords
from exporter.errors import CodecError
from exporter.in_order import in_order

R = TypeVar("R")
Codec = Literal["auto", "smallest", "lzw", "base3", "raw"]
Levels = npt.NDArray[np.int8]

# What a codec must save over a faster one, as a share of the blob. Raw levels are multiplied where
# they lie: what is coded needs the memory of both forms, or the time to decode it for every
# product. Phrases take ten times as long as raw levels; base-3 rows, that meet a token as they are,
# twice at most. Phrases save 6 % over them where half of the levels are zeros.
GAINS = {("raw", "base3"): 0.125, ("raw", "lzw"): 0.25, ("base3", "lzw"): 0.05}
# The levels of a block; at least one row. Some blocks are in work at once (exporter.in_order), and
# most matrices have several.
BLOCK_BYTES = 1 << 21


@dataclass(frozen=True)
class EncodedTensor:
    """A TQLZ blob and what is known about it.

    The entropy is of order 0, in bits per level.
    """

    header: Header
    blob: npt.NDArray[np.uint8]
    codec: Literal["lzw", "base3", "raw"]
    entropy_bits: float
    zeros: float  # share of the levels
    levels_crc32: int
    # The size of every candidate considered, in bytes, such as {"raw2": ..., "lzw": ...}.
    sizes_bytes: dict[str, int]

    @property
    def code_bits(self) -> int:
        """Bits per level (raw), of the longest codeword (lzw) or per five levels (base3)."""
        return self.header.code_bits

    @property
    def cap(self) -> int:
        """Largest number of levels in a phrase or a byte; 0 for raw."""
        return self.header.cap

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the whole blob: header, tables, payload and padding."""
        return self.blob.nbytes * 8 / (self.header.rows * self.header.cols)


@dataclass(frozen=True)
class Candidate:
    """A way to code the tensor, with the header it would have.

    `dictionary` is None for raw and base-3.
    """

    header: Header
    dictionary: Dictionary | None = None

    @property
    def codec(self) -> Literal["lzw", "base3", "raw"]:
        """The codec's name."""
        names: dict[CodecId, Literal["lzw", "base3", "raw"]] = {
            CodecId.RAW: "raw",
            CodecId.LZW: "lzw",
            CodecId.BASE3: "base3",
        }
        return names[self.header.codec]

    @property
    def name(self) -> str:
        """The codec's name, for raw with its width, such as `raw4`."""
        return f"raw{self.header.code_bits}" if self.codec == "raw" else self.codec

    @property
    def n_bytes(self) -> int:
        """Size of the blob, in bytes."""
        return self.header.layout.total_bytes


def encode(
    levels: Levels, level_min: int, n_levels: int, codec: Codec = "auto", path: Path | None = None
) -> EncodedTensor:
    """Codes `levels`, int8 [rows, cols], of the alphabet level_min to level_min + n_levels - 1.

    `smallest` goes by exact size alone; `auto` takes a faster one where that saves little (`gain`);
    the other names force one. With a `path` the blob is written there and memory-mapped, else it is
    in memory. It has been decoded again and compared when this returns. Everything is done in
    blocks of rows, so besides the blob little memory is used however large the matrix is, and of
    memory-mapped levels only a block is resident.
    """
    if levels.dtype != np.int8 or levels.ndim != 2:
        raise CodecError(
            "BAD_ARGUMENT",
            f"got levels {levels.dtype} {list(levels.shape)}, expected int8 [rows, cols]",
        )
    counts, levels_crc32 = _count(levels, level_min, n_levels)
    candidates = []
    free = codec in ("auto", "smallest")
    if free or codec == "raw":
        candidates.append(_raw_candidate(levels, level_min, n_levels))
    if codec == "base3" or (free and n_levels == 3):
        candidates.append(_base3_candidate(levels, level_min, n_levels))
    floor = entropy_bits(counts) * levels.size / 8  # bytes that no dictionary passes
    if codec == "lzw" or (free and floor < _most_bytes(candidates, codec)):
        candidates.append(_lzw_candidate(levels, _dictionary(levels, level_min, counts)))
    chosen = choose(candidates, codec)
    blob, header = _write(levels, chosen, path)
    verify(blob, levels)
    return EncodedTensor(
        header=header,
        blob=blob,
        codec=chosen.codec,
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


def gain(codec: Codec, faster: str, slower: str) -> float:
    """What a slower codec must save over a faster one, as a share of the blob."""
    return GAINS[faster, slower] if codec == "auto" else 0.0


def choose(candidates: list[Candidate], codec: Codec = "auto") -> Candidate:
    """The smallest candidate, or with `auto` a faster one that is not much larger.

    The candidates come in order of speed, the fastest first.
    """
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate.n_bytes < best.n_bytes * (1 - gain(codec, best.codec, candidate.codec)):
            best = candidate
    return best


def _most_bytes(candidates: list[Candidate], codec: Codec) -> float:
    """Size at which an lzw blob would still be chosen over these."""
    best = choose(candidates, codec)
    return best.n_bytes * (1 - gain(codec, best.codec, "lzw"))


def zero_share(counts: npt.NDArray[np.integer], level_min: int) -> float:
    """Share of zeros among levels that occur `counts` times, from level_min up."""
    return float(counts[-level_min] / counts.sum()) if 0 <= -level_min < len(counts) else 0.0


def verify(blob: npt.NDArray[np.uint8], levels: Levels) -> None:
    """Decodes the blob with the native decoder and compares it with `levels`.

    Raises `CodecError` where they differ.
    """
    with native_tensor.NativeTensor(blob) as tensor:

        def differs(begin: int, block: Levels) -> bool:
            return not np.array_equal(tensor.decode_rows(begin, begin + len(block)), block)

        with closing(_each_block(levels, differs)) as blocks:  # before the tensor that threads read
            for begin, block, wrong in blocks:
                if wrong:
                    raise CodecError(
                        "BAD_LEVEL",
                        f"rows {begin} to {begin + len(block)} do not decode to what was coded",
                        hint="report this as a bug",
                    )
                release(blob)


def release(*arrays: npt.NDArray[Any]) -> None:
    """Lets go of the pages of memory-mapped files, which count as memory of this process.

    Reading brings them back.
    """
    for array in arrays:
        if isinstance(array, np.memmap):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def _each_block(
    levels: Levels, work: Callable[[int, Levels], R]
) -> Generator[tuple[int, Levels, R], None, None]:
    """The first row of each block, its levels, and what `work` makes of both.

    The levels are contiguous, and few enough to work on without much memory.
    """
    rows, cols = levels.shape
    step = max(1, BLOCK_BYTES // cols)

    def one(begin: int) -> tuple[int, Levels, R]:
        block = np.ascontiguousarray(levels[begin : begin + step])
        return begin, block, work(begin, block)

    with closing(in_order(range(0, rows, step), one)) as blocks:
        for done in blocks:
            yield done
            release(levels)


def _count(levels: Levels, level_min: int, n_levels: int) -> tuple[npt.NDArray[np.uint64], int]:
    """Number of times each level of the alphabet occurs, [n_levels], and the CRC-32 of all levels.

    Raises `BAD_LEVEL` for levels outside the alphabet.
    """

    def count(_: int, block: Levels) -> npt.NDArray[np.uint64]:
        return native_encoder.count_levels(block)

    all_counts, crc = np.zeros(256, np.uint64), 0
    for _, block, its_counts in _each_block(levels, count):
        all_counts += its_counts
        crc = native.crc32(block, crc)
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
    """The candidate that packs the levels with the least bits.

    Raises CodecError for a shape or an alphabet that the format cannot hold.
    """
    rows, cols = levels.shape
    code_bits = next((bits for bits in RAW_CODE_BITS if n_levels <= 2**bits), RAW_CODE_BITS[-1])
    payload_bytes = rows * packed_bytes(cols, code_bits)
    header = Header(CodecId.RAW, code_bits, 0, level_min, n_levels, rows, cols, 0, payload_bytes)
    header.check()
    return Candidate(header)


def _base3_candidate(levels: Levels, level_min: int, n_levels: int) -> Candidate:
    """The candidate that packs five levels of three into a byte."""
    rows, cols = levels.shape
    payload_bytes = rows * -(-cols // BASE3_DIGITS)
    header = Header(
        CodecId.BASE3, 8, BASE3_DIGITS, level_min, n_levels, rows, cols, 0, payload_bytes
    )
    header.check()
    return Candidate(header)


def _dictionary(levels: Levels, level_min: int, counts: npt.NDArray[np.uint64]) -> Dictionary:
    """The dictionary for `levels`, which occur `counts` times.

    The tree follows from the counts, the codewords from the phrases that a parse finds.
    """
    tree = best_tree(counts, level_min)

    def count(_: int, block: Levels) -> npt.NDArray[np.uint64]:
        return native_encoder.count_phrases(block, tree)

    found = sum(its_counts for _, _, its_counts in _each_block(levels, count))
    return with_codewords(tree, np.asarray(found))


def _lzw_candidate(levels: Levels, dictionary: Dictionary) -> Candidate:
    """The candidate with a dictionary.

    All rows are parsed to know its exact size, without keeping the codewords.
    """

    def measure(_: int, block: Levels) -> npt.NDArray[np.uint32]:
        return native_encoder.encode_lzw(block, dictionary, count_only=True)[0]

    rows, cols = levels.shape
    row_bytes = np.concatenate([sizes for _, _, sizes in _each_block(levels, measure)])
    d = dictionary
    header = Header(
        *(CodecId.LZW, LZW_CODE_BITS, d.cap, d.level_min, d.n_levels, rows, cols, d.n_entries),
        payload_bytes=int(row_bytes.sum(dtype=np.int64)),
        core_first=d.core_first,
        n_core=d.n_core,
        index_bytes=len(pack_index(row_bytes)),
    )
    header.check()
    return Candidate(header, dictionary)


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
    """Writes a blob to a file; returns its sealed header.

    The payload goes first, block by block, then what precedes it: the row index is not known
    earlier.
    """
    header, dictionary = chosen.header, chosen.dictionary
    layout = header.layout
    row_bytes = np.zeros(header.rows, np.uint32)
    payload_crc32 = 0

    def code(begin: int, block: Levels) -> npt.NDArray[np.uint8]:
        if dictionary is not None:
            sizes, part = native_encoder.encode_lzw(block, dictionary)
            row_bytes[begin : begin + len(block)] = sizes
            return part
        if header.codec == CodecId.BASE3:
            return native_encoder.encode_base3(block, header.level_min)
        return native_encoder.encode_raw(block, header.level_min, header.n_levels, header.code_bits)

    file.seek(layout.payload_offset)
    for _, _, part in _each_block(levels, code):
        payload_crc32 = native.crc32(part, payload_crc32)
        file.write(part.data)
    file.write(bytes(layout.total_bytes - file.tell()))
    head = np.zeros(layout.payload_offset, np.uint8)
    if dictionary is not None:
        write_tables(head, header, dictionary.to_bytes(), pack_index(row_bytes))
    sealed = seal(head, header, payload_crc32)
    file.seek(0)
    file.write(head.data)
    return sealed

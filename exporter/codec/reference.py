"""A slow decoder in the order of FORMAT.md, for reading beside it.

It shares no code with the native decoder.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from exporter.codec.dictionary import Dictionary, Phrase
from exporter.codec.format import (
    BASE3_BLOCK_BYTES,
    BASE3_DIGITS,
    HEADER_BYTES,
    MAX_DELTA_BITS,
    TILE_ROWS,
    BytesLike,
    CodecId,
    Header,
    as_view,
    packed_bytes,
    packed_row_bytes,
)
from exporter.errors import CodecError

Levels = npt.NDArray[np.int8]
Codes = npt.NDArray[np.int64]


def decode(blob: BytesLike, *, verify: bool = True) -> Levels:
    """The levels of a TQLZ blob, int8 [rows, cols].

    Raises `CodecError` with the status of the first violation. `verify=False` leaves out the
    payload's CRC, as a decoder does that opens a mapped file without reading it all.
    """
    view = as_view(blob)
    header = Header.parse(view)  # sections 1 and 2; checks 1 to 10
    check_length(header, view)  # check 11
    check_tables_crc(header, view)  # check 12
    dictionary = read_dictionary(header, view)  # section 3, check 13
    row_bytes = read_index(header, view)  # section 4, check 14
    check_gaps(header, view)  # check 15
    payload = view[header.layout.payload_offset :][: header.payload_bytes]
    if verify:
        check_payload_crc(header, payload)  # check 16
    if dictionary is not None:
        return decode_lzw(header, dictionary, row_bytes, payload)  # section 5, checks 17, 18 and 20
    if header.codec == CodecId.BASE3:
        return decode_base3(header, payload)  # section 5, checks 19 and 20
    return decode_raw(header, payload)  # section 5, checks 17 and 20


def check_length(header: Header, view: memoryview) -> None:
    """Checks that the bytes at hand hold the whole blob.

    Every length that is read later is bounded by this one.
    """
    if len(view) < header.layout.total_bytes:
        raise CodecError(
            "TRUNCATED", f"got {len(view)} bytes, expected {header.layout.total_bytes}"
        )


def check_tables_crc(header: Header, view: memoryview) -> None:
    """Checks the CRC over dictionary and index, with the gaps after them."""
    crc = zlib.crc32(view[HEADER_BYTES : header.layout.payload_offset])
    if crc != header.tables_crc32:
        raise CodecError(
            "BAD_TABLES_CRC", f"the header says {header.tables_crc32:08x}, the bytes give {crc:08x}"
        )


def read_dictionary(header: Header, view: memoryview) -> Dictionary | None:
    """The dictionary of a blob (section 3); None where there is none."""
    if header.codec != CodecId.LZW:
        return None
    layout = header.layout
    return Dictionary.from_bytes(
        bytes(view[layout.dictionary_offset :][: layout.dictionary_bytes]),
        level_min=header.level_min,
        n_levels=header.n_levels,
        core_first=header.core_first,
        n_core=header.n_core,
        cap=header.cap,
        n_entries=header.n_entries,
    )


def read_index(header: Header, view: memoryview) -> list[int]:
    """Number of bytes of each row (section 4); empty where there is no index."""
    if header.codec != CodecId.LZW:
        return []
    index = bytes(view[header.layout.index_offset :][: header.index_bytes])
    row_bytes: list[int] = []
    at = 0
    for tile in range(header.n_tiles):
        head = int.from_bytes(index[at : at + 4], "little")
        shortest, width = head & 0xFFFFFF, head >> 24
        at += 4 + 4 * width
        if shortest == 0 or width > MAX_DELTA_BITS or at > len(index):
            raise CodecError(
                "BAD_INDEX", f"tile {tile}: got a shortest row of {shortest} bytes, {width} bits"
            )
        deltas = int.from_bytes(index[at - 4 * width : at], "little")
        sizes = [
            shortest + (deltas >> (row * width) & ((1 << width) - 1)) for row in range(TILE_ROWS)
        ]
        n_rows = min(TILE_ROWS, header.rows - tile * TILE_ROWS)
        if any(size != shortest for size in sizes[n_rows:]):
            raise CodecError("BAD_INDEX", f"tile {tile}: a row past the last one has a delta")
        row_bytes.extend(sizes[:n_rows])
    if at != len(index):
        raise CodecError("BAD_INDEX", f"the tiles end at {at}, expected {len(index)}")
    if sum(row_bytes) != header.payload_bytes:
        raise CodecError(
            "BAD_INDEX",
            f"the rows end at {sum(row_bytes)}, expected payload_bytes {header.payload_bytes}",
        )
    return row_bytes


def check_gaps(header: Header, view: memoryview) -> None:
    """Checks that what lies between and after the sections is zero."""
    layout = header.layout
    gaps = (
        (layout.dictionary_offset + layout.dictionary_bytes, layout.index_offset),
        (layout.index_offset + layout.index_bytes, layout.payload_offset),
        (layout.payload_offset + layout.payload_bytes, layout.total_bytes),
    )
    for start, end in gaps:
        if any(view[start:end]):
            raise CodecError(
                "BAD_PADDING", f"got a byte that is not zero between bytes {start} and {end}"
            )


def check_payload_crc(header: Header, payload: memoryview) -> None:
    """Checks the CRC over the codewords or packed levels."""
    crc = zlib.crc32(payload)
    if crc != header.payload_crc32:
        raise CodecError(
            "BAD_PAYLOAD_CRC",
            f"the header says {header.payload_crc32:08x}, the bytes give {crc:08x}",
        )


def decode_raw(header: Header, payload: memoryview) -> Levels:
    """The levels of a raw payload, int8 [rows, cols] (section 5)."""
    levels = np.zeros((header.rows, header.cols), np.int8)
    row_bytes = packed_bytes(header.cols, header.code_bits)
    for row in range(header.rows):
        values, rest = unpack(
            bytes(payload[row * row_bytes :][:row_bytes]), header.cols, header.code_bits
        )
        for at in np.flatnonzero(values >= header.n_levels)[:1]:
            raise CodecError(
                "BAD_LEVEL",
                f"row {row}, column {at}: got value {values[at]}, expected below {header.n_levels}",
            )
        if rest:
            raise CodecError(
                "BAD_PADDING", f"row {row}: the unused bits of its last byte are not zero"
            )
        levels[row] = values + header.level_min
    return levels


def decode_base3(header: Header, payload: memoryview) -> Levels:
    """The levels of a base-3 payload, int8 [rows, cols] (section 5)."""
    levels = np.zeros((header.rows, header.cols), np.int8)
    row_bytes = packed_row_bytes(header.codec, header.code_bits, header.cols)
    for row in range(header.rows):
        packed = bytes(payload[row * row_bytes :][:row_bytes])
        joined: list[int] = []
        for at in range(0, row_bytes, BASE3_BLOCK_BYTES):
            block = [base3_digits(byte, row) for byte in packed[at : at + BASE3_BLOCK_BYTES]]
            joined.extend(digits[place] for place in range(BASE3_DIGITS) for digits in block)
        if any(joined[header.cols :]):
            raise CodecError("BAD_PADDING", f"row {row}: a digit past its last level is not zero")
        levels[row] = np.array(joined[: header.cols]) + header.level_min
    return levels


def base3_digits(byte: int, row: int) -> list[int]:
    """The five digits that a byte stands for, the highest first."""
    digits = []
    for _ in range(BASE3_DIGITS):
        digits.append(byte * 3 // 256)
        byte = byte * 3 % 256
    if byte >= 3**BASE3_DIGITS:
        raise CodecError("BAD_CODE", f"row {row}: a byte leaves {byte}, expected below 243")
    return digits


def decode_lzw(
    header: Header, dictionary: Dictionary, row_bytes: list[int], payload: memoryview
) -> Levels:
    """The levels of an lzw payload, int8 [rows, cols] (section 5)."""
    phrases, entries = dictionary.phrases(), dictionary.codewords()
    levels = np.zeros((header.rows, header.cols), np.int8)
    start = 0
    for row, n_bytes in enumerate(row_bytes):
        stream = Bits(bytes(payload[start : start + n_bytes]))
        levels[row] = decode_lzw_row(header, phrases, entries, stream, row)
        start += n_bytes
    return levels


class Bits:
    """The bits of a row, from the lowest of its first byte."""

    def __init__(self, packed: bytes) -> None:
        self.bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").tolist()
        self.at = 0

    def next(self) -> int:
        """The next bit; zero past the end, where `at` tells that the row is too short."""
        self.at += 1
        return self.bits[self.at - 1] if self.at <= len(self.bits) else 0


def decode_lzw_row(
    header: Header,
    phrases: list[Phrase],
    entries: dict[tuple[int, int], int],
    stream: Bits,
    row: int,
) -> list[int]:
    """The levels of one row.

    What the last phrase has beyond the row's end is dropped.
    """
    joined: list[int] = []
    while len(joined) < header.cols and stream.at < len(stream.bits):
        bits, value = 1, stream.next()
        while (bits, value) not in entries:
            bits, value = bits + 1, value << 1 | stream.next()
        phrase = phrases[entries[bits, value]]
        joined.extend(phrase.levels)
        if phrase.is_escape:
            offset = sum(stream.next() << bit for bit in range(8))
            if offset >= header.n_levels:
                raise CodecError(
                    "BAD_LEVEL",
                    f"row {row}: got level {offset} after an escape, "
                    f"expected below {header.n_levels}",
                )
            joined.append(header.level_min + offset)
    if len(joined) < header.cols or packed_bytes(stream.at, 1) * 8 != len(stream.bits):
        raise CodecError(
            "BAD_ROW_LENGTH",
            f"row {row}: got {len(joined)} levels in {stream.at} bits, expected {header.cols} in "
            f"{len(stream.bits)}",
        )
    if any(stream.bits[stream.at :]):
        raise CodecError("BAD_PADDING", f"row {row}: the unused bits of its last byte are not zero")
    return joined[: header.cols]


def unpack(packed: bytes, n: int, bits: int) -> tuple[Codes, bool]:
    """The first `n` fields of `bits` bits, and whether bits are set after them.

    The first field is in the lowest bits.
    """
    stream = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    fields = stream[: n * bits].reshape(n, bits).astype(np.int64)
    return fields @ (1 << np.arange(bits)), bool(stream[n * bits :].any())

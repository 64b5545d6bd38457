"""A slow decoder in the order of FORMAT.md, for reading beside it.

It shares no code with the native decoder.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from exporter.codec.dictionary import Dictionary
from exporter.codec.format import (
    HEADER_BYTES,
    TILE_ROWS,
    BytesLike,
    CodecId,
    Header,
    as_view,
    packed_bytes,
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
    row_codes = read_index(header, view)  # section 4, check 14
    check_gaps(header, view)  # check 15
    payload = view[header.layout.payload_offset :][: header.payload_bytes]
    if verify:
        check_payload_crc(header, payload)  # check 16
    if dictionary is None:
        return decode_raw(header, payload)  # section 5, checks 19 and 20
    return decode_lzw(header, dictionary, row_codes, payload)  # section 5, checks 17, 18 and 20


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
    """The dictionary of a blob (section 3); None for raw."""
    if header.codec == CodecId.RAW:
        return None
    layout = header.layout
    return Dictionary.from_bits(
        bytes(view[layout.dictionary_offset :][: layout.dictionary_bytes]),
        level_min=header.level_min,
        n_levels=header.n_levels,
        code_bits=header.code_bits,
        cap=header.cap,
        n_entries=header.n_entries,
    )


def read_index(header: Header, view: memoryview) -> Codes:
    """Number of codewords of each row, [rows] (section 4); empty for raw."""
    if header.codec == CodecId.RAW:
        return np.zeros(0, np.int64)
    section = view[header.layout.index_offset :][: header.layout.index_bytes]
    tile_offsets = np.frombuffer(section, "<u4", header.n_tiles).astype(np.int64)
    row_codes = np.frombuffer(section, "<u2", header.rows, 4 * header.n_tiles).astype(np.int64)
    for row in np.flatnonzero((row_codes < 1) | (row_codes > header.cols))[:1]:
        raise CodecError(
            "BAD_INDEX", f"row {row}: got {row_codes[row]} codewords, expected 1 to {header.cols}"
        )
    ends = np.cumsum((row_codes * header.code_bits + 7) // 8)
    starts = np.concatenate([[0], ends[:-1]])[::TILE_ROWS]
    for tile in np.flatnonzero(tile_offsets != starts)[:1]:
        raise CodecError(
            "BAD_INDEX", f"tile {tile}: got offset {tile_offsets[tile]}, expected {starts[tile]}"
        )
    if ends[-1] != header.payload_bytes:
        raise CodecError(
            "BAD_INDEX",
            f"the rows end at {ends[-1]}, expected payload_bytes {header.payload_bytes}",
        )
    return row_codes


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


def decode_lzw(
    header: Header, dictionary: Dictionary, row_codes: Codes, payload: memoryview
) -> Levels:
    """The levels of an lzw payload, int8 [rows, cols] (section 5).

    `row_codes` is [rows].
    """
    phrases = dictionary.phrases()
    levels = np.zeros((header.rows, header.cols), np.int8)
    start = 0
    for row, n_codes in enumerate(row_codes.tolist()):
        end = start + packed_bytes(n_codes, header.code_bits)
        codes, rest = unpack(bytes(payload[start:end]), n_codes, header.code_bits)
        levels[row] = decode_lzw_row(header, phrases, codes, row)
        if rest:
            raise CodecError(
                "BAD_PADDING", f"row {row}: the unused bits of its last byte are not zero"
            )
        start = end
    return levels


def decode_lzw_row(
    header: Header, phrases: list[tuple[int, ...]], codes: Codes, row: int
) -> list[int]:
    """The levels of one row.

    What the last phrase has beyond the row's end is dropped.
    """
    for at in np.flatnonzero(codes >= len(phrases))[:1]:
        raise CodecError(
            "BAD_CODE",
            f"row {row}, codeword {at}: got {codes[at]}, expected below {len(phrases)} entries",
        )
    joined: list[int] = []
    for code in codes.tolist():
        if len(joined) >= header.cols:
            raise CodecError(
                "BAD_ROW_LENGTH", f"row {row}: got codewords after the row's {header.cols} levels"
            )
        joined.extend(phrases[code])
    if len(joined) < header.cols:
        raise CodecError(
            "BAD_ROW_LENGTH", f"row {row}: got {len(joined)} levels, expected {header.cols}"
        )
    return joined[: header.cols]


def unpack(packed: bytes, n: int, bits: int) -> tuple[Codes, bool]:
    """The first `n` fields of `bits` bits, and whether bits are set after them.

    The first field is in the lowest bits.
    """
    stream = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    fields = stream[: n * bits].reshape(n, bits).astype(np.int64)
    return fields @ (1 << np.arange(bits)), bool(stream[n * bits :].any())

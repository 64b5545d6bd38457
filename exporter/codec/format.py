"""The bytes of a TQLZ blob: header and layout (FORMAT.md sections 1, 2 and 6). Nothing else in
Python packs bytes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from exporter.errors import CodecError

BytesLike: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

MAGIC = b"TQLZ"
VERSION = 1
HEADER_BYTES = 64
TILE_ROWS = 32
# There are readable zeros after the payload, so that a decoder may load 8 bytes at any codeword.
TAIL_BYTES = 16
ALIGNMENT = 64

RAW_CODE_BITS = (2, 4, 8)
LZW_CODE_BITS = (8, 12, 16)
LZW_CAPS = (16, 32)

_STRUCT = struct.Struct("<4sHHBBBbHHIIIIQQIIII")
_CRC_OFFSET = 60


class CodecId(IntEnum):
    """How the payload holds the levels."""

    RAW = 0
    LZW = 1


def as_view(blob: BytesLike) -> memoryview:
    """The bytes of `blob`, without a copy."""
    return (blob.data if isinstance(blob, np.ndarray) else memoryview(blob)).cast("B")


def align(n: int, to: int) -> int:
    """The multiple of `to` at or above `n`."""
    return -(-n // to) * to


def packed_bytes(n: int, bits: int) -> int:
    """Bytes that `n` fields of `bits` bits take."""
    return -(-n * bits // 8)


@dataclass(frozen=True)
class Layout:
    """Byte offsets of the sections of a blob. A section of zero bytes lies at the offset of the
    next one."""

    dictionary_offset: int
    dictionary_bytes: int
    index_offset: int
    index_bytes: int
    payload_offset: int
    payload_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Header:
    """The 64 bytes at the start of a blob; the offsets follow from the other fields (`layout`)."""

    codec: CodecId
    code_bits: int
    cap: int
    level_min: int
    n_levels: int
    rows: int
    cols: int
    n_entries: int
    payload_bytes: int
    tables_crc32: int = 0
    payload_crc32: int = 0

    MAX_ROWS: ClassVar[int] = 2**31 - 1
    MAX_COLS: ClassVar[int] = 65535

    @property
    def n_internal(self) -> int:
        """Inner nodes of the dictionary's tree; 0 for raw."""
        return 0 if self.codec == CodecId.RAW else (self.n_entries - 1) // (self.n_levels - 1)

    @property
    def n_tiles(self) -> int:
        """Tiles of 32 rows; the last one may be shorter."""
        return -(-self.rows // TILE_ROWS)

    @property
    def level_max(self) -> int:
        """Largest level of the alphabet."""
        return self.level_min + self.n_levels - 1

    @property
    def layout(self) -> Layout:
        """Where the sections lie (FORMAT.md section 1)."""
        if self.codec == CodecId.RAW:
            dictionary_bytes = index_bytes = 0
        else:
            dictionary_bytes = packed_bytes(self.n_entries + self.n_internal, 1)
            index_bytes = 4 * self.n_tiles + 2 * self.rows
        index_offset = align(HEADER_BYTES + dictionary_bytes, 4)
        payload_offset = align(index_offset + index_bytes, ALIGNMENT)
        total_bytes = align(payload_offset + self.payload_bytes + TAIL_BYTES, ALIGNMENT)
        return Layout(
            HEADER_BYTES,
            dictionary_bytes,
            index_offset,
            index_bytes,
            payload_offset,
            self.payload_bytes,
            total_bytes,
        )

    def pack(self) -> bytes:
        """The header's 64 bytes, sealed with their CRC. Raises `CodecError` for a header no reader
        would take."""
        self.check()
        sealed = _STRUCT.pack(
            *(
                MAGIC,
                VERSION,
                HEADER_BYTES,
                self.codec,
                self.code_bits,
                self.cap,
                self.level_min,
                self.n_levels,
                0,
            ),
            *(
                self.rows,
                self.cols,
                self.n_entries,
                0,
                self.layout.payload_offset,
                self.payload_bytes,
            ),
            *(self.tables_crc32, self.payload_crc32, 0, 0),
        )[:_CRC_OFFSET]
        return sealed + struct.pack("<I", zlib.crc32(sealed))

    @classmethod
    def parse(cls, blob: BytesLike) -> Header:
        """Reads and checks the header of `blob`: FORMAT.md section 6, checks 1 to 10."""
        view = as_view(blob)
        if len(view) < HEADER_BYTES:
            raise CodecError(
                "TRUNCATED", f"got {len(view)} bytes, expected a header of {HEADER_BYTES}"
            )
        (
            magic,
            version,
            header_bytes,
            codec,
            code_bits,
            cap,
            level_min,
            n_levels,
            reserved0,
            rows,
            cols,
            n_entries,
            reserved1,
            payload_offset,
            payload_bytes,
            tables_crc32,
            payload_crc32,
            reserved2,
            header_crc32,
        ) = _STRUCT.unpack(view[:HEADER_BYTES])
        _check_identity(magic, version, header_bytes)
        crc = zlib.crc32(view[:_CRC_OFFSET])
        if crc != header_crc32:
            raise CodecError(
                "BAD_HEADER_CRC", f"the header says {header_crc32:08x}, its bytes give {crc:08x}"
            )
        for offset, value in ((14, reserved0), (28, reserved1), (56, reserved2)):
            if value:
                raise CodecError(
                    "BAD_RESERVED",
                    f"got {value} in the reserved field at byte {offset}, expected 0",
                )
        if codec not in (CodecId.RAW, CodecId.LZW):
            raise CodecError("BAD_CODEC", f"got codec {codec}, expected 0 (raw) or 1 (lzw)")
        header = cls(
            *(CodecId(codec), code_bits, cap, level_min, n_levels, rows, cols, n_entries),
            *(payload_bytes, tables_crc32, payload_crc32),
        )
        header.check()
        if payload_offset != header.layout.payload_offset:
            raise CodecError(
                "BAD_SECTION",
                f"got payload_offset {payload_offset}, expected {header.layout.payload_offset}",
            )
        return header

    def check(self) -> None:
        """Checks 6 to 10 of FORMAT.md section 6, as far as the fields kept here can violate
        them."""
        self._check_codec()
        self._check_alphabet()
        if not 1 <= self.rows <= self.MAX_ROWS:
            raise CodecError("BAD_SHAPE", f"got {self.rows} rows, expected 1 to {self.MAX_ROWS}")
        if not 1 <= self.cols <= self.MAX_COLS:
            raise CodecError("BAD_SHAPE", f"got {self.cols} columns, expected 1 to {self.MAX_COLS}")
        self._check_entries()
        self._check_payload_bytes()

    def _check_codec(self) -> None:
        widths, caps = (
            (RAW_CODE_BITS, (0,)) if self.codec == CodecId.RAW else (LZW_CODE_BITS, LZW_CAPS)
        )
        if self.code_bits not in widths:
            raise CodecError(
                "BAD_CODEC",
                f"got code_bits {self.code_bits}, expected one of {widths} for "
                f"{self.codec.name.lower()}",
            )
        if self.cap not in caps:
            raise CodecError(
                "BAD_CODEC",
                f"got cap {self.cap}, expected one of {caps} for {self.codec.name.lower()}",
            )

    def _check_alphabet(self) -> None:
        if not -128 <= self.level_min <= 127:
            raise CodecError(
                "BAD_ALPHABET", f"got level_min {self.level_min}, expected -128 to 127"
            )
        limit = min(256, 2**self.code_bits, 128 - self.level_min)
        if not 2 <= self.n_levels <= limit:
            raise CodecError(
                "BAD_ALPHABET",
                f"got n_levels {self.n_levels}, expected 2 to {limit} "
                f"for level_min {self.level_min} and {self.code_bits} bits",
            )

    def _check_entries(self) -> None:
        if self.codec == CodecId.RAW:
            if self.n_entries:
                raise CodecError(
                    "BAD_ENTRIES", f"got n_entries {self.n_entries}, expected 0 for raw"
                )
            return
        step = self.n_levels - 1
        if not self.n_levels <= self.n_entries <= 2**self.code_bits or (self.n_entries - 1) % step:
            raise CodecError(
                "BAD_ENTRIES",
                f"got n_entries {self.n_entries}, expected {self.n_levels} to {2**self.code_bits} "
                f"and one more than a multiple of {step}",
            )

    def _check_payload_bytes(self) -> None:
        if self.codec == CodecId.RAW:
            expected = self.rows * packed_bytes(self.cols, self.code_bits)
            if self.payload_bytes != expected:
                raise CodecError(
                    "BAD_SECTION", f"got payload_bytes {self.payload_bytes}, expected {expected}"
                )
        elif not 0 <= self.payload_bytes < 2**32:
            raise CodecError(
                "BAD_SECTION", f"got payload_bytes {self.payload_bytes}, expected less than 2^32"
            )


def _check_identity(magic: bytes, version: int, header_bytes: int) -> None:
    if magic != MAGIC:
        raise CodecError(
            "BAD_MAGIC",
            f"got {magic!r}, expected {MAGIC!r}",
            hint="check that the file is a TQLZ blob",
        )
    if version != VERSION:
        raise CodecError(
            "BAD_VERSION", f"got version {version}, expected {VERSION}", hint="update tinyqmoe"
        )
    if header_bytes != HEADER_BYTES:
        raise CodecError("BAD_VERSION", f"got header_bytes {header_bytes}, expected {HEADER_BYTES}")


def row_ends(row_codes: npt.NDArray[np.integer], code_bits: int) -> npt.NDArray[np.int64]:
    """Payload offset at which each row of `row_codes` codewords ends; row_codes: [rows]."""
    return np.cumsum((row_codes.astype(np.int64) * code_bits + 7) // 8)


def new_blob(header: Header) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A blob of zeros for `header`, uint8 [total_bytes], and the part of it that takes the
    payload."""
    layout = header.layout
    blob = np.zeros(layout.total_bytes, np.uint8)
    return blob, blob[layout.payload_offset :][: layout.payload_bytes]


def write_tables(
    blob: npt.NDArray[np.uint8],
    header: Header,
    dictionary_bits: bytes,
    row_codes: npt.NDArray[np.integer],
) -> None:
    """Writes the dictionary and the row index (FORMAT.md sections 3 and 4); row_codes: [rows]."""
    layout = header.layout
    ends = row_ends(row_codes, header.code_bits)
    tile_offsets = np.concatenate([[0], ends[:-1]])[::TILE_ROWS]
    index = tile_offsets.astype("<u4").tobytes() + row_codes.astype("<u2").tobytes()
    blob[layout.dictionary_offset :][: layout.dictionary_bytes] = np.frombuffer(
        dictionary_bits, np.uint8
    )
    blob[layout.index_offset :][: layout.index_bytes] = np.frombuffer(index, np.uint8)


def seal(blob: npt.NDArray[np.uint8], header: Header, payload_crc32: int | None = None) -> Header:
    """Writes the header of a blob that is otherwise complete; the header returned holds the CRCs.

    With the CRC of the payload given, `blob` may end where the payload begins.
    """
    layout = header.layout
    if payload_crc32 is None:
        payload_crc32 = zlib.crc32(blob[layout.payload_offset :][: layout.payload_bytes].data)
    tables_crc32 = zlib.crc32(blob[HEADER_BYTES : layout.payload_offset].data)
    sealed = replace(header, tables_crc32=tables_crc32, payload_crc32=payload_crc32)
    blob[:HEADER_BYTES] = np.frombuffer(sealed.pack(), np.uint8)
    return sealed

"""The bytes of a TQLZ blob: header and layout (FORMAT.md sections 1, 2 and 6).

Nothing else in Python packs bytes.
"""

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
VERSION = 2
HEADER_BYTES = 64
TILE_ROWS = 32
# There are readable zeros after the payload, so that a decoder may load 8 bytes at any codeword.
TAIL_BYTES = 16
ALIGNMENT = 64

RAW_CODE_BITS = (2, 4, 8)
LZW_CODE_BITS = 12  # of the longest codeword
LZW_CAPS = (3, 6, 14)
LZW_MAX_ENTRIES = 256
BASE3_DIGITS = 5  # levels of a byte
BASE3_BLOCK_BYTES = 32
MAX_DELTA_BITS = 24  # in the row index

_STRUCT = struct.Struct("<4sHHBBBbHHIIIHHQQIIII")
_CRC_OFFSET = 60


class CodecId(IntEnum):
    """The way in which the payload holds the levels."""

    RAW = 0
    LZW = 1
    BASE3 = 2


def as_view(blob: BytesLike) -> memoryview:
    """The bytes of `blob`, without a copy."""
    return (blob.data if isinstance(blob, np.ndarray) else memoryview(blob)).cast("B")


def align(n: int, to: int) -> int:
    """The multiple of `to` at or above `n`."""
    return -(-n // to) * to


def packed_bytes(n: int, bits: int) -> int:
    """Number of bytes that `n` fields of `bits` bits take."""
    return -(-n * bits // 8)


@dataclass(frozen=True)
class Layout:
    """Byte offsets of the sections of a blob.

    A section of zero bytes lies at the offset of the next one.
    """

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
    core_first: int = 0
    n_core: int = 0
    index_bytes: int = 0
    tables_crc32: int = 0
    payload_crc32: int = 0

    MAX_ROWS: ClassVar[int] = 2**31 - 1
    MAX_COLS: ClassVar[int] = 65535

    @property
    def n_nodes(self) -> int:
        """Number of nodes of the dictionary's tree; 0 where there is none."""
        if self.codec != CodecId.LZW:
            return 0
        n_children = self.n_core + (self.n_core < self.n_levels)
        return self.n_entries + (self.n_entries - 1) // (n_children - 1)

    @property
    def n_tiles(self) -> int:
        """Number of tiles of 32 rows; the last one may be shorter."""
        return -(-self.rows // TILE_ROWS)

    @property
    def level_max(self) -> int:
        """Largest level of the alphabet."""
        return self.level_min + self.n_levels - 1

    @property
    def layout(self) -> Layout:
        """The places of the sections (FORMAT.md section 1)."""
        dictionary_bytes = packed_bytes(self.n_nodes, 1) + packed_bytes(self.n_entries, 4)
        index_offset = align(HEADER_BYTES + dictionary_bytes, 4)
        payload_offset = align(index_offset + self.index_bytes, ALIGNMENT)
        total_bytes = align(payload_offset + self.payload_bytes + TAIL_BYTES, ALIGNMENT)
        return Layout(
            HEADER_BYTES,
            dictionary_bytes,
            index_offset,
            self.index_bytes,
            payload_offset,
            self.payload_bytes,
            total_bytes,
        )

    def pack(self) -> bytes:
        """The header's 64 bytes, sealed with their CRC.

        Raises `CodecError` for a header that no reader would take.
        """
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
                self.n_core,
            ),
            *(
                self.rows,
                self.cols,
                self.n_entries,
                self.core_first,
                0,
                self.layout.payload_offset,
                self.payload_bytes,
            ),
            *(self.tables_crc32, self.payload_crc32, self.index_bytes, 0),
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
            n_core,
            rows,
            cols,
            n_entries,
            core_first,
            reserved,
            payload_offset,
            payload_bytes,
            tables_crc32,
            payload_crc32,
            index_bytes,
            header_crc32,
        ) = _STRUCT.unpack(view[:HEADER_BYTES])
        _check_identity(magic, version, header_bytes)
        crc = zlib.crc32(view[:_CRC_OFFSET])
        if crc != header_crc32:
            raise CodecError(
                "BAD_HEADER_CRC", f"the header says {header_crc32:08x}, its bytes give {crc:08x}"
            )
        if reserved:
            raise CodecError(
                "BAD_RESERVED", f"got {reserved} in the reserved field at byte 30, expected 0"
            )
        if codec not in tuple(CodecId):
            raise CodecError(
                "BAD_CODEC", f"got codec {codec}, expected 0 (raw), 1 (lzw) or 2 (base3)"
            )
        header = cls(
            *(CodecId(codec), code_bits, cap, level_min, n_levels, rows, cols, n_entries),
            *(payload_bytes, core_first, n_core, index_bytes, tables_crc32, payload_crc32),
        )
        header.check()
        if payload_offset != header.layout.payload_offset:
            raise CodecError(
                "BAD_SECTION",
                f"got payload_offset {payload_offset}, expected {header.layout.payload_offset}",
            )
        return header

    def check(self) -> None:
        """Checks 6 to 10 of FORMAT.md section 6, as far as the fields kept here can violate them.

        Raises `CodecError` at the first violation.
        """
        self._check_codec()
        self._check_alphabet()
        if not 1 <= self.rows <= self.MAX_ROWS:
            raise CodecError("BAD_SHAPE", f"got {self.rows} rows, expected 1 to {self.MAX_ROWS}")
        if not 1 <= self.cols <= self.MAX_COLS:
            raise CodecError("BAD_SHAPE", f"got {self.cols} columns, expected 1 to {self.MAX_COLS}")
        self._check_entries()
        self._check_sections()

    def _check_codec(self) -> None:
        widths, caps = {
            CodecId.RAW: (RAW_CODE_BITS, (0,)),
            CodecId.LZW: ((LZW_CODE_BITS,), LZW_CAPS),
            CodecId.BASE3: ((8,), (BASE3_DIGITS,)),
        }[self.codec]
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
        fewest, most = (3, 3) if self.codec == CodecId.BASE3 else (2, 256)
        if self.codec == CodecId.RAW:
            most = 2**self.code_bits
        most = min(most, 128 - self.level_min)
        if not fewest <= self.n_levels <= most:
            raise CodecError(
                "BAD_ALPHABET",
                f"got n_levels {self.n_levels}, expected {fewest} to {most} "
                f"for level_min {self.level_min} and {self.codec.name.lower()}",
            )
        if self.codec != CodecId.LZW:
            if self.core_first or self.n_core:
                raise CodecError(
                    "BAD_ALPHABET", f"got a core of {self.n_core} levels, expected none"
                )
        elif not 1 <= self.n_core <= self.n_levels - self.core_first:
            raise CodecError(
                "BAD_ALPHABET",
                f"got a core of {self.n_core} levels from offset {self.core_first}, "
                f"expected 1 to {self.n_levels - self.core_first}",
            )

    def _check_entries(self) -> None:
        if self.codec != CodecId.LZW:
            if self.n_entries:
                raise CodecError("BAD_ENTRIES", f"got n_entries {self.n_entries}, expected 0")
            return
        n_children = self.n_core + (self.n_core < self.n_levels)
        step = n_children - 1
        if not n_children <= self.n_entries <= LZW_MAX_ENTRIES or (self.n_entries - 1) % step:
            raise CodecError(
                "BAD_ENTRIES",
                f"got n_entries {self.n_entries}, expected {n_children} to {LZW_MAX_ENTRIES} "
                f"and one more than a multiple of {step}",
            )

    def _check_sections(self) -> None:
        if self.codec == CodecId.LZW:
            if not self.rows <= self.payload_bytes < 2**32:
                raise CodecError(
                    "BAD_SECTION",
                    f"got payload_bytes {self.payload_bytes}, expected at least {self.rows} rows "
                    "and less than 2^32",
                )
            if self.index_bytes % 4 or self.index_bytes < 4 * self.n_tiles:
                raise CodecError(
                    "BAD_SECTION",
                    f"got index_bytes {self.index_bytes}, expected a multiple of 4 and at least "
                    f"{4 * self.n_tiles}",
                )
            return
        expected = self.rows * packed_row_bytes(self.codec, self.code_bits, self.cols)
        if self.payload_bytes != expected:
            raise CodecError(
                "BAD_SECTION", f"got payload_bytes {self.payload_bytes}, expected {expected}"
            )
        if self.index_bytes:
            raise CodecError("BAD_SECTION", f"got index_bytes {self.index_bytes}, expected 0")


def packed_row_bytes(codec: CodecId, code_bits: int, cols: int) -> int:
    """Number of bytes of a raw or base-3 row."""
    return -(-cols // BASE3_DIGITS) if codec == CodecId.BASE3 else packed_bytes(cols, code_bits)


def _check_identity(magic: bytes, version: int, header_bytes: int) -> None:
    if magic != MAGIC:
        raise CodecError(
            "BAD_MAGIC",
            f"got {magic!r}, expected {MAGIC!r}",
            hint="check that the file is a TQLZ blob",
        )
    if version != VERSION:
        raise CodecError(
            "BAD_VERSION",
            f"got version {version}, expected {VERSION}",
            hint="export the model again" if version < VERSION else "update tinyqmoe",
        )
    if header_bytes != HEADER_BYTES:
        raise CodecError("BAD_VERSION", f"got header_bytes {header_bytes}, expected {HEADER_BYTES}")


def pack_index(row_bytes: npt.NDArray[np.integer]) -> bytes:
    """The row index of rows of these sizes in bytes, [rows] (FORMAT.md section 4)."""
    index = bytearray()
    for first in range(0, len(row_bytes), TILE_ROWS):
        sizes = row_bytes[first : first + TILE_ROWS].astype(np.int64)
        shortest = int(sizes.min())
        width = int(sizes.max() - shortest).bit_length()
        index += (shortest | width << 24).to_bytes(4, "little")
        packed = sum(int(size - shortest) << (row * width) for row, size in enumerate(sizes))
        index += packed.to_bytes(4 * width, "little")
    return bytes(index)


def new_blob(header: Header) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A blob of zeros for `header`, uint8 [total_bytes], and the part of it for the payload."""
    layout = header.layout
    blob = np.zeros(layout.total_bytes, np.uint8)
    return blob, blob[layout.payload_offset :][: layout.payload_bytes]


def write_tables(
    blob: npt.NDArray[np.uint8], header: Header, dictionary: bytes, index: bytes
) -> None:
    """Writes the dictionary and the row index (FORMAT.md sections 3 and 4)."""
    layout = header.layout
    for offset, section in ((layout.dictionary_offset, dictionary), (layout.index_offset, index)):
        blob[offset:][: len(section)] = np.frombuffer(section, np.uint8)


def seal(blob: npt.NDArray[np.uint8], header: Header, payload_crc32: int | None = None) -> Header:
    """Writes the header of a blob that is otherwise complete.

    The header that is returned holds the CRCs. With the CRC of the payload given, `blob` may end
    where the payload begins.
    """
    layout = header.layout
    if payload_crc32 is None:
        payload_crc32 = zlib.crc32(blob[layout.payload_offset :][: layout.payload_bytes].data)
    tables_crc32 = zlib.crc32(blob[HEADER_BYTES : layout.payload_offset].data)
    sealed = replace(header, tables_crc32=tables_crc32, payload_crc32=payload_crc32)
    blob[:HEADER_BYTES] = np.frombuffer(sealed.pack(), np.uint8)
    return sealed

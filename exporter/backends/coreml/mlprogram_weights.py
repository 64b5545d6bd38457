"""The weight files of an ML Program: where each constant lies, and their coded form."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from exporter.backends.coreml import mlpackage
from exporter.codec.weight_file import Piece, WeightFile, sha256_of
from exporter.encoded import EncodedMatrix
from exporter.errors import UsageError

if TYPE_CHECKING:
    pass


# A weight file as coremltools' MILBlob writes it: a header; then at multiples of 64 what each blob
# is, and its data.
ALIGNMENT, SENTINEL, STORAGE_VERSION = 64, 0xDEADBEEF, 2


# The number and the bits of each type, as coremltools' MILBlob has them.
BLOB_TYPES = {
    "float16": (1, 16),
    "float32": (2, 32),
    "int8": (4, 8),
    "int4": (8, 4),
    "uint2": (10, 2),
    "int32": (14, 32),
}


@dataclass(frozen=True)
class WeightBlob:
    """A constant of a weight file: literal bytes, or a matrix. Its description is at `offset`, its
    data 64 further."""

    key: str
    kind: str
    n_elements: int
    n_bytes: int
    offset: int
    source: bytes | EncodedMatrix


class BlobLayout:
    """Decides where each constant lies. A constant asked for twice, as by two functions, has one
    place."""

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.files: list[list[WeightBlob]] = []
        self.places: dict[str, tuple[int, WeightBlob]] = {}
        self._end = 0

    def place(
        self, key: str, kind: str, n_elements: int, source: bytes | EncodedMatrix
    ) -> tuple[int, WeightBlob]:
        """The number of the file, and the blob."""
        if key not in self.places:
            n_bytes = -(-n_elements * BLOB_TYPES[kind][1] // 8)
            offset = _aligned(self._end)
            if not self.files or offset + ALIGNMENT + n_bytes > self.chunk_bytes:
                self.files.append([])
                offset = ALIGNMENT
            if offset + ALIGNMENT + n_bytes > self.chunk_bytes:
                what = (
                    f"--chunk-bytes is {self.chunk_bytes:,}, and {key} alone takes "
                    f"{n_bytes + 2 * ALIGNMENT:,}"
                )
                raise UsageError(what, hint="choose larger chunks")
            blob = WeightBlob(key, kind, n_elements, n_bytes, offset, source)
            self.files[-1].append(blob)
            self._end = offset + ALIGNMENT + n_bytes
            self.places[key] = (len(self.files) - 1, blob)
        return self.places[key]


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def weight_file_name(number: int) -> str:
    """`weight.bin`, which is what coremltools calls it; further ones are numbered."""
    return "weight.bin" if number == 0 else f"weight-{number}.bin"


def write_coded(layout: BlobLayout, path: Path) -> list[list[Piece]]:
    """Writes literals and TQLZ blobs one after another; returns of which pieces each weight file is
    made."""
    with path.open("wb") as coded:
        return [_write_coded_file(blobs, coded) for blobs in layout.files]


def _write_coded_file(blobs: list[WeightBlob], coded: BinaryIO) -> list[Piece]:
    pieces: list[Piece] = []
    literal = bytearray(struct.pack("<II56x", len(blobs), STORAGE_VERSION))
    end = len(literal)

    def flush() -> None:
        if literal:
            pieces.append(Piece("bytes", len(literal), coded.tell(), len(literal)))
            coded.write(literal)
            literal.clear()

    for blob in blobs:
        literal += bytes(blob.offset - end)
        kind, bits = BLOB_TYPES[blob.kind]
        data_offset, padding = blob.offset + ALIGNMENT, blob.n_bytes * 8 - blob.n_elements * bits
        literal += struct.pack("<IIQQQ32x", SENTINEL, kind, blob.n_bytes, data_offset, padding)
        end = data_offset + blob.n_bytes
        if isinstance(blob.source, bytes):
            literal += blob.source
            continue
        literal_end = coded.tell() + len(literal)
        flush()
        # A blob's own sections are aligned to 64.
        coded.write(bytes(_aligned(literal_end) - literal_end))
        pieces.append(Piece(blob.kind, blob.n_bytes, coded.tell(), blob.source.blob_bytes))
        with blob.source.blob_path.open("rb") as source:
            shutil.copyfileobj(source, coded, 1 << 20)
    flush()
    return pieces


def recipe_files(
    files: list[list[Piece]], coded_path: Path, progress: Callable[[int, int], None]
) -> list[WeightFile]:
    """Expands the coded file as `tinyqmoe expand` will, for its hashes."""
    coded = np.memmap(coded_path, dtype=np.uint8, mode="r")
    total = sum(piece.n_bytes for pieces in files for piece in pieces)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    return [
        WeightFile(
            path=f"{mlpackage.WEIGHTS_DIR}/{weight_file_name(number)}",
            n_bytes=sum(piece.n_bytes for piece in pieces),
            sha256=sha256_of(coded, pieces, advance),
            pieces=pieces,
        )
        for number, pieces in enumerate(files)
    ]

"""The encoded model: matrices in files of a work directory, and vectors in memory.

A matrix is a TQLZ blob and its scales. Matrices stay on disk, so that what an export holds in
memory follows neither the model nor its largest tensor. A record beside them, written last, says
that a matrix is finished and what its files hold: an export that was interrupted goes on from the
matrices that are there and whole.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.codec.encoder import Codec, encode
from exporter.codec.native import crc32
from exporter.codec.native_tensor import NativeTensor
from exporter.codec.scale_types import SCALE_BYTES, ScaleType
from exporter.codec.scales import STORED_AS, StoredScales, stored, type_of, widened

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.bundle import RateEntry
    from exporter.quant.tensor import QuantizedTensor


@dataclass(frozen=True)
class EncodedMatrix:
    """One weight matrix on disk.

    `blob_path` holds TQLZ bytes, `scales_path` the scales [rows, n_groups] as `scale_type` says.
    """

    name: str
    rows: int
    cols: int
    scheme: str
    n_levels: int
    group_size: int
    scale_type: ScaleType
    codec: str
    code_bits: int
    cap: int
    entropy_bits: float
    zeros: float
    levels_crc32: int
    scales_crc32: int
    sizes_bytes: dict[str, int]
    own_levels: bool
    blob_path: Path
    scales_path: Path

    @property
    def n_groups(self) -> int:
        return -(-self.cols // self.group_size)

    @property
    def blob_bytes(self) -> int:
        return self.blob_path.stat().st_size

    @property
    def scales_bytes(self) -> int:
        return self.rows * self.n_groups * SCALE_BYTES[self.scale_type]

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the blob and the scales together."""
        return (self.blob_bytes + self.scales_bytes) * 8 / (self.rows * self.cols)

    def blob(self) -> NDArray[np.uint8]:
        """The TQLZ blob, uint8 [blob_bytes], memory-mapped."""
        return np.memmap(self.blob_path, dtype=np.uint8, mode="r")

    def open(self) -> NativeTensor:
        """The blob, memory-mapped and opened by the C++ core."""
        return NativeTensor(self.blob())

    def scales(self) -> StoredScales:
        """The scales as they are stored, [rows, n_groups], memory-mapped."""
        dtype, shape = STORED_AS[self.scale_type], (self.rows, self.n_groups)
        return np.memmap(self.scales_path, dtype=dtype, mode="r", shape=shape)

    @property
    def scales_fit_half(self) -> bool:
        """Whether half precision holds every scale exactly."""
        scales = widened(self.scales())
        return np.array_equal(scales.astype(np.float16), scales)


@dataclass(frozen=True)
class EncodedModel:
    """A whole model: its matrices by checkpoint name, and its vectors.

    The matrices are in the order of the model. The vectors (norm weights and biases) are float32.
    rate: that of the matrices, where one was asked for.
    """

    matrices: dict[str, EncodedMatrix]
    vectors: dict[str, Tensor]
    rate: RateEntry | None = None


def encode_matrix(tensor: QuantizedTensor, work: Path, codec: Codec) -> EncodedMatrix:
    """Codes one matrix and writes blob, scales and record under `work`.

    The encoder verifies that the blob decodes.
    """
    blob_path, scales_path = _paths(work, tensor.name)
    coded = encode(tensor.levels, tensor.level_min, tensor.n_levels, codec, blob_path)
    scales = stored(tensor.scales)
    scales_path.write_bytes(scales.data)
    rows, cols = tensor.levels.shape
    matrix = EncodedMatrix(
        name=tensor.name,
        rows=rows,
        cols=cols,
        scheme=tensor.scheme,
        n_levels=tensor.n_levels,
        group_size=tensor.group_size,
        scale_type=type_of(scales),
        codec=coded.codec,
        code_bits=coded.code_bits,
        cap=coded.cap,
        entropy_bits=coded.entropy_bits,
        zeros=coded.zeros,
        levels_crc32=coded.levels_crc32,
        scales_crc32=zlib.crc32(scales.data),
        sizes_bytes=coded.sizes_bytes,
        own_levels=tensor.own_levels,
        blob_path=blob_path,
        scales_path=scales_path,
    )
    _write_record(matrix, work / f"{tensor.name}{RECORD}")
    return matrix


def encode_matrices(
    tensors: Iterable[QuantizedTensor], work: Path, codec: Codec
) -> dict[str, EncodedMatrix]:
    """Matrices by name, coded from a stream.

    Each is dropped before the next is asked for.
    """
    matrices = {}
    for tensor in tensors:
        matrices[tensor.name] = encode_matrix(tensor, work, codec)
        del tensor
    return matrices


# ---- records of finished matrices


RECORD = ".json"
SEAL = "crc32"
_FILES = ("blob_path", "scales_path")


def _paths(work: Path, name: str) -> tuple[Path, Path]:
    """Paths of the blob and of the scales of a matrix."""
    return work / f"{name}.tqlz", work / f"{name}.scales"


def finished(work: Path) -> dict[str, EncodedMatrix]:
    """The matrices under `work` whose files are whole, by name.

    What has no record or another CRC-32 is left out.
    """
    matrices = (_read_record(record) for record in sorted(work.glob(f"*{RECORD}")))
    return {matrix.name: matrix for matrix in matrices if matrix}


def _write_record(matrix: EncodedMatrix, path: Path) -> None:
    values = {f.name: getattr(matrix, f.name) for f in fields(matrix) if f.name not in _FILES}
    record = {"matrix": values, "files": {name: _summary(getattr(matrix, name)) for name in _FILES}}
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(record | {SEAL: _seal(record)}), encoding="utf-8")
    os.replace(temporary, path)


def _read_record(path: Path) -> EncodedMatrix | None:
    blob_path, scales_path = _paths(path.parent, path.name.removesuffix(RECORD))
    paths: dict[str, Any] = {"blob_path": blob_path, "scales_path": scales_path}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = record.pop(SEAL) == _seal(record)
        whole = whole and all(
            _summary(file) == record["files"][name] for name, file in paths.items()
        )
        return EncodedMatrix(**record["matrix"], **paths) if whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # A record that cannot be used is as good as none.
        return None


def _seal(record: dict[str, Any]) -> int:
    """CRC-32 of a record as JSON.

    What a record says goes into the manifest, so it is checked as the files are.
    """
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _summary(path: Path) -> dict[str, int]:
    """Size of a file in bytes, and its CRC-32."""
    n_bytes = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            n_bytes, crc = n_bytes + len(block), crc32(block, crc)
    return {"n_bytes": n_bytes, "crc32": crc}

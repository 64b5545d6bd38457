"""The encoded model: every matrix as a TQLZ blob and its scales in files of a work directory, norms in memory.

Matrices stay on disk, so that what an export holds in memory follows its largest tensor and not the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.codec.encoder import Codec, encode
from exporter.codec.native import NativeTensor

if TYPE_CHECKING:
    from exporter.quant.tensor import QuantizedTensor


@dataclass(frozen=True)
class EncodedMatrix:
    """One weight matrix on disk. `blob_path` holds TQLZ bytes, `scales_path` float32 [rows, n_groups]."""

    name: str
    rows: int
    cols: int
    scheme: str
    group_size: int
    codec: str
    code_bits: int
    cap: int
    entropy_bits: float
    zeros: float
    levels_crc32: int
    sizes_bytes: dict[str, int]
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
        return self.rows * self.n_groups * 4

    @property
    def bits_per_weight(self) -> float:
        """Of the blob and the scales together."""
        return (self.blob_bytes + self.scales_bytes) * 8 / (self.rows * self.cols)

    def open(self) -> NativeTensor:
        """The blob, memory-mapped and opened by the C++ core."""
        return NativeTensor(np.memmap(self.blob_path, dtype=np.uint8, mode="r"))

    def scales(self) -> np.ndarray:
        """float32 [rows, n_groups], memory-mapped."""
        return np.memmap(self.scales_path, dtype=np.float32, mode="r", shape=(self.rows, self.n_groups))


@dataclass(frozen=True)
class EncodedModel:
    """All matrices by checkpoint name, in the order of the model."""

    matrices: dict[str, EncodedMatrix]


def encode_matrix(tensor: QuantizedTensor, work: Path, index: int, codec: Codec) -> EncodedMatrix:
    """Codes one matrix and writes blob and scales under `work`; the encoder verifies that it decodes to the levels."""
    coded = encode(tensor.levels, tensor.level_min, tensor.n_levels, codec)
    blob_path, scales_path = work / f"{index:05d}.tqlz", work / f"{index:05d}.scales"
    blob_path.write_bytes(coded.blob.data)
    scales_path.write_bytes(np.ascontiguousarray(tensor.scales, dtype="<f4").data)
    rows, cols = tensor.levels.shape
    return EncodedMatrix(
        name=tensor.name,
        rows=rows,
        cols=cols,
        scheme=tensor.scheme,
        group_size=tensor.group_size,
        codec=coded.codec,
        code_bits=coded.code_bits,
        cap=coded.cap,
        entropy_bits=coded.entropy_bits,
        zeros=1.0 - np.count_nonzero(tensor.levels) / tensor.levels.size,
        levels_crc32=coded.levels_crc32,
        sizes_bytes=coded.sizes_bytes,
        blob_path=blob_path,
        scales_path=scales_path,
    )


def encode_model(tensors: Iterable[QuantizedTensor], work: Path, codec: Codec) -> EncodedModel:
    """Codes a stream of matrices; each is dropped before the next is asked for."""
    matrices = {}
    for index, tensor in enumerate(tensors):
        matrices[tensor.name] = encode_matrix(tensor, work, index, codec)
        del tensor
    return EncodedModel(matrices)

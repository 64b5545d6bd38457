"""Checksums of the weights of a package, as they are stored in its files."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Location, TensorEntry
from exporter.codec.native_tensor import NativeTensor
from exporter.codec.weight_file import PLAIN_FORMS
from exporter.errors import CodecError
from runtime_ref.generate import Runner

BLOCK_WEIGHTS = 1 << 24  # decoded at a time


def scales_crc32(runner: Runner, place: Location) -> int:
    """CRC-32 of the scales of a matrix, as they are stored."""
    file = place.scales_file or place.file
    return _crc32([_part(runner, file, place.scales_offset, place.scales_bytes)])


def _part(runner: Runner, file: str, offset: int, n_bytes: int) -> NDArray[np.uint8]:
    """A part of a file of the package, memory-mapped."""
    return np.memmap(runner.file(file), dtype=np.uint8, mode="r")[offset : offset + n_bytes]


def levels_crc32(runner: Runner, place: Location, entry: TensorEntry) -> int:
    """CRC-32 of the levels of a matrix, int8 [rows, cols], decoded in blocks.

    Raises CodecError for what cannot be decoded.
    """
    stored = _part(runner, place.file, place.offset, place.n_bytes)
    if place.form == "tqlz":
        with NativeTensor(stored, verify=True) as tensor:
            if (tensor.info.rows, tensor.info.cols) != (entry.rows, entry.cols):
                raise CodecError(
                    "BAD_SHAPE", f"{entry.name} is {tensor.info.rows} x {tensor.info.cols}"
                )
            step = max(1, BLOCK_WEIGHTS // entry.cols)
            blocks = (
                (begin, min(begin + step, entry.rows)) for begin in range(0, entry.rows, step)
            )
            return _crc32(tensor.decode_rows(begin, end) for begin, end in blocks)
    n, plain = entry.rows * entry.cols, PLAIN_FORMS[place.form]
    if stored.size != plain.n_bytes(n):
        raise CodecError("TRUNCATED", f"{entry.name} has {stored.size:,} bytes")
    in_a_byte, step = 8 // plain.bits, BLOCK_WEIGHTS // 4
    return _crc32(
        plain.unpack(stored[at : at + step], min(in_a_byte * step, n - in_a_byte * at))
        for at in range(0, stored.size, step)
    )


def _crc32(blocks: Iterable[NDArray[Any]]) -> int:
    """CRC-32 of blocks, one after another."""
    crc = 0
    for block in blocks:
        crc = zlib.crc32(block.data, crc)
    return crc

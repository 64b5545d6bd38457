"""TQLZ blobs of random levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.codec import native_encoder
from exporter.codec.dictionary import Dictionary
from exporter.codec.format import CodecId, Header, new_blob, seal, write_tables

Levels = npt.NDArray[np.int8]


def random_levels(shape: tuple[int, int], level_min: int, n_levels: int, seed: int = 0) -> Levels:
    drawn = np.random.default_rng(seed).normal(0, n_levels / 4, shape)
    return np.clip(drawn, level_min, level_min + n_levels - 1).astype(np.int8)


def make_blob(
    levels: Levels, codec: str, code_bits: int, cap: int, level_min: int, n_levels: int
) -> npt.NDArray[Any]:
    rows, cols = levels.shape
    if codec == "raw":
        part = native_encoder.encode_raw(levels, level_min, n_levels, code_bits)
        header = Header(CodecId.RAW, code_bits, 0, level_min, n_levels, rows, cols, 0, part.size)
        blob, payload = new_blob(header)
        payload[:] = part
        seal(blob, header)
        return blob
    counts = native_encoder.count_levels(levels)[level_min + 128 :][:n_levels]
    d = Dictionary.grow(counts, level_min, n_levels, code_bits, cap)
    row_codes, coded, size = native_encoder.encode_lzw(
        levels, level_min, n_levels, code_bits, cap, d.n_entries, d.to_bits()
    )
    assert coded is not None
    header = Header(CodecId.LZW, code_bits, cap, level_min, n_levels, rows, cols, d.n_entries, size)
    blob, payload = new_blob(header)
    payload[:] = coded
    write_tables(blob, header, d.to_bits(), row_codes)
    seal(blob, header)
    return blob


def same_bits(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

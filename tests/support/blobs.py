"""TQLZ blobs of random levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.codec import native_encoder
from exporter.codec.dictionary import MAX_ENTRIES
from exporter.codec.encoder import encode_with
from exporter.codec.format import CodecId, Header, new_blob, seal
from exporter.codec.growth import grow, with_codewords

Levels = npt.NDArray[np.int8]


def random_levels(shape: tuple[int, int], level_min: int, n_levels: int, seed: int = 0) -> Levels:
    drawn = np.random.default_rng(seed).normal(0, n_levels / 4, shape)
    return np.clip(drawn, level_min, level_min + n_levels - 1).astype(np.int8)


def make_blob(
    levels: Levels, codec: str, code_bits: int, cap: int, level_min: int, n_levels: int
) -> npt.NDArray[Any]:
    rows, cols = levels.shape
    if codec == "lzw":
        counts = native_encoder.count_levels(levels)[level_min + 128 :][:n_levels]
        tree = grow(counts, level_min, (0, n_levels), cap, MAX_ENTRIES).dictionary
        found = native_encoder.count_phrases(levels, tree)
        return encode_with(levels, with_codewords(tree, found))
    if codec == "base3":
        part = native_encoder.encode_base3(levels, level_min)
    else:
        part = native_encoder.encode_raw(levels, level_min, n_levels, code_bits)
    header = Header(
        CodecId[codec.upper()], code_bits, cap, level_min, n_levels, rows, cols, 0, part.size
    )
    blob, payload = new_blob(header)
    payload[:] = part
    seal(blob, header)
    return blob


def same_bits(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

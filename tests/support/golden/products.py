"""Products and look-ups: linear.tsv and embedding.tsv."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.support.golden.blobs import CASES, Case
from tests.support.golden.numbers import bell, uniform
from tests.support.golden.tables import crc, write_table

PRODUCTS = (  # case of decode.tsv, group_size; every third has scales of 16 bits
    ("one_level_lzw", 1),
    ("ternary33_base3_7x43", 43),
    ("ternary33_raw2_7x43", 16),
    ("ternary33_base3_33x172", 172),
    ("ternary33_base3_5x320", 64),
    ("ternary80_lzw_33x172", 172),
    ("ternary80_lzw_33x172", 64),
    ("ternary80_raw2_65x256", 128),
    ("ternary90_lzw_65x256", 256),
    ("ternary95_lzw_129x100", 32),
    ("int4_lzw_33x171", 32),
    ("int4_raw4_33x171", 171),
    ("int8_raw8_33x172", 172),
    ("int8_raw8_33x172", 128),
    ("int8_lzw_33x172", 172),
    ("int8_lzw_escapes_33x172", 43),
    ("all256_raw8_16x64", 64),
    ("all256_lzw_16x64", 64),
)
LOOKUPS = (
    ("one_level_raw2", 1),
    ("ternary33_base3_33x172", 172),
    ("ternary80_lzw_33x172", 64),
    ("ternary90_lzw_65x256", 256),
    ("ternary80_raw2_65x256", 32),
    ("int8_raw8_33x172", 172),
    ("int8_lzw_escapes_33x172", 50),
)
F32 = npt.NDArray[np.float32]


def draw_activations(seed: int, cols: int) -> F32:
    """float32 [5, cols]: usual, zeros, ties of the rounding, too small to scale, and large."""
    usual = bell(seed, cols).astype(np.float32)
    ties = (np.floor(uniform(seed + 1, cols) * 65023) - 32511.5).astype(np.float32)
    ties[0] = 32512.0  # so that the scale is 1 and every .5 is a tie
    tiny = np.float32(2.0**-101) * np.sign(usual)
    return np.stack([usual, np.zeros_like(usual), ties, tiny, usual * np.float32(1e30)])


def quantize(x: F32) -> tuple[npt.NDArray[np.int16], F32]:
    """int16 [n_tokens, cols] and float32 [n_tokens], as `tinyqmoe_quantize_x16`."""
    largest = np.abs(x).max(axis=1)
    used = largest >= np.float32(2.0**-100)
    inverse = np.zeros_like(largest)
    inverse[used] = np.float32(32512) / largest[used]
    return np.rint(x * inverse[:, None]).astype(np.int16), np.where(
        used, largest / np.float32(32512), np.float32(0)
    )


def product(
    levels: npt.NDArray[np.int8],
    scales: F32,
    group_size: int,
    q: npt.NDArray[np.int16],
    x_scales: F32,
) -> F32:
    """float32 [n_tokens, rows], as `tinyqmoe_linear_x16`."""
    starts = range(0, levels.shape[1], group_size)
    dots = [
        q[:, i : i + group_size].astype(np.int64) @ levels[:, i : i + group_size].T.astype(np.int64)
        for i in starts
    ]
    if len(dots) == 1:
        return dots[0].astype(np.float32) * (x_scales[:, None] * scales[:, 0])
    total = np.zeros(dots[0].shape, np.float32)
    for group, dot in enumerate(dots):
        total = total + dot.astype(np.float32) * scales[:, group]
    return x_scales[:, None] * total


@dataclass(frozen=True)
class Scales:
    """Scales of a product: how they are stored, and float32 [rows, ceil(cols / group_size)]."""

    type: str
    stored: bytes
    values: F32


def draw_scales(seed: int, rows: int, cols: int, group_size: int) -> Scales:
    """Scales around 0.01, or of all sizes below 1 for every third seed: zero and the least too."""
    shape = rows, -(-cols // group_size)
    drawn = uniform(seed, math.prod(shape)).reshape(shape)
    if seed % 3:
        values = (drawn * 0.01 + 0.005).astype(np.float32)
        return Scales("float32", values.astype("<f4").tobytes(), values)
    codes = np.floor(drawn * (47 << 10)).astype("<u2")
    codes.flat[:2] = 0, 1
    exponent, mantissa = codes.astype(np.int64) // 1024 - 47, codes.astype(np.int64) % 1024
    values = np.where(codes == 0, 0, np.ldexp(1 + mantissa / 1024, exponent)).astype(np.float32)
    return Scales("ue6m10", codes.tobytes(), values)


def make_products(out: Path) -> None:
    """linear.tsv, embedding.tsv and their folders."""
    cases = {case.name: case for case in CASES}
    (out / "linear").mkdir()
    lines: list[tuple[object, ...]] = []
    for seed, (name, group_size) in enumerate(PRODUCTS, 100):
        levels, stem = cases[name].levels(), f"linear/{name}_g{group_size}"
        x, scales = (
            draw_activations(seed, levels.shape[1]),
            draw_scales(seed, *levels.shape, group_size),
        )
        (out / f"{stem}.x.f32").write_bytes(x.astype("<f4").tobytes())
        (out / f"{stem}.scales.{scales.type}").write_bytes(scales.stored)
        q, x_scales = quantize(x)
        y = product(levels, scales.values, group_size, q, x_scales)
        files = (f"decode/{name}.tqlz", f"{stem}.x.f32", f"{stem}.scales.{scales.type}")
        lines.append((*files, scales.type, group_size, len(x), crc(q), crc(y.astype("<f4"))))
    write_table(
        out / "linear.tsv",
        "blob activations scales scale_type group_size n_tokens quantized_crc32 y_crc32",
        lines,
    )
    make_lookups(out, cases)


def make_lookups(out: Path, cases: dict[str, Case]) -> None:
    """embedding.tsv and embedding/."""
    (out / "embedding").mkdir()
    lines: list[tuple[object, ...]] = []
    for seed, (name, group_size) in enumerate(LOOKUPS, 200):
        levels, stem = cases[name].levels(), f"embedding/{name}_g{group_size}"
        rows, cols = levels.shape
        ids = np.array([0, rows - 1, rows // 2, 0, *(uniform(seed, 4) * rows)]).astype("<i8")
        scales = draw_scales(seed, rows, cols, group_size)
        (out / f"{stem}.ids.i64").write_bytes(ids.tobytes())
        (out / f"{stem}.scales.{scales.type}").write_bytes(scales.stored)
        factors = np.repeat(scales.values, group_size, axis=1)
        found = levels[ids].astype(np.float32) * factors[ids, :cols]
        files = (f"decode/{name}.tqlz", f"{stem}.ids.i64", f"{stem}.scales.{scales.type}")
        lines.append((*files, scales.type, group_size, len(ids), crc(found.astype("<f4"))))
    write_table(
        out / "embedding.tsv", "blob ids scales scale_type group_size n_ids out_crc32", lines
    )

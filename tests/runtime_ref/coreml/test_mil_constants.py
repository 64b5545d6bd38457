"""Compressed constants of an ML Program, against what coremltools makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime_ref.coreml.mil_program import MLProgram
from tests.support.mil import ct, mb, save, types

Array = np.ndarray
RNG = np.random.default_rng(0)


def indices(bits: int, *shape: int) -> Array:
    dtype = np.uint8 if bits == 8 else getattr(types, f"np_uint{bits}_dtype")
    return RNG.integers(0, 2**bits, shape).astype(dtype)


def look_up(
    bits: int, shape: tuple[int, ...], groups: tuple[int, ...], dtype: Any = np.float16
) -> Any:
    tables = (RNG.standard_normal((*groups, 2**bits, 1)) * 10).astype(dtype)
    return mb.constexpr_lut_to_dense(indices=indices(bits, *shape), lut=tables)


def ternary(shape: tuple[int, int], groups: tuple[int, int], dtype: Any) -> Any:
    """Tables that are one table times a scale, some of them 0."""
    scales = np.abs(RNG.standard_normal(groups)).astype(dtype)
    scales[0, 0] = 0
    tables = np.stack([-scales, 0 * scales, scales, 0 * scales], axis=-1)[..., None]
    return mb.constexpr_lut_to_dense(indices=indices(2, *shape), lut=tables)


def shift_scale(
    data: Any,
    shape: tuple[int, ...],
    groups: tuple[int, ...],
    scale: Any = np.float16,
    offset: Any = None,
) -> Any:
    low, high = {"int8": (-128, 128), "uint8": (0, 256), "int4": (-8, 8), "uint4": (0, 16)}.get(
        str(data), (-8, 8)
    )
    dtype = {"int4": types.np_int4_dtype, "uint4": types.np_uint4_dtype}.get(str(data), data)
    return mb.constexpr_blockwise_shift_scale(
        data=RNG.integers(low, high, shape).astype(dtype),
        scale=(RNG.standard_normal(groups)).astype(scale),
        offset=None if offset is None else RNG.integers(0, 8, groups).astype(offset),
    )


def chained() -> Any:
    table = np.array([-1, 0, 1, 0], np.int8).reshape(1, 1, 4, 1)
    inner = mb.constexpr_lut_to_dense(indices=indices(2, 6, 8), lut=table)
    return mb.constexpr_blockwise_shift_scale(
        data=inner, scale=RNG.standard_normal((6, 2)).astype(np.float16)
    )


COMPRESSED: dict[str, Callable[[], Any]] = {
    **{
        f"uint{bits}, one table": lambda b=bits: look_up(b, (6, 8), (1, 1))
        for bits in (1, 2, 3, 4, 6, 8)
    },
    **{
        f"uint{bits}, tables of blocks": lambda b=bits: look_up(b, (6, 10), (3, 2))
        for bits in (1, 2, 3, 4, 6, 8)
    },
    **{
        f"uint{bits}, odd rows": lambda b=bits: look_up(b, (5, 7), (5, 1), np.float32)
        for bits in (1, 2, 3, 4, 6)
    },
    "rank 4": lambda: look_up(4, (4, 3, 2, 2), (2, 1, 2, 1)),
    "rank 1": lambda: look_up(2, (10,), (5,)),
    "table of int8": lambda: look_up(4, (4, 6), (2, 1), np.int8),
    "ternary": lambda: ternary((8, 12), (8, 1), np.float16),
    "ternary, groups, odd": lambda: ternary((6, 15), (6, 3), np.float32),
    "int8, rows": lambda: shift_scale(np.int8, (6, 8), (6, 1)),
    "int8, blocks": lambda: shift_scale(np.int8, (6, 8), (2, 4), np.float32),
    "uint8, offset": lambda: shift_scale(np.uint8, (6, 8), (6, 2), offset=np.uint8),
    "int4, rank 4": lambda: shift_scale("int4", (4, 3, 2, 2), (4, 1, 1, 2)),
    "int4, offset": lambda: shift_scale("int4", (5, 7), (5, 1), offset=types.np_int4_dtype),
    "uint4, offset of halves": lambda: shift_scale("uint4", (5, 7), (1, 7), offset=np.float16),
    "halves": lambda: shift_scale(np.float16, (5, 7), (1, 7), offset=np.float16),
    "chained": chained,
}


def test_compressed_constants_are_what_coremltools_decompresses(tmp_path: Path) -> None:
    """Bit for bit in float16; in float32 nothing is rounded."""
    expected: list[Array] = []

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1,), dtype=types.fp16)], opset_version=ct.target.iOS18
    )
    def program(x: Any) -> Any:
        outputs = []
        for i, build in enumerate(COMPRESSED.values()):
            var = build()
            expected.append(var.op.materialized_val_inference())
            var = mb.cast(x=var, dtype="int32") if var.dtype == types.int8 else var
            outputs.append(mb.identity(x=var, name=f"o{i}"))
        return tuple(outputs)

    package = save(program, tmp_path / "x.mlpackage")
    given = {"x": np.zeros(1, np.float16)}
    exact = MLProgram(package, None, "float32", 0).predict(given, {})
    for cache_bytes in (0, 10**6):
        rounded = MLProgram(package, None, "float16", cache_bytes).predict(given, {})
        for i, (name, want) in enumerate(zip(COMPRESSED, expected, strict=True)):
            np.testing.assert_array_equal(rounded[f"o{i}"], want, err_msg=name)
            np.testing.assert_allclose(exact[f"o{i}"], want, rtol=2**-11, atol=2**-9, err_msg=name)
            if want.dtype == np.float16 and exact[f"o{i}"].dtype == np.float32:
                np.testing.assert_array_equal(exact[f"o{i}"].astype(np.float16), want, err_msg=name)

"""The types of GGUF tensors: which are read, the bytes of their blocks, and their values.

The `gguf` package knows most of them. It lacks Q2_0, and the values of Q1_0 (both of 2026):

- Q1_0: a float16 d and 128 bits, the first in the lowest; weight = d where the bit is set, else -d.
- Q2_0: a float16 d and 64 codes of 2 bits, the first in the lowest; weight = (code - 1) d.
- Q2_0 of the fork that shipped it first: the same with 128 codes, under the same number. Only the
  places of the tensors in a file tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint.tensors import two_bit_codes

FLOAT_TYPES = ("F32", "F16", "BF16")
QUANTIZED_TYPES = (
    *("Q8_0", "Q6_K", "Q5_0", "Q5_1", "Q5_K", "Q4_0", "Q4_1", "Q4_K", "Q3_K", "Q2_K"),
    *("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"),
)
Q2_0, Q2_0_FORK = "Q2_0", "Q2_0 (groups of 128)"
TERNARY_TYPES = ("Q1_0", Q2_0, Q2_0_FORK, "TQ1_0", "TQ2_0")
Q2_0_NUMBER = 42
OWN_BLOCKS = {"Q1_0": (128, 18), Q2_0: (64, 18), Q2_0_FORK: (128, 34)}  # weights, bytes
SCALE_BYTES = 2


def type_name(number: int) -> str:
    """The name of a type by its number in a file; of one that is not known its number."""
    from gguf import GGMLQuantizationType

    if number == Q2_0_NUMBER:
        return Q2_0
    known = {int(kind): kind.name for kind in GGMLQuantizationType}
    return known.get(number, f"type {number}")


def block_of(dtype: str) -> tuple[int, int] | None:
    """The weights and the bytes of a block of a type; None for a type that is not known."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if dtype in OWN_BLOCKS:
        return OWN_BLOCKS[dtype]
    if dtype not in GGMLQuantizationType.__members__:
        return None
    weights, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return weights, n_bytes


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Size of a tensor in a file, in bytes; 0 for a type that is not known.

    Raises ValueError if its rows are not whole blocks.
    """
    block = block_of(dtype)
    if block is None:
        return 0
    weights, n_bytes = block
    if shape and shape[-1] % weights:
        raise ValueError(f"rows of {shape[-1]} values are no whole blocks of {dtype}")
    return math.prod(shape) // weights * n_bytes


def q2_0_kind(spaces: Sequence[tuple[tuple[int, ...], int]], alignment: int) -> str:
    """Which Q2_0 the tensors of that number in a file are.

    `spaces` are their shapes, and the bytes up to the next tensor or the end of the file. Raises
    ValueError where neither fits all of them, or both do.
    """
    kinds = (Q2_0, Q2_0_FORK)
    fitting = [k for k in kinds if all(_fills(k, *space, alignment) for space in spaces)]
    if len(fitting) != 1:
        what = "neither" if not fitting else "both"
        raise ValueError(f"the places of its Q2_0 tensors fit {what} of {' and '.join(kinds)}")
    return fitting[0]


def _fills(dtype: str, shape: tuple[int, ...], space: int, alignment: int) -> bool:
    """Whether a tensor takes the bytes up to the next one, but for the gap that aligns it."""
    whole = shape[-1] % OWN_BLOCKS[dtype][0] == 0
    return whole and 0 <= space - stored_bytes(dtype, shape) < alignment


def dequantize(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """The values of rows of blocks: uint8 [n, row bytes] -> float32 [n, row values]."""
    from gguf import GGMLQuantizationType, quants

    if dtype not in OWN_BLOCKS:
        values: NDArray[np.float32] = quants.dequantize(raw, GGMLQuantizationType[dtype])
        return values
    blocks = raw.reshape(len(raw), -1, OWN_BLOCKS[dtype][1])
    scales = blocks[..., :SCALE_BYTES].copy().view("<f2").astype(np.float32)
    codes = blocks[..., SCALE_BYTES:]
    if dtype == "Q1_0":
        levels = 2 * np.unpackbits(codes, axis=-1, bitorder="little").astype(np.float32) - 1
    else:
        levels = two_bit_codes(codes).astype(np.float32) - 1
    result: NDArray[np.float32] = (levels * scales).reshape(len(raw), -1)
    return result

"""llama.cpp's types of weights, quantized by its own code: the library `ggml-base`, by ctypes.

The source distribution of llama-cpp-python has it in `vendor/llama.cpp`:
`cmake -B build -G Ninja && cmake --build build --target ggml-base`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

# The types of a mixture, by what llama-quantize gives a Llama with fewer than four queries a key.
MIXTURES = {
    "Q5_K_M": ("Q5_K", {}),
    "Q4_K_M": ("Q4_K", {}),
    "Q3_K_M": ("Q3_K", {"v_proj": "Q4_K", "down_proj": "Q4_K", "o_proj": "Q4_K"}),
    "Q2_K": ("Q2_K", {"v_proj": "Q3_K", "down_proj": "Q3_K", "o_proj": "Q3_K"}),
}


def _more_bits(layer: int, n_layers: int) -> bool:
    """Whether a layer is one of those that get more bits in a mixture of medium size."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def type_of(mixture: str, name: str, n_layers: int) -> str:
    """The type of a matrix of a layer in a mixture; any other type is that of all matrices."""
    if mixture not in MIXTURES:
        return mixture
    usual, others = MIXTURES[mixture]
    _, _, number, _, kind, _ = name.split(".")
    layer = int(number)
    if mixture in ("Q5_K_M", "Q4_K_M"):
        more = kind in ("v_proj", "down_proj") and _more_bits(layer, n_layers)
        return "Q6_K" if more else usual
    early = {"v_proj": 2, "down_proj": n_layers // 16}
    if mixture == "Q3_K_M" and layer < early.get(kind, 0):
        return "Q5_K"
    return others.get(kind, usual)


@dataclass(frozen=True)
class Ggml:
    """The library at a path."""

    path: Path

    def quantized(self, w: Tensor, dtype: str, importance: Tensor) -> tuple[Tensor, int]:
        """Weights float32 [rows, cols] as a type stores them, and their size in bytes.

        importance: mean squared inputs, float32 [cols]. Rows are joined until whole blocks fit:
        llama-quantize itself falls back to types without these blocks for such shapes.
        """
        kind = GGMLQuantizationType[dtype]
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        joined = 1
        while w.shape[1] * joined % block:
            joined += 1
        rows = w.reshape(-1, w.shape[1] * joined).contiguous()
        weights = importance.repeat(joined).contiguous()
        blocks = np.zeros((len(rows), rows.shape[1] // block * n_bytes), np.uint8)
        quantize = ctypes.CDLL(str(self.path)).ggml_quantize_chunk
        quantize.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        quantize.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
        of_weights = (0, len(rows), rows.shape[1])
        quantize(int(kind), rows.data_ptr(), blocks.ctypes.data, *of_weights, weights.data_ptr())
        values = gguf.quants.dequantize(blocks, kind)
        return torch.from_numpy(values).reshape(w.shape), blocks.nbytes

"""Matrices that transformers (`bitnet`) and MLX have packed at 2 bits, in safetensors files.

A packed matrix is several tensors of a file; here they become one again, under the name of the
matrix. What is packed in another way is noted by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporter.checkpoint.safetensors import TORCH_DTYPES, StoredTensor
from exporter.checkpoint.tensors import TensorSource, check_range, two_bit_codes

BITNET, MLX = "bitnet 2-bit", "MLX 2-bit"
PACKED_TYPES = (BITNET, MLX)
BITS = 2
WORD_WEIGHTS = 16  # in the 32 bits of a word of MLX


@dataclass(frozen=True)
class BitnetTensor:
    """A matrix as transformers packs it for `bitnet`: level = code - 1, one scale for all.

    weight: uint8 [rows / 4, cols]; its four codes belong to the same row of the four quarters of
    the matrix. scale: one number, which divides the levels in the linear class `bitlinear`, and
    multiplies them in `autobitlinear`.
    """

    weight: StoredTensor
    scale: StoredTensor
    divides: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return (4 * self.weight.shape[0], self.weight.shape[1])

    @property
    def dtype(self) -> str:
        return BITNET

    @property
    def size_bytes(self) -> int:
        return self.weight.size_bytes + self.scale.size_bytes

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.weight.file, self.scale.file)

    def rows(self, begin: int, end: int) -> Tensor:
        check_range(begin, end, self.shape[0])
        quarter, parts = self.weight.shape[0], []
        for i in range(4):
            first, last = max(begin - i * quarter, 0), min(end - i * quarter, quarter)
            if first < last:
                parts.append(self.weight.raw_rows(first, last) >> np.uint8(2 * i) & 3)
        scale = replace(self.scale, shape=(1,)).rows(0, 1)
        factor = 1 / scale if self.divides else scale
        if not parts:
            return torch.zeros(0, self.shape[1])
        return (torch.from_numpy(np.concatenate(parts)).float() - 1) * factor


@dataclass(frozen=True)
class MlxTensor:
    """A matrix that MLX has quantized to 2 bits: weight = code * scale + bias.

    weight: uint32 [rows, cols / 16], the first code in the lowest bits. scales, biases: [rows,
    cols / group_size].
    """

    weight: StoredTensor
    scales: StoredTensor
    biases: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.weight.shape[0], WORD_WEIGHTS * self.weight.shape[1])

    @property
    def dtype(self) -> str:
        return MLX

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in (self.weight, self.scales, self.biases))

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.weight.file, self.scales.file, self.biases.file)

    def rows(self, begin: int, end: int) -> Tensor:
        check_range(begin, end, self.shape[0])
        codes = torch.from_numpy(two_bit_codes(self.weight.raw_rows(begin, end))).float()
        groups = codes.reshape(end - begin, self.scales.shape[1], -1)
        scales, biases = (x.rows(begin, end)[..., None] for x in (self.scales, self.biases))
        return (groups * scales + biases).reshape(end - begin, self.shape[1])


def unpack(
    raw: dict[str, Any], found: Mapping[str, StoredTensor], problems: list[str]
) -> dict[str, TensorSource]:
    """The tensors of a checkpoint, its packed matrices as one tensor each.

    `raw` is its config.json. What is packed and not read is noted in `problems`.
    """
    tensors: dict[str, TensorSource] = dict(found)
    bitnet = bitnet_config(raw)
    for name, weight in found.items():
        module = name.removesuffix(".weight")
        scale, scales = found.get(f"{module}.weight_scale"), found.get(f"{module}.scales")
        biases = found.get(f"{module}.biases")
        if weight.dtype == "U8" and scale and bitnet and len(weight.shape) == 2:
            divides = bitnet.get("linear_class", "bitlinear") == "bitlinear"
            tensors[name] = BitnetTensor(weight, scale, divides)
            del tensors[f"{module}.weight_scale"]
            problems += _scale_problems(name, scale, ())
        elif weight.dtype == "U32" and scales and biases and len(weight.shape) == 2:
            tensors[name] = packed = MlxTensor(weight, scales, biases)
            del tensors[f"{module}.scales"], tensors[f"{module}.biases"]
            problems += _mlx_problems(name, packed, _mlx_settings(raw, module))
    return tensors


def bitnet_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The settings of `bitnet` in a config.json, where its packed matrices can be read; else {}.

    Those that are quantized while the model runs (`online`) are floats that are no levels yet, and
    an additional norm before each product (`use_rms_norm`) is none of the network's.
    """
    said = raw.get("quantization_config")
    readable = (
        isinstance(said, dict)
        and said.get("quant_method") == "bitnet"
        and said.get("quantization_mode", "offline") == "offline"
        and not said.get("use_rms_norm")
    )
    return dict(said) if readable and isinstance(said, dict) else {}


def _scale_problems(name: str, scale: StoredTensor, shape: tuple[int, ...]) -> list[str]:
    """What is wrong with the numbers that belong to a packed matrix; of `bitnet` it is one."""
    if scale.dtype not in TORCH_DTYPES:
        return [f"{name}: its scales are {scale.dtype}, supported: {', '.join(TORCH_DTYPES)}"]
    wanted = [shape] if shape else [(), (1,), (1, 1)]
    if scale.shape not in wanted:
        return [f"{name}: its scales have shape {list(scale.shape)}, expected {list(wanted[-1])}"]
    return []


def _mlx_settings(raw: dict[str, Any], module: str) -> dict[str, Any]:
    """The quantization of a module, as MLX writes it: for all, and for single ones by name."""
    said = raw.get("quantization") or raw.get("quantization_config")
    said = said if isinstance(said, dict) else {}
    own = said.get(module)
    return said | own if isinstance(own, dict) else said


def _mlx_problems(name: str, tensor: MlxTensor, settings: dict[str, Any]) -> list[str]:
    """Why a matrix of MLX is not read."""
    bits, mode = settings.get("bits"), settings.get("mode", "affine")
    if (bits, mode) != (BITS, "affine"):
        return [f"{name} is packed by MLX at {bits} bits ({mode}), supported: {BITS} (affine)"]
    group, (rows, cols) = settings.get("group_size"), tensor.shape
    if not isinstance(group, int) or group < 1 or cols % group:
        return [f"{name}: config.json says group_size {group!r}, the matrix has {cols} columns"]
    wanted = (rows, cols // group)
    return [p for x in (tensor.scales, tensor.biases) for p in _scale_problems(name, x, wanted)]

"""Small random models that are ternary, and every way in which people store them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporter.bundle import EMBEDDING, HEAD
from tests.support.checkpoints import edit_config, random_family, write_tokenizer
from tests.support.gguf_files import write_gguf

SIZES = {"vocab_size": 260, "hidden_size": 256, "intermediate_size": 512, "bos_token_id": 256}
WEIGHTS = "model.safetensors"


def ternary_family(
    family: str = "llama",
    group_size: int | None = 128,
    dtype: torch.dtype = torch.float16,
    *,
    outside: bool = True,
    zeros: float = 0.3,
    **options: Any,
) -> Any:
    """A random model of transformers whose matrices are ternary, in float32.

    Scales are those of `dtype`, one for `group_size` weights of a row; None: one for a matrix.
    outside: whether the embedding and the head are ternary too.
    """
    model = random_family(family, **SIZES | {"eos_token_id": 257} | options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and (outside or name not in (EMBEDDING, HEAD)):
                weight.copy_(
                    random_ternary(tuple(weight.shape), group_size, dtype, zeros, generator)
                )
    return model


def random_ternary(
    shape: tuple[int, ...],
    group_size: int | None,
    dtype: torch.dtype,
    zeros: float,
    generator: torch.Generator,
) -> Tensor:
    rows, cols = shape
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    levels = signs * (torch.rand(shape, generator=generator) >= zeros)
    groups = 1 if group_size is None else -(-cols // group_size)
    scales = torch.rand(rows if group_size else 1, groups, generator=generator) * 0.1 + 0.02
    spread = scales.to(dtype).float().repeat_interleave(group_size or cols, 1)
    return levels * spread[:, :cols].expand(rows, -1)


def matrices_of(model: Any) -> dict[str, Tensor]:
    """The matrices of a model by name, a tied head once."""
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim == 2}


def scales_of(w: Tensor, group_size: int) -> Tensor:
    """The largest magnitude of each group, float32 [rows, groups]."""
    return torch.stack([part.abs().amax(1) for part in w.split(group_size, 1)], 1)


def two_bits(codes: np.ndarray) -> np.ndarray:
    """Four codes in a byte, the first in the lowest bits."""
    c = codes.astype(np.uint8).reshape(*codes.shape[:-1], -1, 4)
    packed: np.ndarray = c[..., 0] | c[..., 1] << 2 | c[..., 2] << 4 | c[..., 3] << 6
    return packed


# ---- how it is stored ----------------------------------------------------------------------------


def write_floats(directory: Path, model: Any, dtype: torch.dtype) -> Path:
    """Floats in safetensors. The model itself stays in float32."""
    tensors = {n: p.detach().to(dtype).contiguous() for n, p in model.named_parameters()}
    _write_folder(directory, model, tensors)
    return directory


def write_bitnet(
    directory: Path, model: Any, *, linear_class: str | None = "autobitlinear"
) -> Path:
    """Packed by transformers' own function; the embedding and the head stay floats."""
    from transformers.integrations.bitnet import pack_weights

    tensors = {}
    for name, weight in model.named_parameters():
        tensors[name] = weight.detach().contiguous()
        if weight.ndim == 2 and name not in (EMBEDDING, HEAD):
            scale = weight.detach().abs().max()
            tensors[name] = pack_weights(weight.detach().sign())
            given = 1 / scale if linear_class in (None, "bitlinear") else scale
            tensors[f"{name}_scale"] = given.bfloat16().reshape(1)
    _write_folder(directory, model, tensors)
    said = {"quant_method": "bitnet"} | ({"linear_class": linear_class} if linear_class else {})
    edit_config(directory, quantization_config=said)
    return directory


def write_mlx(directory: Path, model: Any, group_size: int = 128) -> Path:
    """As mlx_lm writes it: words along the columns, scales and biases in half precision."""
    tensors = {}
    for name, weight in model.named_parameters():
        w = weight.detach()
        tensors[name] = w.half().contiguous()
        if w.ndim == 2:
            module, scales = name.removesuffix(".weight"), scales_of(w, group_size).half()
            words = two_bits(w.sign().numpy() + 1).view(np.uint32)
            tensors[name] = torch.from_numpy(words.view(np.int32)).view(torch.uint32)
            tensors |= {f"{module}.scales": scales, f"{module}.biases": -scales}
    _write_folder(directory, model, tensors)
    said = {"group_size": group_size, "bits": 2}
    edit_config(directory, quantization=said, quantization_config=said)
    return directory


def q2_0(w: Tensor, group_size: int = 64) -> tuple[np.ndarray, int]:
    return _with_scales(w, group_size, lambda signs: two_bits(signs + 1)), 42


def q2_0_fork(w: Tensor) -> tuple[np.ndarray, int]:
    return q2_0(w, 128)


def q1_0(w: Tensor) -> tuple[np.ndarray, int]:
    def bits(signs: np.ndarray) -> np.ndarray:
        return np.packbits(signs > 0, axis=-1, bitorder="little")

    return _with_scales(w, 128, bits), 41


def tq1_0(w: Tensor) -> tuple[np.ndarray, int]:
    return gguf.quants.quantize(w.numpy(), Type.TQ1_0), int(Type.TQ1_0)


def tq2_0(w: Tensor) -> tuple[np.ndarray, int]:
    return gguf.quants.quantize(w.numpy(), Type.TQ2_0), int(Type.TQ2_0)


def _with_scales(
    w: Tensor, group_size: int, pack: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Blocks of a scale in float16 and what `pack` makes of signs [rows, groups, group_size]."""
    scales = scales_of(w, group_size).half().numpy()[..., None].view(np.uint8)
    packed = pack(w.sign().numpy().reshape(len(w), -1, group_size))
    blocks: np.ndarray = np.concatenate([scales, packed], -1).reshape(len(w), -1)
    return blocks


def _write_folder(directory: Path, model: Any, tensors: dict[str, Tensor]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    save_file(tensors, directory / WEIGHTS)
    write_tokenizer(directory)


# ---- one of each ---------------------------------------------------------------------------------


def floats_by(dtype: torch.dtype) -> Callable[[Path, Any], Path]:
    return lambda path, model: write_floats(path, model, dtype)


def gguf_by(pack: Callable[[Tensor], tuple[np.ndarray, int]]) -> Callable[[Path, Any], Path]:
    def write(path: Path, model: Any) -> Path:
        path.mkdir()
        write_gguf(path / "model.gguf", model.config.model_type, model=model, pack=pack)
        return path / "model.gguf"

    return write


def gguf_floats(kind: Type) -> Callable[[Path, Any], Path]:
    def write(path: Path, model: Any) -> Path:
        path.mkdir()
        write_gguf(path / "model.gguf", model.config.model_type, kind, model=model)
        return path / "model.gguf"

    return write


BITNET = {"group_size": None, "dtype": torch.bfloat16, "outside": False}
STORED: dict[str, tuple[dict[str, Any], Callable[[Path, Any], Path], int]] = {
    # the model, how it is written, and the group that must be found; 0: a whole row
    "floats, F16": ({}, floats_by(torch.float16), 128),
    "floats, BF16, one scale a tensor": (BITNET, floats_by(torch.bfloat16), 0),
    "floats, F32, float32 scales": (
        {"group_size": 64, "dtype": torch.float32}, floats_by(torch.float32), 64),
    "floats, Qwen3, tied": ({"family": "qwen3"}, floats_by(torch.float16), 128),
    "bitnet, autobitlinear": (BITNET, write_bitnet, 0),
    "MLX": ({"family": "qwen3", "tie_word_embeddings": False}, write_mlx, 128),
    "MLX, groups of 64": ({"group_size": 64}, lambda p, m: write_mlx(p, m, 64), 64),
    "GGUF F16": ({"family": "qwen3"}, gguf_floats(Type.F16), 128),
    "GGUF BF16": ({"group_size": 64, "dtype": torch.bfloat16}, gguf_floats(Type.BF16), 64),
    "GGUF F32": ({"group_size": 32}, gguf_floats(Type.F32), 32),
    "GGUF Q2_0": ({"group_size": 64}, gguf_by(q2_0), 64),
    "GGUF Q2_0 of the fork": ({"family": "qwen3"}, gguf_by(q2_0_fork), 128),
    "GGUF Q1_0": ({"zeros": 0.0}, gguf_by(q1_0), 128),
    "GGUF TQ1_0": ({"group_size": 256}, gguf_by(tq1_0), 256),
    "GGUF TQ2_0": ({"group_size": 256, "family": "qwen2"}, gguf_by(tq2_0), 256),
}  # fmt: skip


def change_tensor(directory: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Changes one tensor of a folder in its file."""
    tensors = load_file(directory / WEIGHTS)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, directory / WEIGHTS)


def change_config(directory: Path, key: str, **changes: Any) -> None:
    """Changes members of an object in config.json."""
    before = json.loads((directory / "config.json").read_text())
    edit_config(directory, **{key: before[key] | changes})

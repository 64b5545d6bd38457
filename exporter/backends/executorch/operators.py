"""The Tiny-QMoE operators in PyTorch: schemas, fake kernels, and a CPU implementation through the
C++ core.

Importing this module registers, under `torch.ops.tinyqmoe`,

- `lzw_decode(blob, rows, cols)`: TQLZ bytes -> levels, int8 [rows, cols];
- `lzw_linear(x, blob, scales, out_features, group_size, int16_activations)`: float32 [.., in] ->
  [.., out_features], decoding fused with the product;
- `lzw_embedding(ids, blob, scales, embedding_dim, group_size)`: int64 [..] -> float32 [..,
  embedding_dim], decoding only the rows that are asked for;

each with the `.out` form ExecuTorch calls. `blob` is uint8 [n_bytes] (exporter/codec/FORMAT.md),
`scales` float32 [rows, n_groups]. No output's shape depends on the blob, so a program can be
lowered with a stand-in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exporter.codec.native import NativeTensor

_LIBRARY = torch.library.Library("tinyqmoe", "DEF")
_LIBRARY.define("lzw_decode(Tensor blob, int rows, int cols) -> Tensor")
_LIBRARY.define("lzw_decode.out(Tensor blob, int rows, int cols, *, Tensor(a!) out) -> Tensor(a!)")
_LINEAR_ARGS = (
    "Tensor x, Tensor blob, Tensor scales, int out_features, int group_size, bool int16_activations"
)
_LIBRARY.define(f"lzw_linear({_LINEAR_ARGS}) -> Tensor")
_LIBRARY.define(f"lzw_linear.out({_LINEAR_ARGS}, *, Tensor(a!) out) -> Tensor(a!)")
_EMBEDDING_ARGS = "Tensor ids, Tensor blob, Tensor scales, int embedding_dim, int group_size"
_LIBRARY.define(f"lzw_embedding({_EMBEDDING_ARGS}) -> Tensor")
_LIBRARY.define(f"lzw_embedding.out({_EMBEDDING_ARGS}, *, Tensor(a!) out) -> Tensor(a!)")


def _decode(blob: Tensor, rows: int, cols: int) -> Tensor:
    with NativeTensor(blob.numpy()) as tensor:
        _expect_shape(tensor, rows, cols)
        return torch.from_numpy(tensor.decode_rows())


def _linear(
    x: Tensor,
    blob: Tensor,
    scales: Tensor,
    out_features: int,
    group_size: int,
    int16_activations: bool,
) -> Tensor:
    flat = x.reshape(-1, x.shape[-1]).contiguous().numpy()  # [.., in] -> [tokens, in]
    with NativeTensor(blob.numpy()) as tensor:
        _expect_shape(tensor, out_features, x.shape[-1])
        multiply = tensor.linear_x16 if int16_activations else tensor.linear_f32
        y = multiply(flat, scales.numpy(), group_size, threads=torch.get_num_threads())
    return torch.from_numpy(y).reshape(*x.shape[:-1], out_features)


def _embedding(
    ids: Tensor, blob: Tensor, scales: Tensor, embedding_dim: int, group_size: int
) -> Tensor:
    with NativeTensor(blob.numpy()) as tensor:
        _expect_shape(tensor, scales.shape[0], embedding_dim)
        rows = tensor.embedding(ids.reshape(-1).contiguous().numpy(), scales.numpy(), group_size)
    return torch.from_numpy(rows).reshape(*ids.shape, embedding_dim)


def _expect_shape(tensor: NativeTensor, rows: int, cols: int) -> None:
    if (tensor.info.rows, tensor.info.cols) != (rows, cols):
        raise ValueError(
            f"the blob holds {tensor.info.rows} x {tensor.info.cols} levels, expected {rows} x "
            f"{cols}"
        )


def _decode_fake(blob: Tensor, rows: int, cols: int) -> Tensor:
    return blob.new_empty((rows, cols), dtype=torch.int8)


def _linear_fake(
    x: Tensor,
    blob: Tensor,
    scales: Tensor,
    out_features: int,
    group_size: int,
    int16_activations: bool,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _embedding_fake(
    ids: Tensor, blob: Tensor, scales: Tensor, embedding_dim: int, group_size: int
) -> Tensor:
    return ids.new_empty((*ids.shape, embedding_dim), dtype=torch.float32)


def _register(name: str, compute: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Registers `compute` and `fake` for the functional and for the `.out` form of an operator."""

    def compute_out(*args: Any, out: Tensor) -> Tensor:
        result = compute(*args)
        # copy_ would broadcast and convert.
        if (out.shape, out.dtype) != (result.shape, result.dtype):
            raise ValueError(
                f"out is {out.dtype} {list(out.shape)}, expected {result.dtype} "
                f"{list(result.shape)}"
            )
        return out.copy_(result)

    def fake_out(*args: Any, out: Tensor) -> Tensor:
        return out

    _LIBRARY.impl(name, compute, "CPU")
    _LIBRARY.impl(f"{name}.out", compute_out, "CPU")
    torch.library.register_fake(f"tinyqmoe::{name}", fake, lib=_LIBRARY)
    torch.library.register_fake(f"tinyqmoe::{name}.out", fake_out, lib=_LIBRARY)


_register("lzw_decode", _decode, _decode_fake)
_register("lzw_linear", _linear, _linear_fake)
_register("lzw_embedding", _embedding, _embedding_fake)

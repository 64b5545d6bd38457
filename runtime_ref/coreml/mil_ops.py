"""Operations of ML Programs (opsets of iOS 17 and 18) that compute, as functions on tensors.

The signature of a function is its definition: positional parameters are tensors, and their
annotation says of which types; keyword-only parameters are constants of the program. `BY_NAME` is
read from them. Operations are given floats as float32, whatever the type in the program is, and the
interpreter rounds their results; those marked `moves` only move values, and get them as they are
held: they are in mil_moves.py.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from runtime_ref.coreml import mil_moves  # noqa: F401  (puts its operations into BY_NAME)
from runtime_ref.coreml.mil_operation import (
    ANY_RESULT,
    BY_NAME,
    Anything,
    Float,
    LazyFloat,
    Mask,
    Matrix,
    Number,
    Vector,
    operation,
)
from runtime_ref.coreml.mil_weights import Weight

__all__ = ["BY_NAME"]


# Element by element.


@operation()
def add(x: Number, y: Number) -> Tensor:
    return x + y


@operation()
def sub(x: Number, y: Number) -> Tensor:
    return x - y


@operation()
def mul(x: Number, y: Number) -> Tensor:
    return x * y


@operation()
def real_div(x: Float, y: Float) -> Tensor:
    return x / y


@operation()
def floor_div(x: Number, y: Number) -> Tensor:
    return torch.floor_divide(x, y)


@operation(result="bool")
def less(x: Number, y: Number) -> Tensor:
    return x < y


@operation(result="bool")
def less_equal(x: Number, y: Number) -> Tensor:
    return x <= y


@operation(result="bool")
def greater_equal(x: Number, y: Number) -> Tensor:
    return x >= y


@operation("abs")
def absolute(x: Number) -> Tensor:
    return x.abs()


@operation()
def square(x: Number) -> Tensor:
    return x * x


@operation()
def sqrt(x: Float) -> Tensor:
    return x.sqrt()


@operation()
def rsqrt(x: Float, *, epsilon: float = 1e-12) -> Tensor:
    return 1 / (x + epsilon).sqrt()


@operation()
def sigmoid(x: Float) -> Tensor:
    return x.sigmoid()


@operation()
def tanh(x: Float) -> Tensor:
    return x.tanh()


@operation()
def silu(x: Float) -> Tensor:
    return functional.silu(x)


@operation()
def relu(x: Float) -> Tensor:
    return x.relu()


@operation()
def gelu(
    x: Float, *, mode: Literal["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"] = "EXACT"
) -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@operation(result=ANY_RESULT)
def cast(
    x: Anything,
    *,
    dtype: Literal["fp16", "fp32", "int32", "int16", "uint16", "int8", "uint8", "bool"],
) -> Tensor:
    """Values in another type, towards zero where a fraction is lost.

    Floats become halves when the interpreter rounds the result.
    """
    to = {
        "fp16": torch.float32,
        "fp32": torch.float32,
        "bool": torch.bool,
        "int8": torch.int8,
        "uint8": torch.uint8,
        "int16": torch.int16,
    }.get(dtype, torch.int32)
    return x.to(to)


# Over axes.


@operation()
def reduce_sum(x: Number, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.sum(dim=_axes(x, axes), keepdim=keep_dims)


@operation()
def reduce_mean(x: Float, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.mean(dim=_axes(x, axes), keepdim=keep_dims)


@operation()
def reduce_max(x: Number, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.amax(dim=_axes(x, axes), keepdim=keep_dims)


def _axes(x: Tensor, axes: list[int] | None) -> list[int]:
    """Numbers of the axes that are meant: all of x without a list."""
    return list(range(x.dim())) if axes is None else axes


@operation()
def softmax(x: Float, *, axis: int = -1) -> Tensor:
    return x.softmax(dim=axis)


@operation()
def layer_norm(
    x: Float,
    gamma: Vector | None = None,
    beta: Vector | None = None,
    *,
    axes: list[int] | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    along = sorted(axis % x.dim() for axis in _axes(x, axes))
    shape = [n if axis in along else 1 for axis, n in enumerate(x.shape)]
    centred = x - x.mean(dim=along, keepdim=True)
    y = centred / (centred.square().mean(dim=along, keepdim=True) + epsilon).sqrt()
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@operation()
def batch_norm(
    x: Float,
    mean: Vector,
    variance: Vector,
    gamma: Vector | None = None,
    beta: Vector | None = None,
    *,
    epsilon: float = 1e-5,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


# Products.


@operation()
def linear(x: Float, weight: Matrix, bias: Vector | None = None) -> Tensor:
    """Product with bias: x [.., in], weight [out, in], bias [out] -> [.., out]."""
    y = _times_rows(x, weight) if isinstance(weight, Weight) else functional.linear(x, weight)
    return y if bias is None else y + bias


def _times_rows(x: Tensor, weight: Weight) -> Tensor:
    """Product of x [.., in] and the transpose of weight [out, in].

    It is computed block by block if the weight is not held dense.
    """
    if (dense := weight.kept()) is not None:
        return functional.linear(x, dense)
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    for begin, rows in weight.blocks():
        y[..., begin : begin + len(rows)] = functional.linear(x, rows)
    return y


@operation()
def matmul(
    x: Float, y: LazyFloat, *, transpose_x: bool = False, transpose_y: bool = False
) -> Tensor:
    x = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    if isinstance(y, Weight):
        if transpose_y and len(y.shape) == 2:
            return _times_rows(x, y)
        y = y.all()
    return x @ (y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y)


@operation()
def scaled_dot_product_attention(
    query: Float, key: Float, value: Float, attn_mask: Mask | None = None
) -> Tensor:
    """Attention of query [.., L, E] over key [.., S, E] and value [.., S, V] -> [.., L, V].

    The mask, broadcast to [.., L, S], is added, or is True where to look.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1) @ value


@operation()
def conv(
    x: Float,
    weight: Vector,
    bias: Vector | None = None,
    *,
    strides: list[int] | None = None,
    pad_type: Literal["valid", "custom"] = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution of x [N, C_in, *D] with weight [C_out, C_in / groups, *K]."""
    ones = [1] * (x.dim() - 2)
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(ones)]
    return function(
        _padded(x, pad_type, pad, 0), weight, bias, strides or ones, 0, dilations or ones, groups
    )


@operation()
def max_pool(
    x: Float,
    *,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: Literal["valid", "custom"] = "valid",
    pad: list[int] | None = None,
    ceil_mode: Literal[False] = False,
) -> Tensor:
    function = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[
        x.dim() - 2
    ]
    return function(
        _padded(x, pad_type, pad, -math.inf), kernel_sizes, strides or [1] * len(kernel_sizes)
    )


@operation()
def avg_pool(
    x: Float,
    *,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: Literal["valid", "custom"] = "valid",
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: Literal[False] = False,
) -> Tensor:
    function = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[
        x.dim() - 2
    ]
    strides = strides or [1] * len(kernel_sizes)
    mean = function(_padded(x, pad_type, pad, 0), kernel_sizes, strides)
    if not exclude_padding_from_average:
        return mean
    return mean / function(_padded(torch.ones_like(x), pad_type, pad, 0), kernel_sizes, strides)


def _padded(x: Tensor, pad_type: str, pad: list[int] | None, value: float) -> Tensor:
    """Tensor x with a border of `value`; unchanged for `pad_type` valid.

    `pad` is (before, after) of each axis in order, where PyTorch wants the last axis first.
    """
    if pad_type == "valid" or not pad or not any(pad):
        return x
    return functional.pad(
        x, [n for i in range(len(pad) - 2, -1, -2) for n in pad[i : i + 2]], value=value
    )

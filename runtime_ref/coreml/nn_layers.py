"""Standard layers of Core ML neural networks that the interpreter computes, in float32 NumPy.

Every value is a float32 array, as inside Core ML: sizes, indices and truth values too. A layer is
prepared from its message once, when a network is opened, which refuses what cannot be computed; the
result is a function on arrays. Shapes are those of EXACT_ARRAY_MAPPING: nothing is padded to five
dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_ref.coreml import nn_converted_layers  # noqa: F401  (puts its layers into STANDARD)
from runtime_ref.coreml.nn_layer import (
    STANDARD,
    Compute,
    Standard,
    require,
    standard,
    weights,
    whole_numbers,
)

__all__ = ["STANDARD"]

MAX_RANK = 5
LONGEST_RANGE = 1 << 24  # float32 counts no further


# Values and shapes


@standard("loadConstantND", 0)
def _load_constant(params: Any) -> Compute:
    require(1 <= len(params.shape) <= MAX_RANK, f"a shape of {len(params.shape)} sizes")
    values = weights(params.data, params.shape, "data")
    values.flags.writeable = False
    return lambda: values


@standard("rangeStatic", 0)
def _range(params: Any) -> Compute:
    begin, end, step = params.startValue, params.endValue, params.stepSizeValue
    whole = (
        math.isfinite(begin)
        and math.isfinite(end)
        and step != 0
        and 0 < (end - begin) / step <= LONGEST_RANGE
    )
    require(whole, f"a range from {begin} to {end} in steps of {step}")
    values = np.arange(begin, end, step, dtype=np.float32)
    return lambda: values


@standard("getShape", 1)
def _get_shape(_: Any) -> Compute:
    return lambda x: np.array(x.shape, np.float32)


@standard("reshapeStatic", 1)
def _reshape_static(params: Any) -> Compute:
    shape = tuple(params.targetShape)
    require(1 <= len(shape) <= MAX_RANK and min(shape) > 0, f"targetShape {list(shape)}")
    return lambda x: x.reshape(shape)


@standard("reshapeDynamic", 2)
def _reshape_dynamic(_: Any) -> Compute:
    def compute(x: NDArray[np.float32], shape: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes = whole_numbers(shape)
        if sizes.ndim != 1 or not 1 <= sizes.size <= MAX_RANK or sizes.min() < 1:
            raise ValueError(f"reshape to {shape.tolist()}")
        return x.reshape(tuple(sizes))

    return compute


@standard("expandDims", 1)
def _expand_dims(params: Any) -> Compute:
    axes = tuple(params.axes)
    require(len(axes) == len(set(axes)) > 0, f"axes {list(axes)}")
    require(min(axes) >= 0 or max(axes) < 0, f"axes {list(axes)} of both signs")
    return lambda x: np.expand_dims(x, axes)


@standard("flattenTo2D", 1)
def _flatten_to_2d(params: Any) -> Compute:
    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        axis = params.axis + (x.ndim if params.axis < 0 else 0)
        if not 0 <= axis < x.ndim:
            raise ValueError(f"axis {params.axis} of {list(x.shape)}")
        return x.reshape(math.prod(x.shape[:axis]), -1)

    return compute


@standard("transpose", 1)
def _transpose(params: Any) -> Compute:
    axes = tuple(params.axes)
    require(sorted(axes) == list(range(len(axes))) and len(axes) > 0, f"axes {list(axes)}")
    return lambda x: x.transpose(axes)


@standard("concatND", 2, 1 << 16)
def _concat(params: Any) -> Compute:
    require(not params.interleave, "interleave")
    return lambda *values: np.concatenate(values, params.axis)


@standard("sliceStatic", 1)
def _slice(params: Any) -> Compute:
    rank = len(params.beginIds)
    squeeze = list(params.squeezeMasks) or [False] * rank
    lists = (params.endIds, params.strides, params.beginMasks, params.endMasks, squeeze)
    require(
        rank > 0 and all(len(values) == rank for values in lists), "parameters of different lengths"
    )
    require(0 not in params.strides, "a stride of 0")
    index = tuple(
        params.beginIds[i]
        if squeeze[i]
        else slice(
            None if params.beginMasks[i] else params.beginIds[i],
            None if params.endMasks[i] else params.endIds[i],
            params.strides[i],
        )
        for i in range(rank)
    )

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        if x.ndim != rank:
            raise ValueError(f"a slice of {rank} dimensions of {list(x.shape)}")
        result = x[index]
        if result.size == 0:
            raise ValueError(f"an empty slice of {list(x.shape)}")
        return result

    return compute


@standard("gather", 2)
def _gather(params: Any) -> Compute:
    return lambda data, indices: np.take(data, whole_numbers(indices), params.axis)


# Arithmetic


def _broadcast(name: str, compute: Compute, inputs: int = 2) -> None:
    """Registers a layer that computes element by element, with broadcasting."""

    def prepare(_: Any) -> Compute:
        return lambda *values: compute(*values).astype(np.float32, copy=False)

    STANDARD[name] = Standard(range(inputs, inputs + 1), prepare)


_broadcast("addBroadcastable", np.add)
_broadcast("multiplyBroadcastable", np.multiply)
_broadcast("divideBroadcastable", np.divide)
_broadcast("maxBroadcastable", np.maximum)


def _select(
    condition: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.float32]:
    return np.where(condition != 0, x, y)


_broadcast("whereBroadcastable", _select, inputs=3)


def _comparison(name: str, compute: Compute) -> None:
    """Registers a comparison of two inputs, or of one with the constant `alpha`."""

    def prepare(params: Any) -> Compute:
        return lambda x, *y: compute(x, y[0] if y else np.float32(params.alpha)).astype(np.float32)

    STANDARD[name] = Standard(range(1, 3), prepare)


_comparison("greaterThan", np.greater)
_comparison("greaterEqual", np.greater_equal)


@standard("unary", 1)
def _unary(params: Any) -> Compute:
    name = params.Operation.Name(params.type)
    functions = {"ABS": np.abs, "SQRT": np.sqrt}
    require(name in functions, f"the function {name}")
    scale, shift = np.float32(params.scale or 1), np.float32(params.shift)
    return lambda x: functions[name](x * scale + shift)


@standard("activation", 1)
def _activation(params: Any) -> Compute:
    name = params.WhichOneof("NonlinearityType")
    functions: dict[str, Compute] = {
        "sigmoid": _sigmoid,
        "tanh": np.tanh,
        "ReLU": lambda x: np.maximum(x, np.float32(0)),
    }
    require(name in functions, f"the function {name}")
    return functions[name]


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sigmoid of x, float32 [..], without overflow."""
    small = np.exp(-np.abs(x))  # at most 1: nothing overflows
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


@standard("softmaxND", 1)
def _softmax(params: Any) -> Compute:
    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        # Scores of a long prompt are the largest values there are: one copy, not three.
        e: NDArray[np.float32] = x - x.max(params.axis, keepdims=True)
        np.exp(e, out=e)
        e /= e.sum(params.axis, keepdims=True)
        return e

    return compute


def _reduction(name: str, compute: Callable[..., NDArray[np.float32]]) -> None:
    """Registers a layer that reduces axes."""

    def prepare(params: Any) -> Compute:
        axes = None if params.reduceAll else tuple(params.axes)
        require(axes is None or len(axes) > 0, "no axes")
        # A result without dimensions has one of size 1 in Core ML.
        return lambda x: np.atleast_1d(compute(x, axis=axes, keepdims=params.keepDims))

    STANDARD[name] = Standard(range(1, 2), prepare)


_reduction("reduceMax", np.max)
_reduction("reduceMean", np.mean)


@standard("batchedMatmul", 2)
def _batched_matmul(params: Any) -> Compute:
    require(
        not params.HasField("weights") and not params.hasBias, "weights of its own and two inputs"
    )

    def compute(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(f"a product of {list(a.shape)} and {list(b.shape)}")
        return (a.swapaxes(-1, -2) if params.transposeA else a) @ (
            b.swapaxes(-1, -2) if params.transposeB else b
        )

    return compute

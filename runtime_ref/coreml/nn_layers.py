"""The standard layers of Core ML neural networks that the interpreter computes, in float32 NumPy.

Every value is a float32 array, as inside Core ML: sizes, indices and truth values too. A layer is
prepared from its message once, when a network is opened, which refuses what cannot be computed; the
result is a function on arrays. Shapes are those of EXACT_ARRAY_MAPPING: nothing is padded to five
dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from coremltools.proto.NeuralNetwork_pb2 import WeightParams

Compute = Callable[..., np.ndarray]
MAX_RANK = 5
LONGEST_RANGE = 1 << 24  # float32 counts no further


class UnsupportedLayerError(ValueError):
    """Something in a layer that this does not compute, or that makes no sense."""


@dataclass(frozen=True)
class Standard:
    """A type of layer: how many inputs it takes, and how its message becomes a function on them. It
    has one output."""

    inputs: range
    prepare: Callable[[Any], Compute]


STANDARD: dict[str, Standard] = {}


def _standard(
    name: str, at_least: int, at_most: int | None = None
) -> Callable[[Callable[[Any], Compute]], None]:
    """Registers `prepare` for a type of layer; without `at_most`, exactly `at_least` inputs."""

    def register(prepare: Callable[[Any], Compute]) -> None:
        STANDARD[name] = Standard(
            range(at_least, (at_least if at_most is None else at_most) + 1), prepare
        )

    return register


def whole_numbers(x: np.ndarray) -> np.ndarray:
    """float32 -> int64 of the same shape. Raises ValueError unless every value is a whole
    number."""
    numbers = np.rint(x).astype(np.int64)
    if not np.array_equal(numbers, x):
        raise ValueError("indices or sizes that are not whole numbers")
    return numbers


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise UnsupportedLayerError(problem)


def _weights(params: WeightParams, shape: Sequence[int], what: str) -> np.ndarray:
    """float32 [*shape] of values stored as float32 or float16."""
    kinds = [field.name for field, _ in params.ListFields()]
    _require(
        kinds in (["floatValue"], ["float16Value"]),
        f"{what} stored as {kinds or 'nothing'}, expected floats",
    )
    if kinds == ["floatValue"]:
        values = np.array(params.floatValue, np.float32)
    else:
        _require(len(params.float16Value) % 2 == 0, f"{what}: half a float16")
        values = np.frombuffer(params.float16Value, "<f2").astype(np.float32)
    _require(values.size == math.prod(shape), f"{what}: {values.size} values for {list(shape)}")
    return values.reshape(shape)


# Values and shapes


@_standard("loadConstantND", 0)
def _load_constant(params: Any) -> Compute:
    _require(1 <= len(params.shape) <= MAX_RANK, f"a shape of {len(params.shape)} sizes")
    values = _weights(params.data, params.shape, "data")
    values.flags.writeable = False
    return lambda: values


@_standard("rangeStatic", 0)
def _range(params: Any) -> Compute:
    begin, end, step = params.startValue, params.endValue, params.stepSizeValue
    whole = (
        math.isfinite(begin)
        and math.isfinite(end)
        and step != 0
        and 0 < (end - begin) / step <= LONGEST_RANGE
    )
    _require(whole, f"a range from {begin} to {end} in steps of {step}")
    values = np.arange(begin, end, step, np.float32)
    return lambda: values


@_standard("getShape", 1)
def _get_shape(_: Any) -> Compute:
    return lambda x: np.array(x.shape, np.float32)


@_standard("reshapeStatic", 1)
def _reshape_static(params: Any) -> Compute:
    shape = tuple(params.targetShape)
    _require(1 <= len(shape) <= MAX_RANK and min(shape) > 0, f"targetShape {list(shape)}")
    return lambda x: x.reshape(shape)


@_standard("reshapeDynamic", 2)
def _reshape_dynamic(_: Any) -> Compute:
    def compute(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
        sizes = whole_numbers(shape)
        if sizes.ndim != 1 or not 1 <= sizes.size <= MAX_RANK or sizes.min() < 1:
            raise ValueError(f"reshape to {shape.tolist()}")
        return x.reshape(tuple(sizes))

    return compute


@_standard("expandDims", 1)
def _expand_dims(params: Any) -> Compute:
    axes = tuple(params.axes)
    _require(len(axes) == len(set(axes)) > 0, f"axes {list(axes)}")
    _require(min(axes) >= 0 or max(axes) < 0, f"axes {list(axes)} of both signs")
    return lambda x: np.expand_dims(x, axes)


@_standard("flattenTo2D", 1)
def _flatten_to_2d(params: Any) -> Compute:
    def compute(x: np.ndarray) -> np.ndarray:
        axis = params.axis + (x.ndim if params.axis < 0 else 0)
        if not 0 <= axis < x.ndim:
            raise ValueError(f"axis {params.axis} of {list(x.shape)}")
        return x.reshape(math.prod(x.shape[:axis]), -1)

    return compute


@_standard("transpose", 1)
def _transpose(params: Any) -> Compute:
    axes = tuple(params.axes)
    _require(sorted(axes) == list(range(len(axes))) and len(axes) > 0, f"axes {list(axes)}")
    return lambda x: x.transpose(axes)


@_standard("concatND", 2, 1 << 16)
def _concat(params: Any) -> Compute:
    _require(not params.interleave, "interleave")
    return lambda *values: np.concatenate(values, params.axis)


@_standard("sliceStatic", 1)
def _slice(params: Any) -> Compute:
    rank = len(params.beginIds)
    squeeze = list(params.squeezeMasks) or [False] * rank
    lists = (params.endIds, params.strides, params.beginMasks, params.endMasks, squeeze)
    _require(
        rank > 0 and all(len(values) == rank for values in lists), "parameters of different lengths"
    )
    _require(0 not in params.strides, "a stride of 0")
    index = tuple(
        params.beginIds[i] if squeeze[i] else slice(
            None if params.beginMasks[i] else params.beginIds[i],
            None if params.endMasks[i] else params.endIds[i],
            params.strides[i],
        )
        for i in range(rank)
    )  # fmt: skip

    def compute(x: np.ndarray) -> np.ndarray:
        if x.ndim != rank:
            raise ValueError(f"a slice of {rank} dimensions of {list(x.shape)}")
        result = x[index]
        if result.size == 0:
            raise ValueError(f"an empty slice of {list(x.shape)}")
        return result

    return compute


@_standard("gather", 2)
def _gather(params: Any) -> Compute:
    return lambda data, indices: np.take(data, whole_numbers(indices), params.axis)


# Arithmetic


def _broadcast(name: str, compute: Compute, inputs: int = 2) -> None:
    def prepare(_: Any) -> Compute:
        return lambda *values: compute(*values).astype(np.float32, copy=False)

    STANDARD[name] = Standard(range(inputs, inputs + 1), prepare)


_broadcast("addBroadcastable", np.add)
_broadcast("multiplyBroadcastable", np.multiply)
_broadcast("divideBroadcastable", np.divide)
_broadcast("maxBroadcastable", np.maximum)
_broadcast("whereBroadcastable", lambda condition, x, y: np.where(condition != 0, x, y), inputs=3)


def _comparison(name: str, compute: Compute) -> None:
    """Of two inputs, or of one with the constant `alpha`; 1 for true, 0 for false."""

    def prepare(params: Any) -> Compute:
        return lambda x, *y: compute(x, y[0] if y else np.float32(params.alpha)).astype(np.float32)

    STANDARD[name] = Standard(range(1, 3), prepare)


_comparison("greaterThan", np.greater)
_comparison("greaterEqual", np.greater_equal)


@_standard("unary", 1)
def _unary(params: Any) -> Compute:
    name = params.Operation.Name(params.type)
    functions = {"ABS": np.abs, "SQRT": np.sqrt}
    _require(name in functions, f"the function {name}")
    scale, shift = np.float32(params.scale or 1), np.float32(params.shift)
    return lambda x: functions[name](x * scale + shift)


@_standard("activation", 1)
def _activation(params: Any) -> Compute:
    name = params.WhichOneof("NonlinearityType")
    functions: dict[str, Compute] = {
        "sigmoid": _sigmoid, "tanh": np.tanh, "ReLU": lambda x: np.maximum(x, np.float32(0)),
    }  # fmt: skip
    _require(name in functions, f"the function {name}")
    return functions[name]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))  # at most 1: nothing overflows
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


@_standard("softmaxND", 1)
def _softmax(params: Any) -> Compute:
    def compute(x: np.ndarray) -> np.ndarray:
        e = x - x.max(params.axis, keepdims=True)
        np.exp(
            e, out=e
        )  # scores of a long prompt are the largest values there are: one copy, not three
        e /= e.sum(params.axis, keepdims=True)
        return e

    return compute


def _reduction(name: str, compute: Callable[..., np.ndarray]) -> None:
    def prepare(params: Any) -> Compute:
        axes = None if params.reduceAll else tuple(params.axes)
        _require(axes is None or len(axes) > 0, "no axes")
        # A result without dimensions has one of size 1 in Core ML.
        return lambda x: np.atleast_1d(compute(x, axis=axes, keepdims=params.keepDims))

    STANDARD[name] = Standard(range(1, 2), prepare)


_reduction("reduceMax", np.max)
_reduction("reduceMean", np.mean)


@_standard("batchedMatmul", 2)
def _batched_matmul(params: Any) -> Compute:
    _require(
        not params.HasField("weights") and not params.hasBias, "weights of its own and two inputs"
    )

    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(f"a product of {list(a.shape)} and {list(b.shape)}")
        return (a.swapaxes(-1, -2) if params.transposeA else a) @ (
            b.swapaxes(-1, -2) if params.transposeB else b
        )

    return compute


# What models converted from elsewhere are made of besides


def _elementwise(name: str, compute: Compute) -> None:
    """Of any number of inputs, or of one with the constant `alpha`."""

    def prepare(params: Any) -> Compute:
        alpha = np.float32(params.alpha)
        return lambda x, *more: reduce(compute, more or (alpha,), x)

    STANDARD[name] = Standard(range(1, 1 << 16), prepare)


_elementwise("add", np.add)
_elementwise("multiply", np.multiply)


@_standard("slice", 1)
def _slice_of_one_axis(params: Any) -> Compute:
    axis = ("CHANNEL_AXIS", "HEIGHT_AXIS", "WIDTH_AXIS").index(
        params.SliceAxis.Name(params.axis)
    ) - 3
    begin, end, stride = params.startIndex, params.endIndex, params.stride or 1
    _require(
        0 <= begin < end, f"a slice from {begin} to {end}"
    )  # what a negative end means is not documented alike

    def compute(x: np.ndarray) -> np.ndarray:
        if end > x.shape[axis]:
            raise ValueError(f"a slice to {end} of {list(x.shape)}, axis {axis}")
        return np.moveaxis(np.moveaxis(x, axis, 0)[begin:end:stride], 0, axis)

    return compute


@_standard("embeddingND", 1)
def _embedding(params: Any) -> Compute:
    n_ids, size = params.vocabSize, params.embeddingSize
    table = _weights(params.weights, (size, n_ids), "weights").T
    bias = _weights(params.bias, (size,), "bias") if params.hasBias else np.float32(0)

    def compute(ids: np.ndarray) -> np.ndarray:  # [.., 1] -> [.., size]
        if ids.ndim < 2 or ids.shape[-1] != 1 or ids.min() < 0 or ids.max() >= n_ids:
            raise ValueError(
                f"an embedding of {n_ids} for {list(ids.shape)}, {ids.min()} to {ids.max()}"
            )
        return table[whole_numbers(ids[..., 0])] + bias

    return compute


@_standard("mvn", 1)
def _normalization(params: Any) -> Compute:
    axes = (-3, -2, -1) if params.acrossChannels else (-2, -1)
    eps = np.float32(params.epsilon or 1e-5)

    def compute(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axes, keepdims=True)
        return (
            centred / np.sqrt(x.var(axes, keepdims=True) + eps)
            if params.normalizeVariance
            else centred
        )

    return compute


@_standard("scale", 1)
def _scale(params: Any) -> Compute:
    scale = _by_channel(params.scale, params.shapeScale, "scale")
    bias = _by_channel(params.bias, params.shapeBias, "bias") if params.hasBias else np.float32(0)
    return lambda x: x * scale + bias


def _by_channel(params: WeightParams, shape: Sequence[int], what: str) -> np.ndarray:
    """[1], [C] as [C, 1, 1], [1, H, W] or [C, H, W]."""
    _require(len(shape) in (1, 3), f"{what} of shape {list(shape)}")
    return _weights(params, tuple(shape) if len(shape) == 3 else (shape[0], 1, 1), what)


@_standard("innerProduct", 1)
def _inner_product(params: Any) -> Compute:
    _require(not params.int8DynamicQuantize, "int8DynamicQuantize")
    weight = _weights(params.weights, (params.outputChannels, params.inputChannels), "weights")
    bias = (
        _weights(params.bias, (params.outputChannels,), "bias") if params.hasBias else np.float32(0)
    )
    return lambda x: x @ weight.T + bias


@_standard("convolution", 1)
def _convolution(params: Any) -> Compute:
    _require(not params.isDeconvolution, "deconvolution")
    kernel, strides = _pair(params.kernelSize, 3), _pair(params.stride, 1)
    dilation, groups = _pair(params.dilationFactor, 1), params.nGroups or 1
    channels, per_group = params.outputChannels, params.kernelChannels
    _require(channels % groups == 0, f"{channels} channels in {groups} groups")
    weight = _weights(params.weights, (groups, channels // groups, per_group, *kernel), "weights")
    bias = _weights(params.bias, (channels, 1, 1), "bias") if params.hasBias else np.float32(0)
    amounts = _padding(params)

    def compute(x: np.ndarray) -> np.ndarray:  # [.., C, H, W]
        if x.ndim < 3 or x.shape[-3] != groups * per_group:
            raise ValueError(f"a convolution over {groups * per_group} channels of {list(x.shape)}")
        windows = _windows(
            _padded(x, amounts, 0), kernel, strides, dilation
        )  # [.., C, H', W', kh, kw]
        windows = windows.reshape(*x.shape[:-3], groups, per_group, *windows.shape[-4:])
        y = np.einsum("...gchwij,gocij->...gohw", windows, weight, optimize=True)
        return y.reshape(*x.shape[:-3], channels, *y.shape[-2:]) + bias

    return compute


@_standard("pooling", 1)
def _pooling(params: Any) -> Compute:
    kind = params.PoolingType.Name(params.type)
    _require(kind in ("MAX", "AVERAGE"), f"pooling of type {kind}")
    fold = np.max if kind == "MAX" else np.mean
    if params.globalPooling:
        return lambda x: fold(x, axis=(-2, -1), keepdims=True)
    kernel, strides, amounts = (
        _pair(params.kernelSize, 3),
        _pair(params.stride, 1),
        _padding(params),
    )
    _require(kind == "MAX" or not any(map(any, amounts)), "an average over a padded border")
    return lambda x: fold(
        _windows(_padded(x, amounts, -np.inf), kernel, strides, (1, 1)), axis=(-2, -1)
    )


def _pair(values: Sequence[int], default: int) -> tuple[int, int]:
    pair = tuple(values) or (default, default)
    _require(len(pair) == 2 and min(pair) > 0, f"sizes {list(pair)}, expected two")
    return pair[0], pair[1]


def _padding(params: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """(before, after) of height and width; only explicit amounts are known."""
    _require(
        "valid" in {field.name for field, _ in params.ListFields()}, "padding other than `valid`"
    )
    borders = params.valid.paddingAmounts.borderAmounts
    _require(len(borders) in (0, 2), f"{len(borders)} border amounts")
    amounts = [(b.startEdgeSize, b.endEdgeSize) for b in borders] or [(0, 0), (0, 0)]
    return amounts[0], amounts[1]


def _padded(
    x: np.ndarray, amounts: tuple[tuple[int, int], tuple[int, int]], value: float
) -> np.ndarray:
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + list(amounts), constant_values=value)


def _windows(
    x: np.ndarray, kernel: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]
) -> np.ndarray:
    """[.., H, W] -> [.., H', W', kh, kw], a view."""
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    windows: np.ndarray = sliding_window_view(x, spans, axis=(-2, -1))  # type: ignore[call-overload]  # stub of 2.3
    return windows[..., :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]

"""Standard layers that networks converted from elsewhere are made of, and ours are not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from runtime_ref.coreml.nn_layer import (
    STANDARD,
    Compute,
    Standard,
    require,
    standard,
    weights,
    whole_numbers,
)

if TYPE_CHECKING:
    from coremltools.proto.NeuralNetwork_pb2 import WeightParams


def _elementwise(name: str, compute: Compute) -> None:
    """Registers a layer of any number of inputs, or of one with the constant `alpha`."""

    def prepare(params: Any) -> Compute:
        alpha = np.float32(params.alpha)
        return lambda x, *more: reduce(compute, more or (alpha,), x)

    STANDARD[name] = Standard(range(1, 1 << 16), prepare)


_elementwise("add", np.add)


_elementwise("multiply", np.multiply)


@standard("slice", 1)
def _slice_of_one_axis(params: Any) -> Compute:
    axis = ("CHANNEL_AXIS", "HEIGHT_AXIS", "WIDTH_AXIS").index(
        params.SliceAxis.Name(params.axis)
    ) - 3
    begin, end, stride = params.startIndex, params.endIndex, params.stride or 1
    # What a negative end means is not documented alike everywhere.
    require(0 <= begin < end, f"a slice from {begin} to {end}")

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        if end > x.shape[axis]:
            raise ValueError(f"a slice to {end} of {list(x.shape)}, axis {axis}")
        return np.moveaxis(np.moveaxis(x, axis, 0)[begin:end:stride], 0, axis)

    return compute


@standard("embeddingND", 1)
def _embedding(params: Any) -> Compute:
    n_ids, size = params.vocabSize, params.embeddingSize
    table = weights(params.weights, (size, n_ids), "weights").T
    bias = weights(params.bias, (size,), "bias") if params.hasBias else np.float32(0)

    def compute(ids: NDArray[np.float32]) -> NDArray[np.float32]:  # [.., 1] -> [.., size]
        if ids.ndim < 2 or ids.shape[-1] != 1 or ids.min() < 0 or ids.max() >= n_ids:
            raise ValueError(
                f"an embedding of {n_ids} for {list(ids.shape)}, {ids.min()} to {ids.max()}"
            )
        return table[whole_numbers(ids[..., 0])] + bias

    return compute


@standard("mvn", 1)
def _normalization(params: Any) -> Compute:
    axes = (-3, -2, -1) if params.acrossChannels else (-2, -1)
    eps = np.float32(params.epsilon or 1e-5)

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        centred: NDArray[np.float32] = x - x.mean(axes, keepdims=True)
        if params.normalizeVariance:
            centred /= np.sqrt(x.var(axes, keepdims=True) + eps)
        return centred

    return compute


@standard("scale", 1)
def _scale(params: Any) -> Compute:
    scale = _by_channel(params.scale, params.shapeScale, "scale")
    bias = _by_channel(params.bias, params.shapeBias, "bias") if params.hasBias else np.float32(0)
    return lambda x: x * scale + bias


def _by_channel(params: WeightParams, shape: Sequence[int], what: str) -> NDArray[np.float32]:
    """Weights of one value, channels or places: [1, 1, 1], [C, 1, 1], [1, H, W] or [C, H, W]."""
    require(len(shape) in (1, 3), f"{what} of shape {list(shape)}")
    return weights(params, tuple(shape) if len(shape) == 3 else (shape[0], 1, 1), what)


@standard("innerProduct", 1)
def _inner_product(params: Any) -> Compute:
    require(not params.int8DynamicQuantize, "int8DynamicQuantize")
    weight = weights(params.weights, (params.outputChannels, params.inputChannels), "weights")
    bias = (
        weights(params.bias, (params.outputChannels,), "bias") if params.hasBias else np.float32(0)
    )
    return lambda x: x @ weight.T + bias


@standard("convolution", 1)
def _convolution(params: Any) -> Compute:
    require(not params.isDeconvolution, "deconvolution")
    kernel, strides = _pair(params.kernelSize, 3), _pair(params.stride, 1)
    dilation, groups = _pair(params.dilationFactor, 1), params.nGroups or 1
    channels, per_group = params.outputChannels, params.kernelChannels
    require(channels % groups == 0, f"{channels} channels in {groups} groups")
    weight = weights(params.weights, (groups, channels // groups, per_group, *kernel), "weights")
    bias = weights(params.bias, (channels, 1, 1), "bias") if params.hasBias else np.float32(0)
    amounts = _padding(params)

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:  # [.., C, H, W]
        if x.ndim < 3 or x.shape[-3] != groups * per_group:
            raise ValueError(f"a convolution over {groups * per_group} channels of {list(x.shape)}")
        windows = _windows(_padded(x, amounts, 0), kernel, strides, dilation)
        # [.., C, H', W', kh, kw]
        windows = windows.reshape(*x.shape[:-3], groups, per_group, *windows.shape[-4:])
        y: NDArray[np.float32] = np.einsum(
            "...gchwij,gocij->...gohw", windows, weight, optimize=True
        )
        return y.reshape(*x.shape[:-3], channels, *y.shape[-2:]) + bias

    return compute


@standard("pooling", 1)
def _pooling(params: Any) -> Compute:
    kind = params.PoolingType.Name(params.type)
    require(kind in ("MAX", "AVERAGE"), f"pooling of type {kind}")
    fold = np.max if kind == "MAX" else np.mean
    if params.globalPooling:
        return lambda x: fold(x, axis=(-2, -1), keepdims=True)
    kernel, strides, amounts = (
        _pair(params.kernelSize, 3),
        _pair(params.stride, 1),
        _padding(params),
    )
    require(kind == "MAX" or not any(map(any, amounts)), "an average over a padded border")
    return lambda x: fold(
        _windows(_padded(x, amounts, -np.inf), kernel, strides, (1, 1)), axis=(-2, -1)
    )


def _pair(values: Sequence[int], default: int) -> tuple[int, int]:
    """Two sizes, for height and width. Raises UnsupportedLayerError."""
    pair = tuple(values) or (default, default)
    require(len(pair) == 2 and min(pair) > 0, f"sizes {list(pair)}, expected two")
    return pair[0], pair[1]


def _padding(params: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Border (before, after) of height and width, in values; only explicit amounts are known."""
    require(
        "valid" in {field.name for field, _ in params.ListFields()}, "padding other than `valid`"
    )
    borders = params.valid.paddingAmounts.borderAmounts
    require(len(borders) in (0, 2), f"{len(borders)} border amounts")
    amounts = [(b.startEdgeSize, b.endEdgeSize) for b in borders] or [(0, 0), (0, 0)]
    return amounts[0], amounts[1]


def _padded(
    x: NDArray[np.float32], amounts: tuple[tuple[int, int], tuple[int, int]], value: float
) -> NDArray[np.float32]:
    """Array [.., H, W] with a border of `value`."""
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + list(amounts), constant_values=value)


def _windows(
    x: NDArray[np.float32],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> NDArray[np.float32]:
    """View of all windows of x: [.., H, W] -> [.., H', W', kh, kw]."""
    height, width = ((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    windows = sliding_window_view(sliding_window_view(x, height, -2), width, -2)
    return windows[..., :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]

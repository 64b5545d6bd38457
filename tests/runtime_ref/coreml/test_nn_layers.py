"""Each standard layer of the interpreter against PyTorch, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.quiet import quiet
from runtime_ref.coreml.nn_layer import UnsupportedLayerError, whole_numbers
from runtime_ref.coreml.nn_layers import STANDARD

with quiet():
    from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer


def prepare(kind: str, **params: Any) -> Any:
    layer = NeuralNetworkLayer(**{kind: params})
    return STANDARD[kind].prepare(getattr(layer, kind))


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def check(expected: Tensor, kind: str, *inputs: Tensor, **params: Any) -> None:
    """The layer on `inputs` gives `expected`, as float32."""
    got = prepare(kind, **params)(*(x.float().numpy() for x in inputs))
    assert got.dtype == np.float32
    torch.testing.assert_close(torch.tensor(got), expected.float(), atol=1e-6, rtol=1e-5)


def floats(x: Tensor) -> dict[str, list[float]]:
    return {"floatValue": x.reshape(-1).tolist()}


X, Y = rand(3, 1, 4, 5), rand(2, 1, 5)
IMAGE, KERNEL, BIAS = rand(2, 4, 11, 12), rand(6, 2, 3, 2), rand(6)
IDS = torch.tensor([[[5], [0]], [[3], [3]]])
PLANE = rand(11, 12)
INDICES = torch.tensor([[2, 0], [1, -1]])
MATRIX = rand(6, 5)
BORDERS = [{"startEdgeSize": 1, "endEdgeSize": 2}, {"startEdgeSize": 0, "endEdgeSize": 3}]
VALID = {"paddingAmounts": {"borderAmounts": BORDERS}}
PADDED = F.pad(IMAGE, (0, 3, 1, 2), value=-torch.inf)

CASES: dict[str, tuple[Tensor, str, tuple[Tensor, ...], dict[str, Any]]] = {
    "constant": (X, "loadConstantND", (), {"shape": X.shape, "data": floats(X)}),
    "constant in halves": (
        X.half(),
        "loadConstantND",
        (),
        {"shape": X.shape, "data": {"float16Value": X.half().numpy().tobytes()}},
    ),
    "range": (
        torch.arange(2, 11, 3),
        "rangeStatic",
        (),
        {"startValue": 2, "endValue": 11, "stepSizeValue": 3},
    ),
    "range downwards": (
        torch.arange(5, 0, -2),
        "rangeStatic",
        (),
        {"startValue": 5, "endValue": 0, "stepSizeValue": -2},
    ),
    "shape": (torch.tensor(X.shape), "getShape", (X,), {}),
    "static reshape": (X.reshape(6, 10), "reshapeStatic", (X,), {"targetShape": [6, 10]}),
    "dynamic reshape": (X.reshape(6, 10), "reshapeDynamic", (X, torch.tensor([6, 10])), {}),
    "expand": (Y[None, :, None], "expandDims", (Y,), {"axes": [0, 2]}),
    "expand from the end": (Y[..., None, None], "expandDims", (Y,), {"axes": [-1, -2]}),
    "flatten": (X.reshape(3, 20), "flattenTo2D", (X,), {"axis": 1}),
    "flatten from the end": (X.reshape(12, 5), "flattenTo2D", (X,), {"axis": -1}),
    "flatten at 0": (X.reshape(1, 60), "flattenTo2D", (X,), {"axis": 0}),
    "transpose": (X.permute(2, 0, 3, 1), "transpose", (X,), {"axes": [2, 0, 3, 1]}),
    "concat": (torch.cat([X, X + 1, -X], 2), "concatND", (X, X + 1, -X), {"axis": 2}),
    "concat from the end": (torch.cat([X, -X], -1), "concatND", (X, -X), {"axis": -1}),
    "gather": (Y[:, :, [4, 0, 0]], "gather", (Y, torch.tensor([4, 0, 0])), {"axis": -1}),
    "gather by a matrix": (X[INDICES], "gather", (X, INDICES), {"axis": 0}),
    "slice": (
        X[:2, :, 1:, 3:4],
        "sliceStatic",
        (X,),
        {
            "beginIds": [1, 7, 1, 3],
            "beginMasks": [True, True, False, False],
            "endIds": [2, 0, 9, 4],
            "endMasks": [False, True, True, False],
            "strides": [1] * 4,
            "squeezeMasks": [False] * 4,
        },
    ),
    "slice from the end, squeezed": (
        X[-1, :, ::2, -3:-1],
        "sliceStatic",
        (X,),
        {
            "beginIds": [-1, 0, 0, -3],
            "beginMasks": [False, True, True, False],
            "endIds": [0, 0, 0, -1],
            "endMasks": [False, True, True, False],
            "strides": [1, 1, 2, 1],
            "squeezeMasks": [True, False, False, False],
        },
    ),
    "add": (X + Y, "addBroadcastable", (X, Y), {}),
    "multiply": (X * Y, "multiplyBroadcastable", (X, Y), {}),
    "divide": (X / Y, "divideBroadcastable", (X, Y), {}),
    "max": (torch.maximum(X, Y), "maxBroadcastable", (X, Y), {}),
    "where": (torch.where(X > 0, Y, -X), "whereBroadcastable", ((X > 0) * 2.0, Y, -X), {}),
    "greater": (X > Y, "greaterThan", (X, Y), {}),
    "greater than alpha": (X > 0.5, "greaterThan", (X,), {"alpha": 0.5}),
    "greater than itself": (torch.zeros_like(X), "greaterThan", (X, X), {}),
    "greater or equal": (torch.ge(X, X.round()), "greaterEqual", (X, X.round()), {}),
    "equal counts": (torch.ones_like(X), "greaterEqual", (X, X), {}),
    "abs": (X.abs(), "unary", (X,), {"type": "ABS"}),
    "sqrt, scaled and shifted": (
        (X.abs() * 3 + 0.5).sqrt(),
        "unary",
        (X.abs(),),
        {"type": "SQRT", "scale": 3.0, "shift": 0.5},
    ),
    "sigmoid": (torch.sigmoid(X * 100), "activation", (X * 100,), {"sigmoid": {}}),
    "tanh": (torch.tanh(X), "activation", (X,), {"tanh": {}}),
    "relu": (torch.relu(X), "activation", (X,), {"ReLU": {}}),
    "softmax": (torch.softmax(X * 50, 2), "softmaxND", (X * 50,), {"axis": 2}),
    "reduce max": (X.amax(-1, keepdim=True), "reduceMax", (X,), {"axes": [-1], "keepDims": True}),
    "reduce mean": (X.mean((0, 2)), "reduceMean", (X,), {"axes": [0, 2], "keepDims": False}),
    "reduce all": (X.mean()[None], "reduceMean", (X,), {"reduceAll": True}),
    "matmul, broadcast": (X @ rand(2, 5, 6), "batchedMatmul", (X, rand(2, 5, 6)), {}),
    "matmul, transposed": (
        rand(5, 4).T @ MATRIX.T,
        "batchedMatmul",
        (rand(5, 4), MATRIX),
        {"transposeA": True, "transposeB": True},
    ),
    "sum of three": (X + 2 * X.abs() - 1, "add", (X, 2 * X.abs(), -torch.ones_like(X)), {}),
    "sum with alpha": (X + 0.75, "add", (X,), {"alpha": 0.75}),
    "product of two": (X * Y[:1], "multiply", (X, Y[:1]), {}),
    "product with alpha": (X * -3, "multiply", (X,), {"alpha": -3}),
    "slice of channels": (
        X[:, :1],
        "slice",
        (X,),
        {"startIndex": 0, "endIndex": 1, "axis": "CHANNEL_AXIS"},
    ),
    "slice of rows": (
        X[:, :, 1:4:2],
        "slice",
        (X,),
        {"startIndex": 1, "endIndex": 4, "stride": 2, "axis": "HEIGHT_AXIS"},
    ),
    "slice of columns": (
        X[..., 2:5],
        "slice",
        (X,),
        {"startIndex": 2, "endIndex": 5, "stride": 1, "axis": 2},
    ),
    "embedding": (
        MATRIX[IDS[..., 0]] + rand(5),
        "embeddingND",
        (IDS,),
        {
            "vocabSize": 6,
            "embeddingSize": 5,
            "weights": floats(MATRIX.T),
            "hasBias": True,
            "bias": floats(rand(5)),
        },
    ),
    "normalized planes": (
        F.instance_norm(IMAGE, eps=0.01),
        "mvn",
        (IMAGE,),
        {"normalizeVariance": True, "epsilon": 0.01},
    ),
    "normalized images": (
        F.layer_norm(IMAGE, IMAGE.shape[1:]),
        "mvn",
        (IMAGE,),
        {"acrossChannels": True, "normalizeVariance": True},
    ),
    "centred": (IMAGE - IMAGE.mean((2, 3), True), "mvn", (IMAGE,), {"epsilon": 0.01}),
    "scale a channel": (
        IMAGE * rand(4)[:, None, None] + 1.5,
        "scale",
        (IMAGE,),
        {
            "shapeScale": [4],
            "scale": floats(rand(4)),
            "shapeBias": [1],
            "hasBias": True,
            "bias": {"floatValue": [1.5]},
        },
    ),
    "scale a plane": (
        IMAGE * PLANE,
        "scale",
        (IMAGE,),
        {"shapeScale": [1, 11, 12], "scale": floats(PLANE)},
    ),
    "inner product": (
        F.linear(X, MATRIX, BIAS),
        "innerProduct",
        (X,),
        {
            "inputChannels": 5,
            "outputChannels": 6,
            "hasBias": True,
            "bias": floats(BIAS),
            "weights": floats(MATRIX),
        },
    ),
    "convolution": (
        F.conv2d(F.pad(IMAGE, (0, 3, 1, 2)), KERNEL, BIAS, (2, 1), dilation=(1, 3), groups=2),
        "convolution",
        (IMAGE,),
        {
            "outputChannels": 6,
            "kernelChannels": 2,
            "nGroups": 2,
            "kernelSize": [3, 2],
            "stride": [2, 1],
            "dilationFactor": [1, 3],
            "hasBias": True,
            "weights": floats(KERNEL),
            "bias": floats(BIAS),
            "valid": VALID,
        },
    ),
    "max pooling": (
        F.max_pool2d(PADDED, (3, 2), (2, 3)),
        "pooling",
        (IMAGE,),
        {"type": "MAX", "kernelSize": [3, 2], "stride": [2, 3], "valid": VALID},
    ),
    "average pooling": (
        F.avg_pool2d(IMAGE, (3, 2), (2, 3)),
        "pooling",
        (IMAGE,),
        {"type": "AVERAGE", "kernelSize": [3, 2], "stride": [2, 3], "valid": {}},
    ),
    "global pooling": (
        IMAGE.mean((2, 3), True),
        "pooling",
        (IMAGE,),
        {"type": "AVERAGE", "globalPooling": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_against_torch(name: str) -> None:
    expected, kind, inputs, params = CASES[name]
    check(expected, kind, *inputs, **params)


def test_every_layer_has_a_case() -> None:
    assert {kind for _, kind, _, _ in CASES.values()} == set(STANDARD)


@pytest.mark.parametrize("values", [[-1e4, 1e4, 0.0], [88.8, -88.8, 104.0]])
def test_sigmoid_and_softmax_do_not_overflow(values: list[float]) -> None:
    x = np.array(values, np.float32)
    with np.errstate(over="raise", invalid="raise"):
        for got in (prepare("activation", sigmoid={})(x), prepare("softmaxND", axis=-1)(x)):
            assert np.isfinite(got).all()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "interleaved": ("concatND", {"interleave": True}, "interleave"),
    "exp": ("unary", {"type": "EXP"}, "EXP"),
    "leaky": ("activation", {"leakyReLU": {"alpha": 0.1}}, "leakyReLU"),
    "no activation": ("activation", {}, "None"),
    "no axes": ("reduceMax", {}, "no axes"),
    "no step": ("rangeStatic", {"endValue": 3}, "steps of 0"),
    "endless": ("rangeStatic", {"endValue": 1e30, "stepSizeValue": 1}, "e\\+30"),
    "empty range": ("rangeStatic", {"endValue": -1, "stepSizeValue": 1}, "to -1"),
    "size of -1": ("reshapeStatic", {"targetShape": [2, -1]}, "-1"),
    "no shape": ("reshapeStatic", {}, "targetShape"),
    "six dimensions": (
        "loadConstantND",
        {"shape": [1] * 6, "data": {"floatValue": [1]}},
        "6 sizes",
    ),
    "too few values": (
        "loadConstantND",
        {"shape": [3], "data": {"floatValue": [1, 2]}},
        "2 values for \\[3\\]",
    ),
    "raw values": ("loadConstantND", {"shape": [3], "data": {"rawValue": b"abc"}}, "rawValue"),
    "half a half": (
        "loadConstantND",
        {"shape": [1], "data": {"float16Value": b"abc"}},
        "half a float16",
    ),
    "no permutation": ("transpose", {"axes": [0, 2]}, "axes"),
    "same axis twice": ("expandDims", {"axes": [1, 1]}, "axes"),
    "axes of both signs": ("expandDims", {"axes": [-1, 1]}, "both signs"),
    "lists of different lengths": ("sliceStatic", {"beginIds": [0], "endIds": [1, 2]}, "lengths"),
    "stride of 0": (
        "sliceStatic",
        {
            "beginIds": [0],
            "endIds": [1],
            "beginMasks": [False],
            "endMasks": [False],
            "strides": [0],
        },
        "stride of 0",
    ),
    "matrix of its own": ("batchedMatmul", {"weights": {"floatValue": [1]}}, "weights of its own"),
    "quantized product": ("innerProduct", {"int8DynamicQuantize": True}, "int8DynamicQuantize"),
    "deconvolution": ("convolution", {"isDeconvolution": True}, "deconvolution"),
    "same padding": (
        "convolution",
        {
            "outputChannels": 1,
            "kernelChannels": 1,
            "kernelSize": [1, 1],
            "same": {},
            "weights": {"floatValue": [1]},
        },
        "padding",
    ),
    "groups that do not divide": (
        "convolution",
        {"outputChannels": 3, "nGroups": 2},
        "3 channels in 2 groups",
    ),
    "slice to the last but one": ("slice", {"endIndex": -1}, "a slice from 0 to -1"),
    "scale of a matrix": ("scale", {"shapeScale": [2, 2]}, "scale of shape"),
    "three sizes": ("pooling", {"kernelSize": [1, 2, 3], "valid": {}}, "expected two"),
    "root mean square": ("pooling", {"type": "L2"}, "L2"),
    "average over a border": ("pooling", {"type": "AVERAGE", "valid": VALID}, "border"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_it_does_not_compute(name: str) -> None:
    kind, params, problem = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=problem):
        prepare(kind, **params)


WRONG_INPUTS: dict[str, tuple[str, dict[str, Any], list[Any], str]] = {
    "slice of another rank": (
        "sliceStatic",
        {
            "beginIds": [0],
            "endIds": [1],
            "beginMasks": [False],
            "endMasks": [False],
            "strides": [1],
        },
        [np.zeros((2, 2), np.float32)],
        "1 dimensions",
    ),
    "empty slice": (
        "sliceStatic",
        {
            "beginIds": [3],
            "endIds": [9],
            "beginMasks": [False],
            "endMasks": [False],
            "strides": [1],
        },
        [np.zeros(3, np.float32)],
        "empty",
    ),
    "flatten past the end": ("flattenTo2D", {"axis": 2}, [np.zeros((2, 2), np.float32)], "axis 2"),
    "reshape to fractions": ("reshapeDynamic", {}, [np.zeros(3), np.array([1.5, 2])], "whole"),
    "reshape to nothing": ("reshapeDynamic", {}, [np.zeros(3), np.array([0.0, 3])], "reshape"),
    "product of vectors": ("batchedMatmul", {}, [np.zeros(3), np.zeros(3)], "product"),
    "index past the end": ("gather", {}, [np.zeros((3, 2)), np.array([3.0])], "out of bounds"),
    "slice past the end": ("slice", {"endIndex": 4}, [np.zeros((3, 4, 4))], "a slice to 4"),
    "id past the end": (
        "embeddingND",
        {"vocabSize": 2, "embeddingSize": 1, "weights": {"floatValue": [1, 2]}},
        [np.array([[2.0]])],
        "an embedding of 2",
    ),
    "negative id": (
        "embeddingND",
        {"vocabSize": 2, "embeddingSize": 1, "weights": {"floatValue": [1, 2]}},
        [np.array([[-1.0]])],
        "an embedding of 2",
    ),
    "wrong channels": (
        "convolution",
        {
            "outputChannels": 1,
            "kernelChannels": 2,
            "kernelSize": [1, 1],
            "valid": {},
            "weights": {"floatValue": [1, 1]},
        },
        [np.zeros((3, 4, 4))],
        "2 channels",
    ),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_refuses_wrong_values(name: str) -> None:
    kind, params, inputs, problem = WRONG_INPUTS[name]
    with pytest.raises((ValueError, IndexError), match=problem):
        prepare(kind, **params)(*inputs)


def test_constants_cannot_be_written_to() -> None:
    values = prepare("loadConstantND", shape=[2], data={"floatValue": [1, 2]})()
    with pytest.raises(ValueError, match="read-only"):
        values += 1


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -1e-3])
def test_whole_numbers(value: float) -> None:
    assert whole_numbers(np.array([-2.0, 131071.0], np.float32)).tolist() == [-2, 131071]
    with pytest.raises(ValueError, match="whole numbers"), np.errstate(invalid="ignore"):
        whole_numbers(np.array([value], np.float32))

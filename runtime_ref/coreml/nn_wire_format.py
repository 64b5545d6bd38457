"""Reader of a Core ML neural network that leaves the weights of custom layers in the file.

Only the rest of the protobuf is parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporter.quiet import quiet

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model
    from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer


# Field numbers of Model.proto and NeuralNetwork.proto on the way to the weights of a custom layer.
MODEL_NETWORK, NETWORK_LAYERS, LAYER_CUSTOM, CUSTOM_WEIGHTS, WEIGHT_FLOATS, WEIGHT_RAW = (
    500,
    1,
    500,
    20,
    1,
    30,
)


class _WireError(ValueError):
    """Error of bytes that are no protobuf message."""


@dataclass(frozen=True)
class _Field:
    """Field of a message: its number and wire type, where it starts, and where its value lies."""

    number: int
    wire_type: int
    start: int
    begin: int
    end: int


def _fields(data: NDArray[np.uint8], begin: int, end: int) -> Iterator[_Field]:
    """Fields of the message at data[begin:end], in order. Raises _WireError."""
    while begin < end:
        key, at = _varint(data, begin, end)
        wire_type, value = key & 7, at
        if wire_type == 0:
            _, at = _varint(data, at, end)
        elif wire_type == 2:
            n, value = _varint(data, at, end)
            at = value + n
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
        else:
            raise _WireError(f"wire type {wire_type} at byte {begin}")
        if at > end:
            raise _WireError(f"a field at byte {begin} ends at {at}, its message at {end}")
        yield _Field(key >> 3, wire_type, begin, value, at)
        begin = at


def _varint(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Unsigned integer at offset `at`, and the offset where it ends. Raises _WireError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _WireError(f"it ends inside a number, at byte {end}")
        byte = int(data[at])
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _WireError(f"a number of more than ten bytes before byte {at}")


WeightFields = dict[int, NDArray[np.uint8]]  # a WeightParams: bytes uint8 by field number


def read_model(data: NDArray[np.uint8]) -> tuple[Model, list[list[WeightFields]]]:
    """Model without the weights of its custom layers, and these for each layer.

    Raises _WireError, DecodeError.
    """
    with quiet():
        from coremltools.proto.Model_pb2 import Model
    model, weights = Model(), []
    for field in _fields(data, 0, data.size):
        if field.number != MODEL_NETWORK or field.wire_type != 2:
            model.MergeFromString(data[field.start : field.end].tobytes())
            continue
        network = model.neuralNetwork
        network.SetInParent()
        for part in _fields(data, field.begin, field.end):
            if part.number == NETWORK_LAYERS and part.wire_type == 2:
                weights.append(_read_layer(data, part, network.layers.add()))
            else:
                network.MergeFromString(data[part.start : part.end].tobytes())
    return model, weights


def _read_layer(
    data: NDArray[np.uint8], field: _Field, layer: NeuralNetworkLayer
) -> list[WeightFields]:
    """Weights of a custom layer; everything else goes into `layer`. Raises _WireError."""
    weights = []
    for part in _fields(data, field.begin, field.end):
        if part.number != LAYER_CUSTOM or part.wire_type != 2:
            layer.MergeFromString(data[part.start : part.end].tobytes())
            continue
        layer.custom.SetInParent()
        for item in _fields(data, part.begin, part.end):
            if item.number == CUSTOM_WEIGHTS and item.wire_type == 2:
                weights.append(_read_weights(data, item))
            else:
                layer.custom.MergeFromString(data[item.start : item.end].tobytes())
    return weights


def _read_weights(data: NDArray[np.uint8], field: _Field) -> WeightFields:
    """Bytes of a WeightParams by field number. Raises _WireError."""
    found = list(_fields(data, field.begin, field.end))
    if len({f.number for f in found}) != len(found) or any(f.wire_type != 2 for f in found):
        raise _WireError(f"weights at byte {field.begin} that are not one piece of bytes a kind")
    return {f.number: data[f.begin : f.end] for f in found}

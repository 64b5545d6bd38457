"""Executes a Core ML neural network with our custom layers: the shipped protobuf, layer by layer,
on any machine.

The weights of custom layers stay in the file, which is memory-mapped: only the rest of the protobuf
is parsed. Everything in it is resolved and checked when it is opened, before anything runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.codec.native import NativeTensor
from exporter.errors import BundleError, CodecError, UsageError
from exporter.quiet import quiet
from runtime_ref.nn_layers import STANDARD, UnsupportedError, whole_numbers

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model
    from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer

LINEAR, EMBEDDING = "LZWLinear", "LZWEmbedding"
CONTRACT_VERSION = 1  # of the custom layers, see exporter/backends/coreml_custom_op.py
SPECIFICATION_VERSIONS = range(4, 11)  # from iOS 13 on tensors have any rank
_VERSIONS = f"{SPECIFICATION_VERSIONS.start} to {SPECIFICATION_VERSIONS.stop - 1}"
THREADS = 2
DO = "export again, or copy the package again"
SHOWN_PROBLEMS = 20

# Field numbers of Model.proto and NeuralNetwork.proto on the way to the weights of a custom layer.
MODEL_NETWORK, NETWORK_LAYERS, LAYER_CUSTOM, CUSTOM_WEIGHTS, WEIGHT_FLOATS, WEIGHT_RAW = (
    500,
    1,
    500,
    20,
    1,
    30,
)
_DTYPES = {65568: "float32", 131104: "int32"}  # numbers of FeatureTypes.proto's ArrayDataType
_PARAMETERS = {
    "version": "intValue",
    "rows": "intValue",
    "cols": "intValue",
    "group_size": "intValue",
    "name": "stringValue",
}
_LINEAR_PARAMETERS = {"int16_activations": "boolValue"}
_SHARED_PARAMETERS = {"weights_of": "stringValue"}
_FILE_PARAMETERS = {
    "file": "stringValue",
    "blob_offset": "longValue",
    "blob_bytes": "longValue",
    "scales_offset": "longValue",
    "scales_bytes": "longValue",
}


# The protobuf wire format


class _WireError(ValueError):
    """The bytes are no protobuf message."""


@dataclass(frozen=True)
class _Field:
    """A field of a message: its number and wire type, where it starts, and where its value lies."""

    number: int
    wire_type: int
    start: int
    begin: int
    end: int


def _fields(data: np.ndarray, begin: int, end: int) -> Iterator[_Field]:
    """The fields of the message at data[begin:end]. Raises _WireError."""
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


def _varint(data: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """The unsigned integer at `at`, and where it ends."""
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


Stored = dict[int, np.ndarray]  # a WeightParams: bytes uint8 by field number


def _read(data: np.ndarray) -> tuple[Model, list[list[Stored]]]:
    """The model without the weights of its custom layers, and these for each layer. Raises
    _WireError, DecodeError."""
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


def _read_layer(data: np.ndarray, field: _Field, layer: NeuralNetworkLayer) -> list[Stored]:
    """Fills `layer` but for custom weights, which are returned."""
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


def _read_weights(data: np.ndarray, field: _Field) -> Stored:
    found = list(_fields(data, field.begin, field.end))
    if len({f.number for f in found}) != len(found) or any(f.wire_type != 2 for f in found):
        raise _WireError(f"weights at byte {field.begin} that are not one piece of bytes a kind")
    return {f.number: data[f.begin : f.end] for f in found}


# Custom layers


def _mapped(path: Path) -> np.ndarray:
    """uint8 [n_bytes], memory-mapped. Raises OSError, or ValueError for an empty file."""
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def _side_bytes(side_dir: Path, name: str, offset: int, n_bytes: int) -> np.ndarray:
    """Part of a file beside the package, memory-mapped. Raises UnsupportedError."""
    relative, path = PurePosixPath(name), side_dir / name
    outside = (
        relative.is_absolute()
        or ".." in relative.parts
        or "\\" in name
        or "\0" in name
        or not relative.parts
    )
    if outside or not path.resolve().is_relative_to(side_dir.resolve()):
        raise UnsupportedError(f"its weights are in {name!r}, which points outside the bundle")
    if not path.is_file():
        raise UnsupportedError(f"its weights are in {name}, which is absent")
    n_file = path.stat().st_size
    if offset < 0 or n_bytes <= 0 or offset + n_bytes > n_file:
        raise UnsupportedError(
            f"its weights are {n_bytes:,} bytes at {offset:,} of {name}, which has {n_file:,}"
        )
    return _mapped(path)[offset : offset + n_bytes]


def _parameters(layer: NeuralNetworkLayer) -> dict[str, Any]:
    """The parameters of a custom layer by name. Raises UnsupportedError unless they are those of
    its class."""
    if layer.custom.className not in (LINEAR, EMBEDDING):
        raise UnsupportedError(
            f"this class of custom layer is not known here, only {LINEAR} and {EMBEDDING}"
        )
    given = {name: value.WhichOneof("value") for name, value in layer.custom.parameters.items()}
    expected = _PARAMETERS | (_LINEAR_PARAMETERS if layer.custom.className == LINEAR else {})
    for more in (_SHARED_PARAMETERS, _FILE_PARAMETERS):
        expected |= more if given.keys() & more.keys() else {}
    if wrong := sorted({name for name, _ in given.items() ^ expected.items()}):
        raise UnsupportedError(
            f"parameters that are missing, unknown or of another type: {', '.join(wrong)}"
        )
    values = {name: getattr(layer.custom.parameters[name], kind) for name, kind in expected.items()}
    if values["version"] != CONTRACT_VERSION:
        raise UnsupportedError(f"version is {values['version']}, this computes {CONTRACT_VERSION}")
    if values["group_size"] < 1:
        raise UnsupportedError(f"group_size is {values['group_size']}")
    return values


@dataclass(frozen=True)
class _Matrix:
    """An opened blob and its scales: float32 [rows, n_groups], as they lie in the file, which is
    not aligned."""

    tensor: NativeTensor
    scales: np.ndarray
    group_size: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.tensor.info.rows, self.tensor.info.cols, self.group_size

    def linear(self, x: np.ndarray, int16_activations: bool) -> np.ndarray:
        """x float32 [.., cols] -> [.., rows]."""
        multiply = self.tensor.linear_x16 if int16_activations else self.tensor.linear_f32
        y = multiply(x.reshape(-1, x.shape[-1]), self._aligned_scales(), self.group_size, THREADS)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def embedding(self, ids: np.ndarray) -> np.ndarray:
        """ids as whole numbers [..] -> float32 [.., cols]."""
        return self.tensor.embedding(whole_numbers(ids), self._aligned_scales(), self.group_size)

    def _aligned_scales(self) -> np.ndarray:
        return np.require(self.scales, requirements=["A"])


@dataclass(frozen=True)
class _Custom:
    """A custom layer: its matrix, and for a product whether it quantizes activations."""

    matrix: _Matrix
    int16_activations: bool


class _Customs:
    """Opens custom layers, in the order of the network."""

    def __init__(self, side_dir: Path) -> None:
        self._side_dir = side_dir
        self._matrices: dict[str, _Matrix] = {}

    def open(self, layer: NeuralNetworkLayer, stored: Sequence[Stored]) -> _Custom:
        """Raises UnsupportedError if a layer contradicts itself or our contract, CodecError if its
        blob is damaged."""
        parameters = _parameters(layer)
        if "weights_of" in parameters:
            matrix = self._shared(parameters["weights_of"], stored)
        else:
            matrix = self._matrices[layer.name] = self._own(parameters, stored)
        stated = (parameters["rows"], parameters["cols"], parameters["group_size"])
        if matrix.sizes != stated:
            what = (
                "its blob has {} rows and {} columns, groups of {}, its parameters say {}, {} "
                "and {}"
            )
            raise UnsupportedError(what.format(*matrix.sizes, *stated))
        return _Custom(matrix, parameters.get("int16_activations", False))

    def _shared(self, name: str, stored: Sequence[Stored]) -> _Matrix:
        if stored:
            raise UnsupportedError(f"it has weights of its own and uses those of {name!r}")
        if name not in self._matrices:
            raise UnsupportedError(
                f"it uses the weights of {name!r}, but no layer before it of that name has any"
            )
        return self._matrices[name]

    def _own(self, parameters: dict[str, Any], stored: Sequence[Stored]) -> _Matrix:
        blob, scales = (
            self._from_file(parameters, stored) if "file" in parameters else _from_model(stored)
        )
        tensor = NativeTensor(blob, verify=True)
        group_size = parameters["group_size"]
        n_groups = -(-tensor.info.cols // group_size)
        for what, data, expected in (
            ("blob", blob, tensor.info.total_bytes),
            ("scales", scales, 4 * tensor.info.rows * n_groups),
        ):
            if data.size != expected:
                raise UnsupportedError(f"its {what} has {data.size:,} bytes, expected {expected:,}")
        return _Matrix(tensor, scales.view("<f4").reshape(tensor.info.rows, n_groups), group_size)

    def _from_file(self, parameters: dict[str, Any], stored: Sequence[Stored]) -> list[np.ndarray]:
        if stored:
            raise UnsupportedError(
                f"it has weights of its own and others in {parameters['file']!r}"
            )
        places = [
            (parameters[f"{kind}_offset"], parameters[f"{kind}_bytes"])
            for kind in ("blob", "scales")
        ]
        return [_side_bytes(self._side_dir, parameters["file"], *place) for place in places]


def _from_model(stored: Sequence[Stored]) -> list[np.ndarray]:
    kinds, expected = [sorted(one) for one in stored], [[WEIGHT_RAW], [WEIGHT_FLOATS]]
    if kinds != expected:
        raise UnsupportedError(
            f"its weights are in the fields {kinds} of WeightParams, expected {expected}"
        )
    return [stored[0][WEIGHT_RAW], stored[1][WEIGHT_FLOATS]]


# The network


@dataclass(frozen=True)
class ArrayInfo:
    """An input or output as declared: NumPy's name of its dtype, and (smallest, largest) of every
    size.

    A largest size of None has no limit; `sizes` None, which only outputs have, is not declared.
    """

    dtype: str
    sizes: tuple[tuple[int, int | None], ...] | None

    def fits(self, array: np.ndarray) -> bool:
        """Whether an array has the declared dtype and permitted sizes."""
        if array.dtype != self.dtype or self.sizes is None:
            return array.dtype == self.dtype
        if array.ndim != len(self.sizes):
            return False
        sizes = zip(array.shape, self.sizes, strict=True)
        return all(low <= n and (high is None or n <= high) for n, (low, high) in sizes)

    def __str__(self) -> str:
        sizes = [
            str(low) if low == high else f"{low}..{high or ''}" for low, high in self.sizes or ()
        ]
        return f"{self.dtype} [{', '.join(sizes)}]"


@dataclass(frozen=True)
class _Step:
    """A layer ready to run, and the values that nothing after it uses."""

    where: str
    compute: Callable[..., np.ndarray]
    inputs: list[str]
    output: str
    dies: list[str]


class NeuralNetwork:
    """A network read from a `.mlmodel`; `side_dir` is where files of weights lie that its layers
    name.

    `inputs` and `outputs` are as declared. Raises BundleError with all that is damaged or cannot be
    computed.
    """

    def __init__(self, model_file: Path, side_dir: Path) -> None:
        self.path = model_file
        model, weights = self._parsed()
        self.inputs = self._interface(model.description.input)
        self.outputs = self._interface(model.description.output)
        self._declared_int16: set[bool] = set()
        self._forced_float = False
        self._steps = self._resolved(model, weights, side_dir)

    @property
    def int16_activations(self) -> bool:
        """Whether the products are declared to quantize their activations."""
        return self._declared_int16 == {True}

    @contextlib.contextmanager
    def float_activations(self) -> Iterator[None]:
        """Inside, every product is computed with float activations, whatever the network
        declares."""
        self._forced_float = True
        try:
            yield
        finally:
            self._forced_float = False

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the network once. Inputs are not copied, outputs never share memory with them.

        Raises UsageError if the inputs are not as declared, BundleError if a layer fails.
        """
        self._check_inputs(inputs)
        values = {name: x.astype(np.float32, copy=False) for name, x in inputs.items()}
        with np.errstate(all="ignore"):  # as on a device; what comes out is for parity to judge
            for step in self._steps:
                self._run(step, values)
        return {name: self._output(name, info, values[name]) for name, info in self.outputs.items()}

    def _run(self, step: _Step, values: dict[str, np.ndarray]) -> None:
        try:
            values[step.output] = step.compute(*(values[name] for name in step.inputs))
        except (ValueError, IndexError, CodecError) as error:
            what = f"{self.path}: {step.where}: {error}"
            raise BundleError(what, do="see which values reach this layer") from error
        for name in step.dies:
            del values[name]

    def _output(self, name: str, info: ArrayInfo, value: np.ndarray) -> np.ndarray:
        result = value.astype(info.dtype)
        if not info.fits(result):
            what = (
                f"{self.path}: the output {name} came out as {list(result.shape)}, declared "
                f"is {info}"
            )
            raise BundleError(what, do=DO)
        return result

    def _check_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        problems = [f"input {name} is missing" for name in self.inputs if name not in inputs]
        problems += [f"there is no input {name}" for name in inputs if name not in self.inputs]
        for name, info in self.inputs.items():
            if name in inputs and not info.fits(array := inputs[name]):
                problems.append(
                    f"input {name} is {array.dtype} {list(array.shape)}, expected {info}"
                )
        if problems:
            what = f"{self.path.name} is not called as it declares"
            raise UsageError(what, problems=problems, do="give the inputs it declares")

    def _parsed(self) -> tuple[Model, list[list[Stored]]]:
        from google.protobuf.message import DecodeError

        try:
            model, weights = _read(_mapped(self.path))
        except (OSError, ValueError, DecodeError) as error:
            raise BundleError(f"{self.path} is not a Core ML model: {error}", do=DO) from error
        problems = []
        if (kind := model.WhichOneof("Type")) != "neuralNetwork":
            problems.append(f"it holds {kind or 'no model'}, expected neuralNetwork")
        elif model.specificationVersion not in SPECIFICATION_VERSIONS:
            problems.append(
                f"its specification version is {model.specificationVersion}, this reads {_VERSIONS}"
            )
        elif model.neuralNetwork.arrayInputShapeMapping != 1:
            problems.append(
                "its arrays are mapped to five dimensions, expected EXACT_ARRAY_MAPPING"
            )
        elif model.neuralNetwork.preprocessing:
            problems.append("it preprocesses images")
        if problems:
            raise BundleError(f"{self.path} is no network that this runs", problems=problems, do=DO)
        return model, weights

    def _interface(self, features: Sequence[Any]) -> dict[str, ArrayInfo]:
        found, problems = {}, []
        for feature in features:
            array = feature.type.multiArrayType
            flexible = array.WhichOneof("ShapeFlexibility")
            if feature.type.WhichOneof("Type") != "multiArrayType" or array.dataType not in _DTYPES:
                problems.append(f"{feature.name} is no array of float32 or int32")
            elif flexible not in (None, "shapeRange"):
                problems.append(f"{feature.name} has {flexible}")
            else:
                found[feature.name] = ArrayInfo(_DTYPES[array.dataType], _sizes(array))
        if problems:
            what = f"{self.path} has inputs or outputs that this does not take"
            raise BundleError(what, problems=problems, do=DO)
        return found

    def _resolved(self, model: Model, weights: list[list[Stored]], side_dir: Path) -> list[_Step]:
        """Prepares every layer, in the order in which they are run."""
        made, steps, problems = set(self.inputs), [], []
        customs = _Customs(side_dir)
        for layer, stored in zip(model.neuralNetwork.layers, weights, strict=True):
            where = f"layer {layer.name!r} ({layer.custom.className or layer.WhichOneof('layer')})"
            try:
                compute = self._prepared(layer, stored, customs)
                steps.append(_Step(where, compute, list(layer.input), layer.output[0], []))
            except (UnsupportedError, CodecError) as error:
                problems.append(f"{where}: {error}")
            problems += [
                f"{where}: no layer before it makes its input {n}"
                for n in layer.input
                if n not in made
            ]
            problems += [f"{where}: {n} is made twice" for n in layer.output if n in made]
            made.update(layer.output)
        problems += [
            f"no layer makes the output {name}" for name in self.outputs if name not in made
        ]
        if len(self._declared_int16) > 1:
            problems.append("some products quantize their activations and some do not")
        if problems:
            more = (
                [f"and {len(problems) - SHOWN_PROBLEMS} more"]
                if len(problems) > SHOWN_PROBLEMS
                else []
            )
            raise BundleError(
                f"{self.path} cannot be run", problems=problems[:SHOWN_PROBLEMS] + more, do=DO
            )
        return _with_lifetimes(steps, set(self.outputs))

    def _prepared(
        self, layer: NeuralNetworkLayer, stored: Sequence[Stored], customs: _Customs
    ) -> Callable[..., np.ndarray]:
        """The function a layer computes. Raises UnsupportedError, CodecError."""
        kind = layer.WhichOneof("layer")
        if len(layer.output) != 1:
            raise UnsupportedError(f"it makes {len(layer.output)} values, expected 1")
        if kind not in STANDARD and kind != "custom":
            raise UnsupportedError("this type of layer is not known here")
        counts = range(1, 2) if kind == "custom" else STANDARD[kind].inputs
        if len(layer.input) not in counts:
            raise UnsupportedError(
                f"it takes {len(layer.input)} values, expected {counts.start} to {counts.stop - 1}"
            )
        if kind != "custom":
            return STANDARD[kind].prepare(getattr(layer, kind))
        custom = customs.open(layer, stored)
        if layer.custom.className == EMBEDDING:
            return lambda ids: custom.matrix.embedding(ids)
        self._declared_int16.add(custom.int16_activations)
        return lambda x: custom.matrix.linear(
            x, custom.int16_activations and not self._forced_float
        )


def _sizes(array: Any) -> tuple[tuple[int, int | None], ...] | None:
    """The permitted sizes that an ArrayFeatureType declares."""
    if ranges := array.shapeRange.sizeRanges:
        return tuple((r.lowerBound, None if r.upperBound < 0 else r.upperBound) for r in ranges)
    return tuple((n, n) for n in array.shape) or None


def _with_lifetimes(steps: Sequence[_Step], outputs: set[str]) -> list[_Step]:
    """Says after which layer each value can be freed; one that nothing uses, right after it was
    made."""
    seen = set(outputs)
    result = []
    for step in reversed(steps):
        dies = {name for name in (*step.inputs, step.output) if name not in seen}
        seen |= dies
        result.append(replace(step, dies=sorted(dies)))
    return result[::-1]

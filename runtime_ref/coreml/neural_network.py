"""Interpreter of Core ML neural networks with our custom layers, layer by layer.

It executes the shipped protobuf on any machine. The weights of custom layers stay in the file,
which is memory-mapped: only the rest of the protobuf is parsed. Everything in it is resolved and
checked when it is opened, before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import BundleError, CodecError, UsageError
from runtime_ref.coreml.nn_custom_layers import EMBEDDING, CustomLayers, mapped
from runtime_ref.coreml.nn_layer import Compute, UnsupportedLayerError
from runtime_ref.coreml.nn_layers import STANDARD
from runtime_ref.coreml.nn_wire_format import WeightFields, read_model

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model
    from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer

SPECIFICATION_VERSIONS = range(4, 11)  # from iOS 13 on tensors have any rank
_VERSIONS = f"{SPECIFICATION_VERSIONS.start} to {SPECIFICATION_VERSIONS.stop - 1}"
HINT = "export again, or copy the package again"
SHOWN_PROBLEMS = 20

_DTYPES = {65568: "float32", 131104: "int32"}  # numbers of FeatureTypes.proto's ArrayDataType


@dataclass(frozen=True)
class ArrayInfo:
    """Declared NumPy dtype of an input or output, and (smallest, largest) of every size.

    A largest size of None has no limit; `sizes` None, which only outputs have, is not declared.
    """

    dtype: str
    sizes: tuple[tuple[int, int | None], ...] | None

    def fits(self, array: NDArray[Any]) -> bool:
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
    """Layer that is ready to run, and the values that nothing after it uses."""

    where: str
    compute: Compute
    inputs: list[str]
    output: str
    dies: list[str]


class NeuralNetwork:
    """Network read from a `.mlmodel`, ready to run.

    `side_dir` is where files of weights lie that its layers name. `inputs` and `outputs` are as
    declared. Raises BundleError with all that is damaged or cannot be computed.
    """

    def __init__(self, model_file: Path, side_dir: Path) -> None:
        self.path = model_file
        model, weights = self._parsed()
        self.inputs = self._interface(model.description.input)
        self.outputs = self._interface(model.description.output)
        self._declared_int16: set[bool] = set()
        self._steps = self._resolved(model, weights, side_dir)

    @property
    def int16_activations(self) -> bool:
        """Whether the products are declared to quantize their activations."""
        return self._declared_int16 == {True}

    def predict(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs of one run by name.

        Inputs are not copied, outputs never share memory with them. Raises UsageError if the inputs
        are not as declared, BundleError if a layer fails.
        """
        self._check_inputs(inputs)
        values = {name: x.astype(np.float32, copy=False) for name, x in inputs.items()}
        with np.errstate(all="ignore"):  # as on a device; what comes out is for parity to judge
            for step in self._steps:
                self._run(step, values)
        return {name: self._output(name, info, values[name]) for name, info in self.outputs.items()}

    def _run(self, step: _Step, values: dict[str, NDArray[np.float32]]) -> None:
        try:
            values[step.output] = step.compute(*(values[name] for name in step.inputs))
        except (ValueError, IndexError, CodecError) as error:
            what = f"{self.path}: {step.where}: {error}"
            raise BundleError(what, hint="see which values reach this layer") from error
        for name in step.dies:
            del values[name]

    def _output(self, name: str, info: ArrayInfo, value: NDArray[np.float32]) -> NDArray[Any]:
        """Value of an output as it is declared. Raises BundleError."""
        result = value.astype(info.dtype)
        if not info.fits(result):
            what = (
                f"{self.path}: the output {name} came out as {list(result.shape)}, declared "
                f"is {info}"
            )
            raise BundleError(what, hint=HINT)
        return result

    def _check_inputs(self, inputs: dict[str, NDArray[Any]]) -> None:
        """Compares inputs with the declared ones. Raises UsageError."""
        problems = [f"input {name} is missing" for name in self.inputs if name not in inputs]
        problems += [f"there is no input {name}" for name in inputs if name not in self.inputs]
        for name, info in self.inputs.items():
            if name in inputs and not info.fits(array := inputs[name]):
                problems.append(
                    f"input {name} is {array.dtype} {list(array.shape)}, expected {info}"
                )
        if problems:
            what = f"{self.path.name} is not called as it declares"
            raise UsageError(what, problems=problems, hint="give the inputs it declares")

    def _parsed(self) -> tuple[Model, list[list[WeightFields]]]:
        """Model, and the custom weights of each layer. Raises BundleError."""
        from google.protobuf.message import DecodeError

        try:
            model, weights = read_model(mapped(self.path))
        except (OSError, ValueError, DecodeError) as error:
            raise BundleError(f"{self.path} is not a Core ML model: {error}", hint=HINT) from error
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
            raise BundleError(
                f"{self.path} is no network that this runs", problems=problems, hint=HINT
            )
        return model, weights

    def _interface(self, features: Sequence[Any]) -> dict[str, ArrayInfo]:
        """Declared inputs or outputs by name. Raises BundleError."""
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
            raise BundleError(what, problems=problems, hint=HINT)
        return found

    def _resolved(
        self, model: Model, weights: list[list[WeightFields]], side_dir: Path
    ) -> list[_Step]:
        """Steps of all layers, in the order in which they are run. Raises BundleError."""
        made, steps, problems = set(self.inputs), [], []
        customs = CustomLayers(side_dir)
        for layer, fields in zip(model.neuralNetwork.layers, weights, strict=True):
            where = f"layer {layer.name!r} ({layer.custom.className or layer.WhichOneof('layer')})"
            try:
                compute = self._prepared(layer, fields, customs)
                steps.append(_Step(where, compute, list(layer.input), layer.output[0], []))
            except (UnsupportedLayerError, CodecError) as error:
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
                f"{self.path} cannot be run", problems=problems[:SHOWN_PROBLEMS] + more, hint=HINT
            )
        return _with_lifetimes(steps, set(self.outputs))

    def _prepared(
        self, layer: NeuralNetworkLayer, fields: Sequence[WeightFields], customs: CustomLayers
    ) -> Compute:
        """Function that a layer computes. Raises UnsupportedLayerError, CodecError."""
        kind = layer.WhichOneof("layer")
        if len(layer.output) != 1:
            raise UnsupportedLayerError(f"it makes {len(layer.output)} values, expected 1")
        if kind not in STANDARD and kind != "custom":
            raise UnsupportedLayerError("this type of layer is not known here")
        counts = range(1, 2) if kind == "custom" else STANDARD[kind].inputs
        if len(layer.input) not in counts:
            raise UnsupportedLayerError(
                f"it takes {len(layer.input)} values, expected {counts.start} to {counts.stop - 1}"
            )
        if kind != "custom":
            return STANDARD[kind].prepare(getattr(layer, kind))
        custom = customs.open(layer, fields)
        if layer.custom.className == EMBEDDING:
            return lambda ids: custom.matrix.embedding(ids)
        self._declared_int16.add(custom.int16_activations)
        return lambda x: custom.matrix.linear(x, custom.int16_activations)


def _sizes(array: Any) -> tuple[tuple[int, int | None], ...] | None:
    """Permitted sizes that an ArrayFeatureType declares; None if it declares none."""
    if ranges := array.shapeRange.sizeRanges:
        return tuple((r.lowerBound, None if r.upperBound < 0 else r.upperBound) for r in ranges)
    return tuple((n, n) for n in array.shape) or None


def _with_lifetimes(steps: Sequence[_Step], outputs: set[str]) -> list[_Step]:
    """Steps with the values that die after each.

    A value that nothing uses dies right after it was made.
    """
    seen = set(outputs)
    result = []
    for step in reversed(steps):
        dies = {name for name in (*step.inputs, step.output) if name not in seen}
        seen |= dies
        result.append(replace(step, dies=sorted(dies)))
    return result[::-1]

"""Interpreter of one function of an ML Program: shipped protobuf and weights, step by step.

Two arithmetics. "float16" rounds every result as the program types it, and computes inside an
operation in float32. "float32" computes in float32 whatever the program says, so that only what is
stored is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.errors import BundleError, UsageError
from runtime_ref.coreml.mil_operation import Operation
from runtime_ref.coreml.mil_reader import HINT, resolve
from runtime_ref.coreml.mil_steps import Arithmetic, Computed, Resolved, Source, Step, Type, held_as
from runtime_ref.coreml.mil_weights import Weight, WeightCache
from runtime_ref.coreml.package import BlobFiles, CoreMLPackage, load_spec

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model

# By the number in FeatureTypes.proto's ArrayDataType.
_ARRAY_TYPES = {
    65552: "float16",
    65568: "float32",
    131104: "int32",
}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and NumPy dtype of an input, output or state, as the description declares them."""

    shape: tuple[int, ...]
    dtype: str


class MLProgram:
    """One function of an ML Program, ready to run.

    `function` None means the default one. Dense float32 weights are kept while they fit into
    `cache_bytes`. `inputs`, `outputs` and `states` are as the description declares them. Raises
    BundleError if the package is damaged or holds anything this cannot compute, UsageError for a
    function it does not have.
    """

    def __init__(
        self, package: CoreMLPackage, function: str | None, arithmetic: Arithmetic, cache_bytes: int
    ) -> None:
        blobs, cache = BlobFiles(package.weights_dir), WeightCache(cache_bytes)
        self._open(package, load_spec(package.model_file), function, arithmetic, blobs, cache)

    def sibling(self, function: str) -> MLProgram:
        """Program of another function of the package. Dense weights and their budget are shared."""
        other = MLProgram.__new__(MLProgram)
        other._open(self.package, self._spec, function, self.arithmetic, self._blobs, self._cache)
        return other

    def _open(
        self,
        package: CoreMLPackage,
        spec: Model,
        function: str | None,
        arithmetic: Arithmetic,
        blobs: BlobFiles,
        cache: WeightCache,
    ) -> None:
        self.package, self.arithmetic = package, arithmetic
        self._spec, self._blobs, self._cache = spec, blobs, cache
        self.function, description = _described(package, spec, function)
        where = f"{package.path}, function {self.function}"
        self.inputs, self.outputs, self.states = (
            _interface(where, features)
            for features in (description.input, description.output, description.state)
        )
        self._resolved = resolve(
            spec.mlProgram.functions[self.function], blobs, arithmetic, cache, where
        )
        _check_interface(where, self._resolved, self.inputs | self.states, self.outputs)
        self._held = {
            name: held_as(info.dtype, arithmetic)
            for name, info in (self.inputs | self.states).items()
        }

    def new_state(self) -> dict[str, Tensor]:
        """State of zeros by name, in the type of the arithmetic."""
        return {
            name: torch.zeros(info.shape, dtype=self._held[name])
            for name, info in self.states.items()
        }

    def predict(
        self, inputs: dict[str, NDArray[Any]], state: dict[str, Tensor]
    ) -> dict[str, NDArray[Any]]:
        """Outputs of one call by name, of the declared shapes and types.

        `state` is updated in place. In float32 arithmetic a float16 output is not rounded either:
        it is given as float32.

        Raises UsageError if inputs or states are not as declared, BundleError if an operation
        fails.
        """
        self._check_arguments(inputs, state)
        with torch.inference_mode():
            # PyTorch wants memory it may write to: hence the copies.
            values = {
                name: torch.from_numpy(x.copy()).to(self._held[name]) for name, x in inputs.items()
            }
            for step in self._resolved.steps:
                self._run(step, values, state)
            return {name: values[name].numpy().copy() for name in self.outputs}

    def _check_arguments(self, inputs: dict[str, NDArray[Any]], state: dict[str, Tensor]) -> None:
        problems = _difference("input", set(self.inputs), set(inputs))
        problems += _difference("state", set(self.states), set(state))
        for name, array in inputs.items():
            if (info := self.inputs.get(name)) and (
                array.shape != info.shape or array.dtype != info.dtype
            ):
                got = f"{array.dtype} {list(array.shape)}"
                problems.append(f"input {name} is {got}, expected {info.dtype} {list(info.shape)}")
        for name, tensor in state.items():
            if (info := self.states.get(name)) and (
                tuple(tensor.shape) != info.shape
                or tensor.dtype != self._held[name]
                or not tensor.is_contiguous()
            ):
                got = f"{tensor.dtype} {list(tensor.shape)}"
                problems.append(
                    f"state {name} is {got}, expected {self._held[name]} {list(info.shape)}, "
                    "contiguous"
                )
        if problems:
            what = (
                f"the function {self.function} of {self.package.path.name} is not called as "
                "it declares"
            )
            raise UsageError(what, problems=problems, hint="give the inputs and states it declares")

    def _run(self, step: Step, values: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        try:
            results = _results(step, values, state)
            for output, result in zip(step.outputs, results, strict=True):
                values[output.name] = self._typed(output, result)
        except (ValueError, IndexError, RuntimeError) as error:
            what = f"{self.package.path}, function {self.function}: {step.where}: {error}"
            raise BundleError(what, hint="see which values reach this operation") from error
        for name in step.dies:
            del values[name]

    def _typed(self, output: Computed, result: Tensor) -> Tensor:
        """Result as the program types it, rounded as the arithmetic says. Raises ValueError."""
        declared, held = output.type, held_as(output.type.dtype, self.arithmetic)
        if not _shapes_agree(declared.shape, result.shape) or _kind(result.dtype) != _kind(held):
            raise ValueError(
                f"{output.name} came out as {result.dtype} {list(result.shape)}, declared is "
                f"{declared}"
            )
        return result.to(held)


def _results(step: Step, values: dict[str, Tensor], state: dict[str, Tensor]) -> Sequence[Tensor]:
    """Results of a step, in the order of its outputs."""
    if step.kind == "read_state":
        # This is no copy: `_may_write` and `_write_state` see to it that the value is kept.
        return [state[step.state]]
    arguments = {
        name: _argument(step.operation, name, source, values)
        for name, source in step.tensors.items()
    }
    if step.operation is None:
        _write_state(state[step.state], arguments["data"], values)
        return []
    if step.kind == "slice_update" and not _may_write(step, values, state):
        arguments["x"] = arguments["x"].clone(memory_format=torch.contiguous_format)
    result = step.operation.compute(**arguments, **step.constants)
    return result if isinstance(result, list) else [result]


def _argument(
    operation: Operation | None, name: str, source: Source, values: dict[str, Tensor]
) -> Any:
    """Argument of an operation: floats as float32, unless it only moves values."""
    if isinstance(source, list):
        return [_argument(operation, name, one, values) for one in source]
    moves = operation is None or operation.moves
    if isinstance(source, Weight):
        if operation is not None and (domain := operation.parameters[name].domain) and domain.lazy:
            return source
        return source.all().to(source.held) if moves else source.all()
    value = values[source] if isinstance(source, str) else source
    return value.to(torch.float32) if value.dtype == torch.float16 and not moves else value


def _memory(tensor: Tensor) -> int:
    """Address of the memory that a tensor lies in."""
    return tensor.untyped_storage().data_ptr()


def _may_write(step: Step, values: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Whether a `slice_update` may write into the memory of its `x`.

    Nothing else that lives may see it change. If it is the memory of a state, that state has to be
    written with the result before it is read again.
    """
    name = step.tensors["x"]
    if not step.chain or name not in step.dies or not isinstance(name, str):
        return False
    memory = _memory(values[name])
    seen = any(_memory(value) == memory for other, value in values.items() if other != name)
    stored = any(
        _memory(tensor) == memory for other, tensor in state.items() if other != step.early
    )
    return not seen and not stored


def _write_state(target: Tensor, data: Tensor, values: dict[str, Tensor]) -> None:
    """Stores `data` in a state.

    Values that were read from the state before, and still live, keep what they are.
    """
    if data.data_ptr() == target.data_ptr() and data.stride() == target.stride():
        return  # it was updated in place
    if _memory(data) == _memory(target):
        data = data.clone()
    for name, value in values.items():
        if _memory(value) == _memory(target):
            values[name] = value.clone()
    target.copy_(data)


def _kind(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else "bool" if dtype == torch.bool else "int"


def _shapes_agree(declared: Sequence[int | None], got: Sequence[int]) -> bool:
    """Whether a shape is the declared one; a declared size of None is any."""
    return len(declared) == len(got) and all(
        n in (None, m) for n, m in zip(declared, got, strict=True)
    )


def _described(package: CoreMLPackage, spec: Model, function: str | None) -> tuple[str, Any]:
    """Name and description of a function.

    The description is the model's own if that describes no functions. Raises BundleError,
    UsageError.
    """
    if spec.WhichOneof("Type") != "mlProgram":
        raise BundleError(
            f"{package.path} holds a {spec.WhichOneof('Type')}, not an ML Program", hint=HINT
        )
    described = {f.name: f for f in spec.description.functions} or {"main": spec.description}
    name = function or spec.description.defaultFunctionName or "main"
    if name not in spec.mlProgram.functions:
        known = ", ".join(sorted(spec.mlProgram.functions))
        raise UsageError(f"{package.path} has no function {name!r}", hint=f"choose one of: {known}")
    if name not in described:
        raise BundleError(f"{package.path} does not describe its function {name!r}", hint=HINT)
    return name, described[name]


def _interface(where: str, features: Iterable[Any]) -> dict[str, TensorInfo]:
    """Inputs, outputs or states by name.

    Raises BundleError for what is no array of a fixed shape.
    """
    found, problems = {}, []
    for feature in features:
        kind = feature.type.WhichOneof("Type")
        array = (
            feature.type.stateType.arrayType if kind == "stateType" else feature.type.multiArrayType
        )
        if kind not in ("multiArrayType", "stateType"):
            problems.append(f"{feature.name} is a {kind}")
        elif feature.type.isOptional:
            problems.append(f"{feature.name} is optional")
        elif array.WhichOneof("ShapeFlexibility"):
            problems.append(f"{feature.name} has no fixed shape")
        elif array.dataType not in _ARRAY_TYPES:
            problems.append(f"{feature.name} has elements of type number {array.dataType}")
        else:
            found[feature.name] = TensorInfo(tuple(array.shape), _ARRAY_TYPES[array.dataType])
    if problems:
        raise BundleError(
            f"{where}: only arrays of a fixed shape are supported", problems=problems, hint=HINT
        )
    return found


def _check_interface(
    where: str, resolved: Resolved, given: dict[str, TensorInfo], outputs: dict[str, TensorInfo]
) -> None:
    """Compares the description with the function. Raises BundleError if they do not agree."""
    computed = {output.name: output.type for output in resolved.outputs}
    problems = _difference("described input or state", set(resolved.types), set(given))
    problems += _difference("described output", set(computed), set(outputs))
    for name, type_ in (resolved.types | computed).items():
        if (info := (given | outputs).get(name)) and Type(info.dtype, info.shape) != type_:
            problems.append(
                f"{name} is described as {info.dtype} {list(info.shape)}, the function has {type_}"
            )
    if problems:
        raise BundleError(f"{where} is not what the description says", problems=problems, hint=HINT)


def _difference(what: str, expected: set[str], got: set[str]) -> list[str]:
    """Problems of names that are missing or not known."""
    return [f"{what} {name} is missing" for name in sorted(expected - got)] + [
        f"{what} {name} is not known" for name in sorted(got - expected)
    ]

"""Resolution of a function of an ML Program into steps: names, types, constants, lifetimes.

Whatever cannot be computed is found here, before anything runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from exporter.errors import BundleError
from runtime_ref.coreml.mil_constants import (
    COMPRESSED,
    array_of,
    dense_constant,
    immediate,
    python_constant,
)
from runtime_ref.coreml.mil_lifetimes import with_lifetimes
from runtime_ref.coreml.mil_operation import ANY_RESULT, FLOATS, Operation
from runtime_ref.coreml.mil_ops import BY_NAME
from runtime_ref.coreml.mil_steps import (
    Arithmetic,
    Computed,
    Constant,
    Resolved,
    Source,
    State,
    Step,
    Type,
    UnsupportedOperationError,
    Value,
    held_as,
    tensor_type,
)
from runtime_ref.coreml.mil_weights import Stored, Weight, WeightCache
from runtime_ref.coreml.package import STORAGE, BlobFiles

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2

OPSETS = ("CoreML7", "CoreML8")  # of iOS 17 and 18: what the operations here mean
SHOWN_PROBLEMS = 20
HINT = "export for iOS 17 or 18, with operations that runtime_ref/coreml/mil_ops.py knows"


def resolve(
    function: MIL_pb2.Function,
    blobs: BlobFiles,
    arithmetic: Arithmetic,
    cache: WeightCache,
    where: str,
) -> Resolved:
    """Function of an ML Program that is resolved and can run.

    Raises BundleError naming all operations that cannot be computed, or what else is wrong.
    """
    if function.opset not in OPSETS or function.opset not in function.block_specializations:
        raise BundleError(
            f"{where} is of opset {function.opset!r}, this computes {', '.join(OPSETS)}", hint=HINT
        )
    return _Reader(blobs, arithmetic, cache).function(function, where)


# These define or change a name, and compute nothing.
_BOUND_TO_NAMES = (
    "const",
    "read_state",
    "write_state",
)


class _Reader:
    """Reader of one function.

    `names` are the values seen so far; None is one of an operation that could not be resolved.
    """

    def __init__(self, blobs: BlobFiles, arithmetic: Arithmetic, cache: WeightCache) -> None:
        self.blobs, self.arithmetic, self.cache = blobs, arithmetic, cache
        self.names: dict[str, Value | None] = {}

    def function(self, function: MIL_pb2.Function, where: str) -> Resolved:
        """Resolved function. Raises BundleError naming everything that cannot be computed."""
        block = function.block_specializations[function.opset]
        steps, problems = [], []
        for given in function.inputs:
            try:
                self.names[given.name] = self.input(given)
            except UnsupportedOperationError as error:
                problems.append(f"input {given.name}: {error}")
        types = {name: value.type for name, value in self.names.items() if value is not None}
        for op in block.operations:
            node = f"{op.type} {_node_name(op)}"
            try:
                steps += self.operation(op, node)
            except ValueError as error:
                problems += [] if isinstance(error, _FollowsError) else [f"{node}: {error}"]
                self.names |= dict.fromkeys((out.name for out in op.outputs), None)
        outputs = [
            value for name in block.outputs if isinstance(value := self.names.get(name), Computed)
        ]
        if not problems and len(outputs) != len(block.outputs):
            problems.append(f"not all of the outputs {list(block.outputs)} are computed")
        if problems:
            more = (
                [f"and {len(problems) - SHOWN_PROBLEMS} more"]
                if len(problems) > SHOWN_PROBLEMS
                else []
            )
            raise BundleError(
                f"{where} cannot be computed", problems=problems[:SHOWN_PROBLEMS] + more, hint=HINT
            )
        return Resolved(with_lifetimes(steps, set(block.outputs)), outputs, types)

    def input(self, given: MIL_pb2.NamedValueType) -> Value:
        """Value of an input or state. Raises UnsupportedOperationError."""
        if given.type.WhichOneof("type") == "stateType":
            return State(given.name, self.computed_type(given.type.stateType.wrappedType))
        return Computed(given.name, self.computed_type(given.type))

    def computed_type(self, value_type: MIL_pb2.ValueType) -> Type:
        """Type of a value that is computed.

        Raises UnsupportedOperationError for a type that values do not have while the program runs.
        """
        found = tensor_type(value_type)
        held_as(found.dtype, self.arithmetic)
        return found

    def operation(self, op: MIL_pb2.Operation, where: str) -> list[Step]:
        """Step of an operation; none for a constant.

        Raises ValueError for what cannot be computed.
        """
        if op.blocks:
            raise UnsupportedOperationError(
                "operations with blocks inside (loops, conditions) are not supported"
            )
        if unknown := set(op.attributes) - {"name", "val"}:
            raise UnsupportedOperationError(f"attributes {sorted(unknown)} are not supported")
        if twice := {output.name for output in op.outputs} & set(self.names):
            raise UnsupportedOperationError(f"defines {sorted(twice)} again")
        if op.type not in BY_NAME and op.type not in COMPRESSED and op.type not in _BOUND_TO_NAMES:
            raise UnsupportedOperationError("this operation is not supported")
        if op.type == "const":
            (output,) = op.outputs
            constant = self.names[output.name] = self.value(op.attributes["val"])
            if constant.type != (declared := tensor_type(output.type)):
                raise UnsupportedOperationError(f"is {constant.type}, declared is {declared}")
            return []
        arguments = {
            name: [self.bound(one) for one in argument.arguments]
            for name, argument in op.inputs.items()
        }
        if op.type in COMPRESSED:
            (output,) = op.outputs
            output_type = tensor_type(output.type)
            self.names[output.name] = dense_constant(
                op.type, arguments, output_type, self.arithmetic
            )
            return []
        outputs = tuple(Computed(out.name, self.computed_type(out.type)) for out in op.outputs)
        if op.type in ("read_state", "write_state"):
            step = self.state_access(op.type, where, arguments, outputs)
        else:
            step = self.computation(op.type, where, arguments, outputs)
        self.names |= {output.name: output for output in outputs}
        return [step]

    def value(self, value: MIL_pb2.Value) -> Constant:
        """Constant from the program or from a weight file. Raises UnsupportedOperationError."""
        found = tensor_type(value.type)
        shape = tuple(n for n in found.shape if n is not None)
        if len(shape) != len(found.shape):
            raise UnsupportedOperationError("a constant has a size that is not fixed")
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            if found.dtype not in STORAGE:
                raise UnsupportedOperationError(
                    f"weight files do not hold values of type {found.dtype}"
                )
            packed = self.blobs.read(blob.fileName, blob.offset, found.dtype, shape)
            return Constant(found, Stored(packed), f"{found} {blob.fileName} {blob.offset}")
        if value.immediateValue.WhichOneof("value") != "tensor":
            raise UnsupportedOperationError(
                f"constants that are a {value.immediateValue.WhichOneof('value')} are not supported"
            )
        return immediate(found, shape, value.immediateValue.tensor)

    def bound(self, binding: MIL_pb2.Argument.Binding) -> Value:
        """Value that is bound to a parameter. Raises UnsupportedOperationError."""
        if binding.WhichOneof("binding") == "value":
            return self.value(binding.value)
        if binding.name not in self.names:
            raise UnsupportedOperationError(f"{binding.name!r} is not defined before")
        if (found := self.names[binding.name]) is None:
            raise _FollowsError(binding.name)
        return found

    def state_access(
        self,
        kind: str,
        where: str,
        arguments: dict[str, list[Value]],
        outputs: tuple[Computed, ...],
    ) -> Step:
        """Step that reads or writes a state.

        `coreml_update_state` of the builder is stored as `write_state` and, if it is used,
        `read_state`. Raises UnsupportedOperationError.
        """
        expected = {"input"} if kind == "read_state" else {"input", "data"}
        if set(arguments) != expected or any(len(values) != 1 for values in arguments.values()):
            raise UnsupportedOperationError(
                f"has the parameters {sorted(arguments)}, expected {sorted(expected)}"
            )
        (state,) = arguments["input"]
        if not isinstance(state, State):
            raise UnsupportedOperationError("its input is not a state")
        (other,) = outputs if kind == "read_state" else arguments["data"]
        if other.type != state.type:
            raise UnsupportedOperationError(f"the state is {state.type}, the value {other.type}")
        tensors: dict[str, Source] = (
            {} if kind == "read_state" else {"data": self.source(other, "data")}
        )
        return Step(where, kind, None, tensors, {}, outputs, state=state.name)

    def computation(
        self,
        kind: str,
        where: str,
        arguments: dict[str, list[Value]],
        outputs: tuple[Computed, ...],
    ) -> Step:
        """Step that computes. Raises UnsupportedOperationError."""
        operation = BY_NAME[kind]
        parameters = operation.parameters
        if unknown := set(arguments) - set(parameters):
            raise UnsupportedOperationError(f"parameters {sorted(unknown)} are not supported")
        if missing := {name for name, p in parameters.items() if p.required} - set(arguments):
            raise UnsupportedOperationError(f"parameters {sorted(missing)} are missing")
        tensors: dict[str, Source] = {}
        constants = {}
        for name, values in arguments.items():
            if len(values) != 1 and not parameters[name].several:
                raise UnsupportedOperationError(f"{name} is {len(values)} values, expected 1")
            if parameters[name].domain is None:
                constants[name] = python_constant(name, values[0], parameters[name].constant)
            elif parameters[name].several:
                tensors[name] = [self.source(value, name) for value in values]
            else:
                tensors[name] = self.source(values[0], name)
        _check_types(operation, arguments, outputs)
        return Step(where, kind, operation, tensors, constants, outputs)

    def source(self, value: Value, parameter: str) -> Tensor | Weight | str:
        """Name of a computed value, a Weight, or a small constant as a tensor."""
        if isinstance(value, Computed):
            return value.name
        if isinstance(value, State):
            raise UnsupportedOperationError(
                f"{parameter} is a state; only read_state and write_state take one"
            )
        held = held_as(value.type.dtype, self.arithmetic)
        if (
            value.type.dtype in FLOATS
            and value.type.shape
            and not isinstance(value.value, np.ndarray)
        ):
            return Weight(value.value, held, self.cache, value.key)
        return torch.from_numpy(array_of(value)).to(held)


class _FollowsError(UnsupportedOperationError):
    """Error of an operation that needs one before it which could not be resolved.

    It is not worth naming.
    """


def _node_name(op: MIL_pb2.Operation) -> str:
    """Name of an operation for messages."""
    names = (
        op.attributes["name"].immediateValue.tensor.strings.values
        if "name" in op.attributes
        else []
    )
    return names[0] if names else op.outputs[0].name if op.outputs else "without a name"


def _check_types(
    operation: Operation, arguments: dict[str, list[Value]], outputs: tuple[Computed, ...]
) -> None:
    """Compares the types of arguments and outputs with the signature of an operation.

    Raises UnsupportedOperationError for a type that it does not compute, and for a mixture.
    """
    shared = set()
    for name, values in arguments.items():
        if (domain := operation.parameters[name].domain) is None:
            continue
        for value in values:
            if value.type.dtype not in domain.types:
                raise UnsupportedOperationError(
                    f"{name} is {value.type}, supported are {', '.join(sorted(domain.types))}"
                )
        shared |= {value.type.dtype for value in values if domain.shared}
    if len(shared) > 1:
        raise UnsupportedOperationError(f"mixes the types {', '.join(sorted(shared))}")
    expected = shared if operation.result is None else {operation.result}
    for output in outputs:
        if operation.result != ANY_RESULT and expected and output.type.dtype not in expected:
            raise UnsupportedOperationError(
                f"gives {output.type.dtype} from {', '.join(sorted(expected))}"
            )

"""Resolves a function of an ML Program into steps that can run: names, types, constants, lifetimes.

Whatever cannot be computed is found here, before anything runs.
"""

from __future__ import annotations

import hashlib
import typing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from exporter.errors import BundleError
from runtime_ref.coreml import mil_ops
from runtime_ref.coreml.mil_weights import (
    LookedUp,
    Rows,
    ShiftedScaled,
    Stored,
    Weight,
    WeightCache,
)
from runtime_ref.coreml.package import STORAGE, BlobFiles, Packed, packed_bytes

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2

Arithmetic = Literal["float32", "float16"]
OPSETS = ("CoreML7", "CoreML8")  # of iOS 17 and 18: what the operations here mean
SHOWN_PROBLEMS = 20
DO = "export for iOS 17 or 18, with operations that runtime_ref/coreml/mil_ops.py knows"

# Numbers of MIL.proto's DataType.
_TYPES = {
    1: "bool",
    2: "string",
    10: "float16",
    11: "float32",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
# What a value is held as. PyTorch computes next to nothing in uint16; halves depend on the
# arithmetic.
_HELD = {
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "float32": torch.float32,
}


class UnsupportedOperationError(ValueError):
    """Something in an operation that this does not compute, or that makes no sense."""


def held_as(dtype: str, arithmetic: Arithmetic) -> torch.dtype:
    """The PyTorch type of a value that the program types `dtype`.

    Raises UnsupportedOperationError for a type that only constants have.
    """
    if dtype == "float16":
        return torch.float16 if arithmetic == "float16" else torch.float32
    if dtype not in _HELD:
        raise UnsupportedOperationError(f"values of type {dtype} are not supported")
    return _HELD[dtype]


@dataclass(frozen=True)
class Type:
    """The type of a value inside the program. A size that is not fixed is None."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {['?' if n is None else n for n in self.shape]}"


@dataclass(frozen=True)
class State:
    """A state: something that only `read_state` and `write_state` take."""

    name: str
    type: Type


@dataclass(frozen=True)
class Computed:
    """A value that is computed while the program runs, or an input."""

    name: str
    type: Type


@dataclass(frozen=True)
class Constant:
    """A constant of the program. `key` is equal for equal contents; strings, flags and 64-bit
    integers are arrays."""

    type: Type
    value: Rows | np.ndarray
    key: str


Value = State | Computed | Constant
Source = Tensor | Weight | str | list[Tensor | Weight | str]  # a str names a computed value


@dataclass(frozen=True)
class Step:
    """One operation, resolved. `dies` are the values that nothing reads after it.

    `early` is the state in whose memory a `slice_update` may write already, though the
    `write_state` follows later. `chain` is set if its `x` comes from `read_state` or another
    update, so that no constant or input shares its memory.
    """

    where: str
    kind: str
    operation: mil_ops.Operation | None  # None for `read_state` and `write_state`
    tensors: dict[str, Source]
    constants: dict[str, Any]
    outputs: tuple[Computed, ...]
    state: str = ""
    dies: tuple[str, ...] = ()
    chain: bool = False
    early: str = ""

    def reads(self) -> list[str]:
        """The computed values it is given."""
        sources = [
            s
            for source in self.tensors.values()
            for s in (source if isinstance(source, list) else [source])
        ]
        return [source for source in sources if isinstance(source, str)]


@dataclass(frozen=True)
class Resolved:
    """A function that can run. `types` are those of its inputs and states."""

    steps: list[Step]
    outputs: list[Computed]
    types: dict[str, Type]


def resolve(
    function: MIL_pb2.Function,
    blobs: BlobFiles,
    arithmetic: Arithmetic,
    cache: WeightCache,
    where: str,
) -> Resolved:
    """Raises BundleError naming all operations that cannot be computed, or what else is wrong."""
    if function.opset not in OPSETS or function.opset not in function.block_specializations:
        raise BundleError(
            f"{where} is of opset {function.opset!r}, this computes {', '.join(OPSETS)}", do=DO
        )
    return _Reader(blobs, arithmetic, cache).function(function, where)


_BOUND_TO_NAMES = (
    "const",
    "read_state",
    "write_state",
)  # which define or change a name, and compute nothing


class _Reader:
    """`names` are the values seen so far; None is one of an operation that could not be
    resolved."""

    def __init__(self, blobs: BlobFiles, arithmetic: Arithmetic, cache: WeightCache) -> None:
        self.blobs, self.arithmetic, self.cache = blobs, arithmetic, cache
        self.names: dict[str, Value | None] = {}

    def function(self, function: MIL_pb2.Function, where: str) -> Resolved:
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
                f"{where} cannot be computed", problems=problems[:SHOWN_PROBLEMS] + more, do=DO
            )
        return Resolved(_with_lifetimes(steps, set(block.outputs)), outputs, types)

    def input(self, given: MIL_pb2.NamedValueType) -> Value:
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
        """The step of an operation; none for a constant. Raises ValueError for what cannot be
        computed."""
        if op.blocks:
            raise UnsupportedOperationError(
                "operations with blocks inside (loops, conditions) are not supported"
            )
        if unknown := set(op.attributes) - {"name", "val"}:
            raise UnsupportedOperationError(f"attributes {sorted(unknown)} are not supported")
        if twice := {output.name for output in op.outputs} & set(self.names):
            raise UnsupportedOperationError(f"defines {sorted(twice)} again")
        if (
            op.type not in mil_ops.BY_NAME
            and op.type not in _CONSTEXPR
            and op.type not in _BOUND_TO_NAMES
        ):
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
        if op.type in _CONSTEXPR:
            (output,) = op.outputs
            output_type = tensor_type(output.type)
            self.names[output.name] = _constexpr(op.type, arguments, output_type, self.arithmetic)
            return []
        outputs = tuple(Computed(out.name, self.computed_type(out.type)) for out in op.outputs)
        if op.type in ("read_state", "write_state"):
            step = self.state_access(op.type, where, arguments, outputs)
        else:
            step = self.computation(op.type, where, arguments, outputs)
        self.names |= {output.name: output for output in outputs}
        return [step]

    def value(self, value: MIL_pb2.Value) -> Constant:
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
        return _immediate(found, shape, value.immediateValue.tensor)

    def bound(self, binding: MIL_pb2.Argument.Binding) -> Value:
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
        """`coreml_update_state` of the builder is stored as `write_state` and, if it is used,
        `read_state`."""
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
        operation = mil_ops.BY_NAME[kind]
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
                constants[name] = _python_constant(name, values[0], parameters[name].constant)
            elif parameters[name].several:
                tensors[name] = [self.source(value, name) for value in values]
            else:
                tensors[name] = self.source(values[0], name)
        _check_types(operation, arguments, outputs)
        return Step(where, kind, operation, tensors, constants, outputs)

    def source(self, value: Value, parameter: str) -> Tensor | Weight | str:
        """What a step reads: the name of a computed value, a Weight, or a small constant as a
        tensor."""
        if isinstance(value, Computed):
            return value.name
        if isinstance(value, State):
            raise UnsupportedOperationError(
                f"{parameter} is a state; only read_state and write_state take one"
            )
        held = held_as(value.type.dtype, self.arithmetic)
        if (
            value.type.dtype in mil_ops.FLOATS
            and value.type.shape
            and not isinstance(value.value, np.ndarray)
        ):
            return Weight(value.value, held, self.cache, value.key)
        return torch.from_numpy(_array(value)).to(held)


class _FollowsError(UnsupportedOperationError):
    """An operation that cannot be resolved because one before it could not: not worth naming."""


def tensor_type(value_type: MIL_pb2.ValueType) -> Type:
    """Type of a tensor in the program.

    Raises UnsupportedOperationError for what is no tensor, and for an unknown type or rank.
    """
    kind = value_type.WhichOneof("type")
    if kind != "tensorType":
        raise UnsupportedOperationError(f"values of {kind} are not supported")
    tensor = value_type.tensorType
    if tensor.dataType not in _TYPES:
        raise UnsupportedOperationError(
            f"values of type number {tensor.dataType} are not supported"
        )
    if tensor.rank != len(tensor.dimensions):
        raise UnsupportedOperationError("values of any rank are not supported")
    sizes = (
        d.constant.size if d.WhichOneof("dimension") == "constant" else None
        for d in tensor.dimensions
    )
    return Type(_TYPES[tensor.dataType], tuple(sizes))


def _node_name(op: MIL_pb2.Operation) -> str:
    names = (
        op.attributes["name"].immediateValue.tensor.strings.values
        if "name" in op.attributes
        else []
    )
    return names[0] if names else op.outputs[0].name if op.outputs else "without a name"


# Constants.

_FIELDS = {"ints": np.int32, "floats": np.float32, "bools": np.bool_, "longInts": np.int64}


def _immediate(type_: Type, shape: tuple[int, ...], tensor: MIL_pb2.TensorValue) -> Constant:
    """A constant inside the program. Small types lie in `bytes` as in a weight file, int16 and
    uint16 in `ints`."""
    field = tensor.WhichOneof("value")
    if type_.dtype == "string" or field == "strings":
        return Constant(
            type_, np.array(list(tensor.strings.values), dtype=object).reshape(shape), ""
        )
    if field == "bytes":
        raw = np.frombuffer(tensor.bytes.values, dtype=np.uint8)
        if type_.dtype not in STORAGE or len(raw) != packed_bytes(type_.dtype, shape):
            raise UnsupportedOperationError(f"a constant {type_} has {len(raw)} bytes")
        packed = Packed(raw.copy(), type_.dtype, shape)
        return Constant(type_, Stored(packed), _content_key(type_, packed.raw))
    if field not in _FIELDS:
        raise UnsupportedOperationError(f"constants given as {field} are not supported")
    values: np.ndarray = np.array(getattr(tensor, field).values, dtype=_FIELDS[field])
    if values.size != np.prod(shape, dtype=np.int64):
        raise UnsupportedOperationError(f"a constant {type_} has {values.size} values")
    if type_.dtype in STORAGE:
        stored = values.astype(STORAGE[type_.dtype].unpacked)
        if not np.array_equal(stored, values, equal_nan=field == "floats"):
            raise UnsupportedOperationError(
                f"a constant {type_} has values that the type does not hold"
            )
        raw = stored.reshape(-1).view(np.uint8)
        return Constant(type_, Stored(Packed(raw, type_.dtype, shape)), _content_key(type_, raw))
    return Constant(type_, values.reshape(shape), "")


def _content_key(type_: Type, raw: np.ndarray) -> str:
    return f"{type_} {hashlib.sha256(raw.tobytes()).hexdigest()}"


def _array(constant: Constant) -> np.ndarray:
    """All values [*shape]; a tensor of rank 0 is an array of rank 0."""
    if isinstance(constant.value, np.ndarray):
        return constant.value
    if isinstance(constant.value, Stored):
        return constant.value.packed.array()
    integers = constant.value.rows(0, constant.value.shape[0]).numpy()
    return integers.astype(STORAGE[constant.type.dtype].unpacked)


_KINDS = {int: "iu", float: "f", bool: "b"}


def _python_constant(name: str, value: Value, hint: Any) -> Any:
    """Python value of a constant, of the type in the signature of the operation.

    Raises UnsupportedOperationError for a value of another type, and for one that is computed.
    """
    if not isinstance(value, Constant):
        raise UnsupportedOperationError(f"{name} is computed, expected a constant")
    array = _array(value)
    if typing.get_origin(hint) is Literal:
        found = array.item() if array.size == 1 else None
        if found not in typing.get_args(hint):
            raise UnsupportedOperationError(
                f"{name} = {found!r} is not supported, only {list(typing.get_args(hint))}"
            )
        return found
    is_list = typing.get_origin(hint) is list
    element = typing.get_args(hint)[0] if is_list else hint
    if array.dtype.kind not in _KINDS[element] or array.ndim != int(is_list):
        raise UnsupportedOperationError(f"{name} is {value.type}, expected {hint}")
    return array.tolist()


# Compressed constants: required and optional parameters.

_CONSTEXPR: dict[str, tuple[set[str], set[str]]] = {
    "constexpr_lut_to_dense": ({"indices", "lut"}, set()),
    "constexpr_blockwise_shift_scale": ({"data", "scale"}, {"offset"}),
}


def _constexpr(
    kind: str, arguments: dict[str, list[Value]], output: Type, arithmetic: Arithmetic
) -> Constant:
    required, optional = _CONSTEXPR[kind]
    if unknown := set(arguments) - required - optional:
        raise UnsupportedOperationError(f"parameters {sorted(unknown)} are not supported")
    if missing := required - set(arguments):
        raise UnsupportedOperationError(f"parameters {sorted(missing)} are missing")
    given = {
        name: values[0] for name, values in arguments.items() if isinstance(values[0], Constant)
    }
    if len(given) != len(arguments):
        raise UnsupportedOperationError("not all of its parameters are constants")
    rows: Rows
    if kind == "constexpr_lut_to_dense":
        rows, dtype = _looked_up(given), given["lut"].type.dtype
    else:
        rows, dtype = (
            _shifted_scaled(given, held_as(output.dtype, arithmetic)),
            given["scale"].type.dtype,
        )
    if Type(dtype, rows.shape) != output:
        raise UnsupportedOperationError(f"gives {Type(dtype, rows.shape)}, declared is {output}")
    return Constant(
        output,
        rows,
        f"{kind} " + ", ".join(f"{name}: {c.key}" for name, c in sorted(given.items())),
    )


def _looked_up(given: dict[str, Constant]) -> LookedUp:
    indices = given["indices"].value
    if not isinstance(indices, Stored):
        raise UnsupportedOperationError("indices that are compressed themselves are not supported")
    return LookedUp(indices.packed, torch.from_numpy(_array(given["lut"])))


def _shifted_scaled(given: dict[str, Constant], held: torch.dtype) -> ShiftedScaled:
    if (
        isinstance(data := given["data"].value, np.ndarray)
        or given["scale"].type.dtype not in mil_ops.FLOATS
    ):
        raise UnsupportedOperationError(
            f"data {given['data'].type} and scale {given['scale'].type} are not supported"
        )
    offset = torch.from_numpy(_array(given["offset"])) if "offset" in given else None
    return ShiftedScaled(
        data, torch.from_numpy(_array(given["scale"])), offset, held == torch.float16
    )


# Types and lifetimes.


def _check_types(
    operation: mil_ops.Operation, arguments: dict[str, list[Value]], outputs: tuple[Computed, ...]
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
        if (
            operation.result != mil_ops.ANY_RESULT
            and expected
            and output.type.dtype not in expected
        ):
            raise UnsupportedOperationError(
                f"gives {output.type.dtype} from {', '.join(sorted(expected))}"
            )


def _with_lifetimes(steps: list[Step], kept: set[str]) -> list[Step]:
    """Marks after which step a value is not read any more, and which updates may be done in
    place."""
    last: dict[str, int] = {}
    for i, step in enumerate(steps):
        last |= dict.fromkeys([*step.reads(), *(output.name for output in step.outputs)], i)
    dying: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in kept:
            dying.setdefault(i, []).append(name)
    origin: dict[
        str, str
    ] = {}  # of values read from a state, or made by updates: the state, or "" for none
    marked = []
    for i, step in enumerate(steps):
        x = step.tensors.get("x")
        if step.kind == "read_state":
            origin[step.outputs[0].name] = step.state
        elif step.kind == "slice_update":
            state = origin.get(x, "") if isinstance(x, str) else ""
            origin[step.outputs[0].name] = state
            step = replace(
                step, chain=x in origin, early=state if _is_written_next(steps, i, state) else ""
            )
        marked.append(replace(step, dies=tuple(dying.get(i, ()))))
    return marked


def _is_written_next(steps: list[Step], i: int, state: str) -> bool:
    """Whether the next access to the state stores what update `i` gives, or further updates of
    it."""
    names: set[Source] = {steps[i].outputs[0].name}
    for step in steps[i + 1 :]:
        if step.state == state:
            return step.kind == "write_state" and step.tensors["data"] in names
        if step.kind == "slice_update" and step.tensors["x"] in names:
            names.add(step.outputs[0].name)
    return False

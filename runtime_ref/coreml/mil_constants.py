"""Constants of an ML Program: values inside the protobuf, and compressed weights."""

from __future__ import annotations

import hashlib
import typing
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from runtime_ref.coreml.mil_operation import FLOATS
from runtime_ref.coreml.mil_steps import (
    Arithmetic,
    Constant,
    Type,
    UnsupportedOperationError,
    Value,
    held_as,
)
from runtime_ref.coreml.mil_weights import LookedUp, Rows, ShiftedScaled, Stored
from runtime_ref.coreml.package import STORAGE, Packed, packed_bytes

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2


_FIELDS = {"ints": np.int32, "floats": np.float32, "bools": np.bool_, "longInts": np.int64}


def immediate(type_: Type, shape: tuple[int, ...], tensor: MIL_pb2.TensorValue) -> Constant:
    """Constant from a value inside the program.

    Small types lie in the field `bytes` as in a weight file, int16 and uint16 in `ints`. Raises
    UnsupportedOperationError.
    """
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
    values: NDArray[Any] = np.array(getattr(tensor, field).values, dtype=_FIELDS[field])
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


def _content_key(type_: Type, raw: NDArray[np.uint8]) -> str:
    """Key of a constant: equal for equal types and contents."""
    return f"{type_} {hashlib.sha256(raw.tobytes()).hexdigest()}"


def array_of(constant: Constant) -> NDArray[Any]:
    """Array of all values of a constant, [*shape]; a tensor of rank 0 is an array of rank 0."""
    if isinstance(constant.value, np.ndarray):
        return constant.value
    if isinstance(constant.value, Stored):
        return constant.value.packed.array()
    integers = constant.value.rows(0, constant.value.shape[0]).numpy()
    return integers.astype(STORAGE[constant.type.dtype].unpacked)


_KINDS = {int: "iu", float: "f", bool: "b"}


def python_constant(name: str, value: Value, hint: Any) -> Any:
    """Python value of a constant, of the type in the signature of the operation.

    Raises UnsupportedOperationError for a value of another type, and for one that is computed.
    """
    if not isinstance(value, Constant):
        raise UnsupportedOperationError(f"{name} is computed, expected a constant")
    array = array_of(value)
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


COMPRESSED: dict[str, tuple[set[str], set[str]]] = {
    "constexpr_lut_to_dense": ({"indices", "lut"}, set()),
    "constexpr_blockwise_shift_scale": ({"data", "scale"}, {"offset"}),
}


def dense_constant(
    kind: str, arguments: dict[str, list[Value]], output: Type, arithmetic: Arithmetic
) -> Constant:
    """Constant that a compressed one stands for. Raises UnsupportedOperationError."""
    required, optional = COMPRESSED[kind]
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
    """Rows of a constant that is indices into tables. Raises UnsupportedOperationError."""
    indices = given["indices"].value
    if not isinstance(indices, Stored):
        raise UnsupportedOperationError("indices that are compressed themselves are not supported")
    return LookedUp(indices.packed, torch.from_numpy(array_of(given["lut"])))


def _shifted_scaled(given: dict[str, Constant], held: torch.dtype) -> ShiftedScaled:
    """Rows of a constant that is integers with scales. Raises UnsupportedOperationError."""
    if (
        isinstance(data := given["data"].value, np.ndarray)
        or given["scale"].type.dtype not in FLOATS
    ):
        raise UnsupportedOperationError(
            f"data {given['data'].type} and scale {given['scale'].type} are not supported"
        )
    offset = torch.from_numpy(array_of(given["offset"])) if "offset" in given else None
    return ShiftedScaled(
        data, torch.from_numpy(array_of(given["scale"])), offset, held == torch.float16
    )

"""Terms of a function of an ML Program that can run: types, values and steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime_ref.coreml.mil_operation import Operation
from runtime_ref.coreml.mil_weights import Rows, Weight

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2


Arithmetic = Literal["float32", "float16"]


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
    """Error of an operation that this does not compute, or that makes no sense."""


def held_as(dtype: str, arithmetic: Arithmetic) -> torch.dtype:
    """PyTorch type of a value that the program types `dtype`.

    Raises UnsupportedOperationError for a type that only constants have.
    """
    if dtype == "float16":
        return torch.float16 if arithmetic == "float16" else torch.float32
    if dtype not in _HELD:
        raise UnsupportedOperationError(f"values of type {dtype} are not supported")
    return _HELD[dtype]


@dataclass(frozen=True)
class Type:
    """Type of a value inside the program. A size that is not fixed is None."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {['?' if n is None else n for n in self.shape]}"


@dataclass(frozen=True)
class State:
    """State of a program, which only `read_state` and `write_state` take."""

    name: str
    type: Type


@dataclass(frozen=True)
class Computed:
    """Value that is computed while the program runs, or an input."""

    name: str
    type: Type


@dataclass(frozen=True)
class Constant:
    """Constant of the program. `key` is equal for equal contents.

    Strings, flags and 64-bit integers are arrays.
    """

    type: Type
    value: Rows | NDArray[Any]
    key: str


Value = State | Computed | Constant


Source = Tensor | Weight | str | list[Tensor | Weight | str]  # a str names a computed value


@dataclass(frozen=True)
class Step:
    """One resolved operation. `dies` are the values that nothing reads after it.

    `early` is the state in whose memory a `slice_update` may write already, though the
    `write_state` follows later. `chain` is set if its `x` comes from `read_state` or another
    update, so that no constant or input shares its memory.
    """

    where: str
    kind: str
    operation: Operation | None  # None for `read_state` and `write_state`
    tensors: dict[str, Source]
    constants: dict[str, Any]
    outputs: tuple[Computed, ...]
    state: str = ""
    dies: tuple[str, ...] = ()
    chain: bool = False
    early: str = ""

    def reads(self) -> list[str]:
        """Names of the computed values that the step is given."""
        sources = [
            s
            for source in self.tensors.values()
            for s in (source if isinstance(source, list) else [source])
        ]
        return [source for source in sources if isinstance(source, str)]


@dataclass(frozen=True)
class Resolved:
    """Function that can run. `types` are those of its inputs and states."""

    steps: list[Step]
    outputs: list[Computed]
    types: dict[str, Type]


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

"""The graph of an ExecuTorch program: recording the calls of operators, and planning their memory.

A program of the Tiny-QMoE operators is a list of calls, so it is recorded as a network is called,
and not traced, decomposed and partitioned. The schema is that of `executorch.exir.schema`; values
of activations have the sizes of the longest input, and shrink when the program runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from executorch.exir.schema import Buffer, EValue, ExecutionPlan, Program

ALIGNMENT = 64  # bytes: of every constant and of every planned value
ARENA = 1  # the id of planned memory: 0 is that of constants


@dataclass(eq=False)
class Value:
    """A tensor in a program: its largest sizes, and the bytes it takes in the arena.

    `dynamic`: whether the input's length is one of its sizes. `first` and `last` are the calls
    between which it lives; a value without them lives always.
    """

    index: int
    sizes: tuple[int, ...]
    dynamic: bool
    n_bytes: int = 0  # 0: it is not in the arena
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class Constant:
    """A constant of a program: its bytes, or a file that holds them, and its sizes."""

    data: Any  # bytes, or an executorch FileBackedData
    sizes: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Call:
    """A call of the operator `tinyqmoe::name`: indices of its arguments and of its results.

    An operator of several results returns nothing: they are a list, its last argument.
    """

    name: str
    arguments: list[int]
    outs: list[int]


@dataclass
class Graph:
    """A program in the making, for inputs of at most `tokens` tokens."""

    tokens: int
    values: list[EValue] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)  # in order, by when they are
    planned: list[Value] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    _constants: dict[int | bytes, Value] = field(default_factory=dict)

    def input(self, sizes: tuple[int, ...], dtype: torch.dtype, *, dynamic: bool) -> Value:
        """An input, whose memory is the caller's."""
        value = self._tensor(sizes, dtype, dynamic=dynamic)
        self.inputs.append(value.index)
        return value

    def cache(self, n_bytes: int) -> Value:
        """Memory, uint8 [n_bytes], that keeps what a call put into it."""
        value = self._tensor((n_bytes,), torch.uint8, dynamic=False)
        value.n_bytes = n_bytes
        self.planned.append(value)
        return value

    def constant(self, constant: Constant) -> Value:
        """A constant; a file or bytes that are already there are not added again."""
        data = constant.data
        key = data if isinstance(data, bytes) else id(data)
        if key not in self._constants:
            self._constants[key] = self._tensor(constant.sizes, constant.dtype, data=data)
        return self._constants[key]

    def vector(self, vector: Tensor) -> Value:
        """A float32 vector [n] as a constant."""
        return self.constant(Constant(bytes_of(vector), tuple(vector.shape), torch.float32))

    def call(
        self,
        name: str,
        *arguments: Any,
        sizes: tuple[int, ...],
        dynamic: bool,
        dtype: torch.dtype = torch.float32,
    ) -> Value:
        """The result of the operator `tinyqmoe::name` over values and numbers.

        `sizes` are those for the longest input.
        """
        at = max(self.calls, default=-1) + 1
        out = self._tensor(sizes, dtype, dynamic=dynamic)
        out.n_bytes, out.first, out.last = dtype.itemsize * math.prod(sizes), at, at
        self.planned.append(out)
        for argument in arguments:
            if isinstance(argument, Value) and argument.last is not None:
                argument.last = at
        indices = [a.index if isinstance(a, Value) else self._value(_number(a)) for a in arguments]
        self.calls[at] = Call(name, indices, [out.index])
        return out

    def join(self, places: list[int], call: Call) -> None:
        """Puts a call that has the results of several, those at `places`, where their first is."""
        for at in places[1:]:
            del self.calls[at]
        self.calls[places[0]] = call
        for value in self.planned:
            if value.index in call.outs:
                value.first = places[0]

    def numbers(self, indices: list[int]) -> int:
        """The index of a list of whole numbers."""
        from executorch.exir.schema import IntList

        return self._value(IntList(indices))

    def tensors(self, indices: list[int]) -> int:
        """The index of a list of tensors."""
        from executorch.exir.schema import TensorList

        return self._value(TensorList(indices))

    def census(self) -> dict[str, int]:
        """Number of calls of each operator, by name with overload."""
        return dict(Counter(f"tinyqmoe::{call.name}.out" for call in self.calls.values()))

    def program(self, output: Value, methods: dict[str, Any]) -> Program:
        """The program with the method `forward`, and one for each constant of `methods`."""
        from executorch.exir.schema import Buffer, Program, SubsegmentOffsets

        output.last = max(self.calls, default=0) + 1  # the caller reads it
        arena_bytes = self._plan_memory()
        plans = [self._forward(output, arena_bytes), *map(_constant_method, methods.items())]
        return Program(
            version=0,
            execution_plan=plans,
            constant_buffer=[Buffer(storage=b""), *self.buffers],
            backend_delegate_data=[],
            segments=[],
            constant_segment=SubsegmentOffsets(segment_index=0, offsets=[]),
        )

    def _tensor(
        self,
        sizes: tuple[int, ...],
        dtype: torch.dtype,
        *,
        dynamic: bool = False,
        data: Any = None,
    ) -> Value:
        from executorch.exir import schema

        if data is not None:
            self.buffers.append(schema.Buffer(storage=data))
        bound, static = (
            schema.TensorShapeDynamism.DYNAMIC_BOUND,
            schema.TensorShapeDynamism.STATIC,
        )
        tensor = schema.Tensor(
            scalar_type=_SCALAR_TYPES[dtype](schema.ScalarType),
            storage_offset=0,
            sizes=list(sizes),
            dim_order=list(range(len(sizes))),
            requires_grad=False,
            layout=0,
            # Buffer 0 stands for no constant.
            data_buffer_idx=0 if data is None else len(self.buffers),
            allocation_info=None,
            shape_dynamism=bound if dynamic else static,
        )
        return Value(self._value(tensor), sizes, dynamic)

    def _value(self, value: Any) -> int:
        from executorch.exir.schema import EValue

        self.values.append(EValue(value))
        return len(self.values) - 1

    def _plan_memory(self) -> int:
        """Gives each planned value its place, and returns the size of the arena in bytes.

        Largest first, each at the lowest place where no value that lives with it lies.
        """
        from executorch.exir.schema import AllocationDetails

        placed: list[tuple[int, int, Value]] = []
        for value in sorted(self.planned, key=lambda v: (v.first is not None, -v.n_bytes)):
            at = 0
            for begin, end, other in placed:
                if at + value.n_bytes <= begin:
                    break
                if _live_together(value, other):
                    at = max(at, end)
            end = -(-(at + value.n_bytes) // ALIGNMENT) * ALIGNMENT
            placed.append((at, end, value))
            placed.sort(key=lambda place: place[0])
            self.values[value.index].val.allocation_info = AllocationDetails(
                ARENA, at & 0xFFFFFFFF, at >> 32
            )
        return max((end for _, end, _ in placed), default=0)

    def _forward(self, output: Value, arena_bytes: int) -> ExecutionPlan:
        from executorch.exir import schema

        calls = list(self.calls.values())
        names = list(dict.fromkeys(call.name for call in calls))
        instructions = [
            schema.KernelCall(names.index(call.name), [*call.arguments, *self._results(call)])
            for call in calls
        ]
        return schema.ExecutionPlan(
            name="forward",
            container_meta_type=schema.ContainerMetadata(
                _tree(((0,) * len(self.inputs), {})), _tree(0)
            ),
            values=self.values,
            inputs=self.inputs,
            outputs=[output.index],
            chains=[schema.Chain([], [], list(map(schema.Instruction, instructions)), None)],
            operators=[schema.Operator(f"tinyqmoe::{name}", "out") for name in names],
            delegates=[],
            non_const_buffer_sizes=[0, arena_bytes],
        )

    def _results(self, call: Call) -> list[int]:
        """What follows the arguments: the result, which an operator returns besides, or a list."""
        return 2 * call.outs if len(call.outs) == 1 else [self.tensors(call.outs)]


def bytes_of(vector: Tensor) -> bytes:
    """The values of a float32 vector, little-endian."""
    return vector.numpy().astype("<f4").tobytes()


_SCALAR_TYPES: dict[torch.dtype, Any] = {
    torch.uint8: lambda types: types.BYTE,
    torch.int8: lambda types: types.CHAR,
    torch.uint16: lambda types: types.UINT16,
    torch.int64: lambda types: types.LONG,
    torch.float32: lambda types: types.FLOAT,
}


def _live_together(a: Value, b: Value) -> bool:
    """Whether two values may not share memory."""
    if a.first is None or b.first is None or a.last is None or b.last is None:
        return True
    return a.first <= b.last and b.first <= a.last


def _number(number: bool | float) -> Any:
    from executorch.exir import schema

    if isinstance(number, bool):
        return schema.Bool(number)
    return schema.Int(number) if isinstance(number, int) else schema.Double(number)


def _constant_method(item: tuple[str, bool | int | Sequence[int]]) -> ExecutionPlan:
    """A method that gives a number, or several."""
    from executorch.exir import schema

    name, value = item
    numbers = list(value) if isinstance(value, Sequence) else [value]
    shape = [0] * len(numbers) if isinstance(value, Sequence) else 0
    return schema.ExecutionPlan(
        name=name,
        container_meta_type=schema.ContainerMetadata("", _tree(shape)),
        values=[schema.EValue(_number(n)) for n in numbers],
        inputs=[],
        outputs=list(range(len(numbers))),
        chains=[schema.Chain(inputs=[], outputs=[], instructions=[], stacktrace=None)],
        operators=[],
        delegates=[],
        non_const_buffer_sizes=[0],
    )


def _tree(value: Any) -> str:
    """How arguments or results are nested, as PyTorch writes it down."""
    from torch.utils._pytree import tree_structure, treespec_dumps

    return treespec_dumps(tree_structure(value))

"""The operations of ML Programs (opsets of iOS 17 and 18) that the interpreter computes, as
functions on tensors.

The signature of a function is its definition: positional parameters are tensors, and their
annotation says of which types; keyword-only parameters are constants of the program. `BY_NAME` is
read from them. Operations are given floats as float32, whatever the type in the program is, and the
interpreter rounds their results; those marked `moves` only move values, and get them as they are
held.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from runtime_ref.coreml.mil_weights import Weight

FLOATS = frozenset({"float16", "float32"})
INTS = frozenset({"int32", "int16", "uint16", "int8", "uint8"})
BOOLS = frozenset({"bool"})


@dataclass(frozen=True)
class Domain:
    """The types a tensor parameter may have. All `shared` ones of an operation, and its results,
    have one type.

    `lazy`: the function takes a Weight as it is, and dequantizes what it needs.
    """

    types: frozenset[str]
    shared: bool = True
    lazy: bool = False


Float = Annotated[Tensor, Domain(FLOATS)]
Number = Annotated[Tensor, Domain(FLOATS | INTS)]
Anything = Annotated[Tensor, Domain(FLOATS | INTS | BOOLS)]
LazyAnything = Annotated[Tensor | Weight, Domain(FLOATS | INTS | BOOLS, lazy=True)]
LazyFloat = Annotated[Tensor | Weight, Domain(FLOATS, lazy=True)]
Several = Annotated[Sequence[Tensor], Domain(FLOATS | INTS | BOOLS)]
# These have a type of their own.
Sizes = Annotated[Tensor, Domain(INTS, shared=False)]
Condition = Annotated[Tensor, Domain(BOOLS, shared=False)]
Mask = Annotated[Tensor, Domain(FLOATS | BOOLS, shared=False)]
Vector = Annotated[Tensor, Domain(FLOATS, shared=False)]
Matrix = Annotated[Tensor | Weight, Domain(FLOATS, shared=False, lazy=True)]


@dataclass(frozen=True)
class Parameter:
    """A parameter: with a `domain` a tensor (or `several`), without one a constant of type
    `constant`."""

    required: bool
    domain: Domain | None
    several: bool
    constant: Any


@dataclass(frozen=True)
class Operation:
    """A function and what its signature says. `result` is the type of its results, if it is not the
    inputs' one."""

    compute: Callable[..., Any]
    moves: bool
    result: str | None
    parameters: dict[str, Parameter]


BY_NAME: dict[str, Operation] = {}
ANY_RESULT = "any"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def operation(
    name: str | None = None, *, moves: bool = False, result: str | None = None
) -> Callable[[_Function], _Function]:
    """Puts a function into BY_NAME."""

    def register(function: _Function) -> _Function:
        BY_NAME[name or function.__name__] = Operation(
            function, moves, result, _parameters(function)
        )
        return function

    return register


def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if typing.get_origin(hint) in (types.UnionType, typing.Union):  # `X | None`
            (hint,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
        domain = next(
            (extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Domain)),
            None,
        )
        required = parameter.default is parameter.empty
        found[name] = Parameter(required, domain, hint is Several, None if domain else hint)
    return found


# Element by element.


@operation()
def add(x: Number, y: Number) -> Tensor:
    return x + y


@operation()
def sub(x: Number, y: Number) -> Tensor:
    return x - y


@operation()
def mul(x: Number, y: Number) -> Tensor:
    return x * y


@operation()
def real_div(x: Float, y: Float) -> Tensor:
    return x / y


@operation()
def floor_div(x: Number, y: Number) -> Tensor:
    return torch.floor_divide(x, y)


@operation(result="bool")
def less(x: Number, y: Number) -> Tensor:
    return x < y


@operation(result="bool")
def less_equal(x: Number, y: Number) -> Tensor:
    return x <= y


@operation(result="bool")
def greater_equal(x: Number, y: Number) -> Tensor:
    return x >= y


@operation("abs")
def absolute(x: Number) -> Tensor:
    return x.abs()


@operation()
def square(x: Number) -> Tensor:
    return x * x


@operation()
def sqrt(x: Float) -> Tensor:
    return x.sqrt()


@operation()
def rsqrt(x: Float, *, epsilon: float = 1e-12) -> Tensor:
    return 1 / (x + epsilon).sqrt()


@operation()
def sigmoid(x: Float) -> Tensor:
    return x.sigmoid()


@operation()
def tanh(x: Float) -> Tensor:
    return x.tanh()


@operation()
def silu(x: Float) -> Tensor:
    return functional.silu(x)


@operation()
def relu(x: Float) -> Tensor:
    return x.relu()


@operation()
def gelu(
    x: Float, *, mode: Literal["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"] = "EXACT"
) -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@operation(result=ANY_RESULT)
def cast(
    x: Anything,
    *,
    dtype: Literal["fp16", "fp32", "int32", "int16", "uint16", "int8", "uint8", "bool"],
) -> Tensor:
    """Towards zero if it loses a fraction. Floats become halves when the interpreter rounds the
    result."""
    to = {
        "fp16": torch.float32,
        "fp32": torch.float32,
        "bool": torch.bool,
        "int8": torch.int8,
        "uint8": torch.uint8,
        "int16": torch.int16,
    }.get(dtype, torch.int32)
    return x.to(to)


@operation(moves=True)
def identity(x: Anything) -> Tensor:
    return x


@operation(moves=True)
def select(cond: Condition, a: Anything, b: Anything) -> Tensor:
    return torch.where(cond, a, b)


# Over axes.


@operation()
def reduce_sum(x: Number, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.sum(dim=_axes(x, axes), keepdim=keep_dims)


@operation()
def reduce_mean(x: Float, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.mean(dim=_axes(x, axes), keepdim=keep_dims)


@operation()
def reduce_max(x: Number, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.amax(dim=_axes(x, axes), keepdim=keep_dims)


def _axes(x: Tensor, axes: list[int] | None) -> list[int]:
    return list(range(x.dim())) if axes is None else axes


@operation()
def softmax(x: Float, *, axis: int = -1) -> Tensor:
    return x.softmax(dim=axis)


@operation()
def layer_norm(
    x: Float,
    gamma: Vector | None = None,
    beta: Vector | None = None,
    *,
    axes: list[int] | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    along = sorted(axis % x.dim() for axis in _axes(x, axes))
    shape = [n if axis in along else 1 for axis, n in enumerate(x.shape)]
    centred = x - x.mean(dim=along, keepdim=True)
    y = centred / (centred.square().mean(dim=along, keepdim=True) + epsilon).sqrt()
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@operation()
def batch_norm(
    x: Float,
    mean: Vector,
    variance: Vector,
    gamma: Vector | None = None,
    beta: Vector | None = None,
    *,
    epsilon: float = 1e-5,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


# Products.


@operation()
def linear(x: Float, weight: Matrix, bias: Vector | None = None) -> Tensor:
    """x [.., in], weight [out, in], bias [out] -> [.., out]."""
    y = _times_rows(x, weight) if isinstance(weight, Weight) else functional.linear(x, weight)
    return y if bias is None else y + bias


def _times_rows(x: Tensor, weight: Weight) -> Tensor:
    """x [.., in] times the transpose of weight [out, in], block by block if it is not held
    dense."""
    if (dense := weight.kept()) is not None:
        return functional.linear(x, dense)
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    for begin, rows in weight.blocks():
        y[..., begin : begin + len(rows)] = functional.linear(x, rows)
    return y


@operation()
def matmul(
    x: Float, y: LazyFloat, *, transpose_x: bool = False, transpose_y: bool = False
) -> Tensor:
    x = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    if isinstance(y, Weight):
        if transpose_y and len(y.shape) == 2:
            return _times_rows(x, y)
        y = y.all()
    return x @ (y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y)


@operation()
def scaled_dot_product_attention(
    query: Float, key: Float, value: Float, attn_mask: Mask | None = None
) -> Tensor:
    """query [.., L, E], key [.., S, E], value [.., S, V], mask broadcast to [.., L, S], added or
    True where to look."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1) @ value


@operation()
def conv(
    x: Float,
    weight: Vector,
    bias: Vector | None = None,
    *,
    strides: list[int] | None = None,
    pad_type: Literal["valid", "custom"] = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """x [N, C_in, *D], weight [C_out, C_in / groups, *K]."""
    ones = [1] * (x.dim() - 2)
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(ones)]
    return function(
        _padded(x, pad_type, pad, 0), weight, bias, strides or ones, 0, dilations or ones, groups
    )


@operation()
def max_pool(
    x: Float,
    *,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: Literal["valid", "custom"] = "valid",
    pad: list[int] | None = None,
    ceil_mode: Literal[False] = False,
) -> Tensor:
    function = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[
        x.dim() - 2
    ]
    return function(
        _padded(x, pad_type, pad, -math.inf), kernel_sizes, strides or [1] * len(kernel_sizes)
    )


@operation()
def avg_pool(
    x: Float,
    *,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: Literal["valid", "custom"] = "valid",
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: Literal[False] = False,
) -> Tensor:
    function = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[
        x.dim() - 2
    ]
    strides = strides or [1] * len(kernel_sizes)
    mean = function(_padded(x, pad_type, pad, 0), kernel_sizes, strides)
    if not exclude_padding_from_average:
        return mean
    return mean / function(_padded(torch.ones_like(x), pad_type, pad, 0), kernel_sizes, strides)


def _padded(x: Tensor, pad_type: str, pad: list[int] | None, value: float) -> Tensor:
    """`pad` is (before, after) of each axis in order; PyTorch wants the last axis first. `valid`
    ignores it."""
    if pad_type == "valid" or not pad or not any(pad):
        return x
    return functional.pad(
        x, [n for i in range(len(pad) - 2, -1, -2) for n in pad[i : i + 2]], value=value
    )


# Moving values.


@operation(moves=True)
def gather(
    x: LazyAnything,
    indices: Sizes,
    *,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """Slices of x along `axis`. An index outside is an error: without `validate_indices` a device
    gives anything."""
    rank = len(x.shape)
    axis %= rank
    if isinstance(x, Weight):
        if axis == 0 and batch_dims == 0:
            return x.take(indices)
        x = x.all()
    numbers = indices.long()
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < x.shape[axis]:
        raise IndexError(
            f"an index of {int(numbers.min())}..{int(numbers.max())} is not in [0, {x.shape[axis]})"
        )
    if batch_dims == 0:
        return x.index_select(axis, numbers.reshape(-1)).reshape(
            *x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]
        )
    batch = x.shape[:batch_dims]
    each = [
        gather(one, some, axis=axis - batch_dims)
        for one, some in zip(
            x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1), strict=True
        )
    ]
    return torch.stack(each).reshape(*batch, *each[0].shape)


@operation(moves=True)
def reshape(x: Anything, shape: Sizes) -> Tensor:
    """0 stands for the size of x on the axis that is as far from the last one, or 1 if x has no
    such axis."""
    wanted = shape.tolist()
    sizes = [1] * len(wanted) + list(x.shape)
    return x.reshape([n if n else sizes[i - len(wanted)] for i, n in enumerate(wanted)])


@operation(moves=True)
def transpose(x: Anything, *, perm: list[int]) -> Tensor:
    return x.permute(perm)


@operation(moves=True)
def expand_dims(x: Anything, *, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operation(moves=True)
def squeeze(x: Anything, *, axes: list[int] | None = None) -> Tensor:
    dropped = (
        [i for i, n in enumerate(x.shape) if n == 1]
        if axes is None
        else [axis % x.dim() for axis in axes]
    )
    if any(x.shape[axis] != 1 for axis in dropped):
        raise ValueError(f"not all of the axes {dropped} of x {list(x.shape)} have size 1")
    return x.reshape([n for i, n in enumerate(x.shape) if i not in dropped])


@operation(moves=True)
def tile(x: Anything, reps: Sizes) -> Tensor:
    return x.tile(reps.tolist())


@operation(moves=True)
def split(
    x: Anything, *, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> list[Tensor]:
    if split_sizes is None:
        if num_splits is None or x.shape[axis] % num_splits:
            raise ValueError(f"{x.shape[axis]} are not split into {num_splits} equal parts")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return list(x.split(split_sizes, dim=axis))


@operation(moves=True)
def concat(values: Several, *, axis: int, interleave: Literal[False] = False) -> Tensor:
    return torch.cat(list(values), dim=axis)


@operation(moves=True)
def slice_by_index(
    x: Anything,
    begin: Sizes,
    end: Sizes,
    *,
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """`x[begin:end:stride]` on every axis as in NumPy; a mask says on which axes to take the whole,
    or one element."""
    for axis, (places, _) in enumerate(
        _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    ):
        if places.step > 0:
            x = x[(slice(None),) * axis + (slice(places.start, places.stop, places.step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.long))
    squeezed = squeeze_mask or [False] * x.dim()
    return x.reshape([n for n, drop in zip(x.shape, squeezed, strict=True) if not drop])


@operation(moves=True)
def slice_update(
    x: Anything,
    update: Anything,
    begin: Sizes,
    end: Sizes,
    *,
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """Writes `update` into a slice of x, IN PLACE: the interpreter gives it a tensor that nothing
    else reads."""
    slices = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    expected = [len(places) for places, squeezed in slices if not squeezed]
    if list(update.shape) != expected:
        raise ValueError(
            f"update is {list(update.shape)}, the slice of x {list(x.shape)} is {expected}"
        )
    if any(places.step < 0 for places, _ in slices):
        raise ValueError("a negative stride is not supported")
    x[tuple(slice(places.start, places.stop, places.step) for places, _ in slices)] = (
        update.reshape([len(places) for places, _ in slices])
    )
    return x


def _slices(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: list[int] | None,
    begin_mask: list[bool] | None,
    end_mask: list[bool] | None,
    squeeze_mask: list[bool] | None,
) -> list[tuple[range, bool]]:
    """For each axis the places that are taken, and whether the axis goes away."""
    no = [False] * x.dim()
    found = []
    for n, first, last, step, from_start, to_end, squeezed in zip(
        x.shape,
        begin.tolist(),
        end.tolist(),
        stride or [1] * x.dim(),
        begin_mask or no,
        end_mask or no,
        squeeze_mask or no,
        strict=True,
    ):
        if squeezed:
            place = range(n)[0 if from_start else first]
            found.append((range(place, place + 1), True))
        else:
            found.append(
                (range(n)[None if from_start else first : None if to_end else last : step], False)
            )
    return found


# Made from sizes.


@operation(result="int32")
def shape(x: Anything) -> Tensor:
    return torch.tensor(list(x.shape), dtype=torch.int32)


@operation()
def fill(shape: Sizes, value: Anything | None = None) -> Tensor:
    return torch.full(shape.tolist(), 0.0 if value is None else value.item())


@operation()
def range_1d(start: Number, end: Number, step: Number) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item())

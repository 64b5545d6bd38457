"""Operations of ML Programs that move values and compute none, and those that give sizes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from runtime_ref.coreml.mil_operation import (
    Anything,
    Condition,
    LazyAnything,
    Number,
    Several,
    Sizes,
    operation,
)
from runtime_ref.coreml.mil_weights import Weight


@operation(moves=True)
def identity(x: Anything) -> Tensor:
    return x


@operation(moves=True)
def select(cond: Condition, a: Anything, b: Anything) -> Tensor:
    return torch.where(cond, a, b)


@operation(moves=True)
def gather(
    x: LazyAnything,
    indices: Sizes,
    *,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """Slices of x along `axis`, one for each index.

    Raises IndexError for an index outside, where a device without `validate_indices` gives
    anything.
    """
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
    """Values of x in another shape.

    In it 0 stands for the size of x on the axis that is as far from the last one, or 1 if x has no
    such axis.
    """
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
    return list(torch.split(x, split_sizes, dim=axis))


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
    """Slice `x[begin:end:stride]` on every axis, as in NumPy.

    A mask says on which axes to take the whole, or one element.
    """
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
    """Tensor x with `update` written into a slice of it, IN PLACE.

    The interpreter gives it a tensor that nothing else reads. Raises ValueError.
    """
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
    """Indices that are taken on each axis, and whether the axis goes away."""
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


@operation(result="int32")
def shape(x: Anything) -> Tensor:
    return torch.tensor(list(x.shape), dtype=torch.int32)


@operation()
def fill(shape: Sizes, value: Anything | None = None) -> Tensor:
    return torch.full(shape.tolist(), 0.0 if value is None else value.item())


@operation()
def range_1d(start: Number, end: Number, step: Number) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item())

"""Slices, updates and gathers of any kind against NumPy, and what an operation refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_ref.coreml import mil_moves

Array = np.ndarray


@st.composite
def slices(draw: st.DrawFn) -> tuple[Array, list[slice | int], dict[str, Any]]:
    """An array, an index as NumPy takes it, and the same as an operation takes it."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    index: list[slice | int] = []
    rows = []
    for n in shape:
        begin, end = draw(st.integers(-n, n - 1)), draw(st.integers(-n, n))
        stride = draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
        from_start, to_end, squeeze = (draw(st.booleans()) for _ in range(3))
        rows.append((begin, end, stride, from_start, to_end, squeeze))
        index.append(
            (0 if from_start else begin)
            if squeeze
            else slice(None if from_start else begin, None if to_end else end, stride)
        )
    begin, end, stride, begin_mask, end_mask, squeeze_mask = (
        list(column) for column in zip(*rows, strict=True)
    )
    arguments = {
        "begin": torch.tensor(begin),
        "end": torch.tensor(end),
        "stride": stride,
        "begin_mask": begin_mask,
        "end_mask": end_mask,
        "squeeze_mask": squeeze_mask,
    }
    return np.arange(np.prod(shape)).reshape(shape), index, arguments


@settings(max_examples=150, deadline=None)
@given(slices())
def test_slices_are_those_of_numpy(case: tuple[Array, list[slice | int], dict[str, Any]]) -> None:
    x, index, arguments = case
    got = mil_moves.slice_by_index(torch.from_numpy(x), **arguments).numpy()
    np.testing.assert_array_equal(got, x[tuple(index)])


@settings(max_examples=150, deadline=None)
@given(slices())
def test_updates_of_slices_are_those_of_numpy(
    case: tuple[Array, list[slice | int], dict[str, Any]],
) -> None:
    x, index, arguments = case
    update = np.asarray(-1 - np.arange(x[tuple(index)].size).reshape(x[tuple(index)].shape))
    if any(isinstance(one, slice) and one.step < 0 for one in index):
        with pytest.raises(ValueError, match="negative stride"):
            mil_moves.slice_update(
                torch.from_numpy(x.copy()), torch.from_numpy(update), **arguments
            )
        return
    got = mil_moves.slice_update(
        torch.from_numpy(x.copy()), torch.from_numpy(update), **arguments
    ).numpy()
    x[tuple(index)] = update
    np.testing.assert_array_equal(got, x)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gathers_are_those_of_numpy(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    numbers = data.draw(st.lists(st.integers(0, shape[axis] - 1), max_size=5))
    x = np.arange(np.prod(shape)).reshape(shape)
    got = mil_moves.gather(
        torch.from_numpy(x), torch.tensor(numbers, dtype=torch.int32), axis=axis
    ).numpy()
    np.testing.assert_array_equal(got, np.take(x, np.array(numbers, dtype=np.int64), axis=axis))


# What goes wrong while a program runs.

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "index too large": (
        lambda: mil_moves.gather(torch.zeros(3), torch.tensor([0, 3])),
        "index of 0..3",
    ),
    "index negative": (
        lambda: mil_moves.gather(torch.zeros(3), torch.tensor([-1])),
        "index of -1..-1",
    ),
    "update of another size": (
        lambda: mil_moves.slice_update(
            torch.zeros(4), torch.zeros(1), torch.tensor([0]), torch.tensor([2])
        ),
        r"\[1\]",
    ),
    "update past the end": (
        lambda: mil_moves.slice_update(
            torch.zeros(4), torch.zeros(2), torch.tensor([3]), torch.tensor([5])
        ),
        r"\[2\]",
    ),
    "element outside": (
        lambda: mil_moves.slice_by_index(
            torch.zeros(4), torch.tensor([4]), torch.tensor([0]), squeeze_mask=[True]
        ),
        "out of range",
    ),
    "squeeze of a size": (lambda: mil_moves.squeeze(torch.zeros(1, 2), axes=[1]), "size 1"),
    "uneven split": (
        lambda: mil_moves.split(torch.zeros(5), axis=0, num_splits=2),
        "2 equal parts",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_an_operation_refuses(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises((ValueError, IndexError), match=message):
        call()

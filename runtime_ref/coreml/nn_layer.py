"""Definition of a standard layer of a Core ML neural network: its inputs and its function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from coremltools.proto.NeuralNetwork_pb2 import WeightParams


Compute = Callable[..., NDArray[np.float32]]


class UnsupportedLayerError(ValueError):
    """Error of a layer that this does not compute, or that makes no sense."""


@dataclass(frozen=True)
class Standard:
    """Type of a layer with one output: how many inputs it takes, and how it is prepared.

    `prepare` makes of its message a function on the inputs.
    """

    inputs: range
    prepare: Callable[[Any], Compute]


STANDARD: dict[str, Standard] = {}


def standard(
    name: str, at_least: int, at_most: int | None = None
) -> Callable[[Callable[[Any], Compute]], None]:
    """Decorator that registers a layer; without `at_most`, it has exactly `at_least` inputs."""

    def register(prepare: Callable[[Any], Compute]) -> None:
        STANDARD[name] = Standard(
            range(at_least, (at_least if at_most is None else at_most) + 1), prepare
        )

    return register


def whole_numbers(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whole numbers float32 [..] as int64 [..]. Raises ValueError for a fraction."""
    numbers = np.rint(x).astype(np.int64)
    if not np.array_equal(numbers, x):
        raise ValueError("indices or sizes that are not whole numbers")
    return numbers


def require(condition: bool, problem: str) -> None:
    """Checks a condition. Raises UnsupportedLayerError with `problem` unless it holds."""
    if not condition:
        raise UnsupportedLayerError(problem)


def weights(params: WeightParams, shape: Sequence[int], what: str) -> NDArray[np.float32]:
    """Weights of a layer, float32 [*shape], stored as float32 or float16."""
    kinds = [field.name for field, _ in params.ListFields()]
    require(
        kinds in (["floatValue"], ["float16Value"]),
        f"{what} stored as {kinds or 'nothing'}, expected floats",
    )
    if kinds == ["floatValue"]:
        values = np.array(params.floatValue, np.float32)
    else:
        require(len(params.float16Value) % 2 == 0, f"{what}: half a float16")
        values = np.frombuffer(params.float16Value, "<f2").astype(np.float32)
    require(values.size == math.prod(shape), f"{what}: {values.size} values for {list(shape)}")
    return values.reshape(shape)

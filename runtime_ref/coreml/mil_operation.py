"""Definition of an operation of an ML Program: a function, and what its signature says."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from torch import Tensor

from runtime_ref.coreml.mil_weights import Weight

FLOATS = frozenset({"float16", "float32"})


INTS = frozenset({"int32", "int16", "uint16", "int8", "uint8"})


BOOLS = frozenset({"bool"})


@dataclass(frozen=True)
class Domain:
    """Types that a tensor parameter may have.

    All `shared` parameters of an operation, and its results, have one type. `lazy`: the function
    takes a Weight as it is, and dequantizes what it needs.
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
    """Parameter of an operation.

    With a `domain` it is a tensor (or `several`), without one a constant of type `constant`.
    """

    required: bool
    domain: Domain | None
    several: bool
    constant: Any


@dataclass(frozen=True)
class Operation:
    """Function of an operation, and what its signature says.

    `result` is the type of its results, if it is not that of the inputs.
    """

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
    """Decorator that puts a function into BY_NAME, under its own name or another."""

    def register(function: _Function) -> _Function:
        BY_NAME[name or function.__name__] = Operation(
            function, moves, result, _parameters(function)
        )
        return function

    return register


def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Parameters of a function by name, read from its signature."""
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

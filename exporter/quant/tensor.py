"""A quantized matrix, and what all schemes share.

That is groups along a row, and configs with a JSON round trip.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.errors import UsageError


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix as integer levels: weight[r, c] = levels[r, c] * scales[r, c // group_size].

    levels: int8 [rows, cols], from `level_min` to `level_min + n_levels - 1`. scales: float32
    [rows, ceil(cols / group_size)]; the last group of a row may be shorter. One scale a row means
    group_size == cols. own_levels: they are those of the checkpoint, which is ternary.
    """

    name: str
    levels: NDArray[np.int8]
    scales: NDArray[np.float32]
    group_size: int
    scheme: str
    level_min: int
    n_levels: int
    own_levels: bool = False

    def dequantize(self, begin: int = 0, end: int | None = None) -> Tensor:
        """The weights of rows [begin, end), float32 [n, cols]."""
        levels, scales = self.levels[begin:end], self.scales[begin:end]
        return dequantize(torch.from_numpy(levels), torch.from_numpy(scales), self.group_size)


def dequantize(levels: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """Weights of levels and scales, float32 [n, cols].

    `levels` are int8 [n, cols], `scales` float32 [n, ceil(cols / group_size)].
    """
    parts = [
        part.float() * scale
        for part, scale in zip(levels.split(group_size, -1), scales.split(1, -1), strict=True)
    ]
    return torch.cat(parts, dim=-1)


GroupQuantizer = Callable[[Tensor], tuple[Tensor, Tensor]]
"""float32 [n, G, size] -> (levels int8 [n, G, size], scales float32 [n, G]): every group on its
own."""


def by_group(w: Tensor, group_size: int | None, quantize: GroupQuantizer) -> tuple[Tensor, Tensor]:
    """Quantizes weights, float32 [n, cols], group by group along each row.

    With a `group_size` of None, or one beyond the row, the row is one group. Returns levels int8
    [n, cols] and scales float32 [n, n_groups].
    """
    rows, cols = w.shape
    size = effective_group_size(group_size, cols)
    whole = cols - cols % size
    levels, scales = quantize(w[:, :whole].reshape(rows, -1, size))
    levels = levels.reshape(rows, whole)
    if whole == cols:
        return levels, scales
    last_levels, last_scales = quantize(w[:, None, whole:])
    return torch.cat((levels, last_levels.squeeze(1)), dim=1), torch.cat(
        (scales, last_scales), dim=1
    )


# The significant bits of a scale are those of half precision: Core ML computes with the same
# weights.
SCALE_BITS = 11


def short_scales(scales: Tensor, *, up: bool) -> Tensor:
    """Scales in float32, rounded to SCALE_BITS significant bits, to nearest or upwards.

    Zero, NaN and Inf stay.
    """
    mantissa, exponent = torch.frexp(scales)
    steps = mantissa * 2**SCALE_BITS
    return torch.ldexp((steps.ceil() if up else steps.round()) / 2**SCALE_BITS, exponent)


def round_symmetric(w: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Levels -largest..largest by rounding to nearest even, scale = max |w| / largest a group.

    w float32 [n, G, size] -> levels int8 [n, G, size], scales float32 [n, G]. A scale is rounded
    upwards, so that the largest weight keeps its level.
    """
    most = torch.maximum(w.amax(-1), -w.amin(-1))  # max |w|, without a copy of w
    scales = short_scales(most / largest, up=True)
    divisor = torch.where(scales == 0, 1.0, scales)  # a group of zeros keeps scale 0 and level 0
    levels = (w / divisor.unsqueeze(-1)).round_().clamp_(-largest, largest)
    return levels.to(torch.int8), scales


def effective_group_size(group_size: int | None, cols: int) -> int:
    """The group size of a matrix with `cols` columns."""
    return cols if group_size is None else min(group_size, cols)


class JsonConfig(abc.ABC):
    """Base of the frozen config dataclasses.

    They are checked on construction, and have a round trip through a dict of JSON values.
    """

    @abc.abstractmethod
    def problems(self) -> list[str]:
        """Problems of the values; empty if there are none."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise UsageError("the quantization options are wrong", problems=problems)

    def to_dict(self) -> dict[str, Any]:
        """A dict of all fields by name."""
        fields: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        return fields

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """The config of a dict: the inverse of `to_dict`.

        An absent field takes its default. Raises UsageError for an unknown or wrong one.
        """
        unknown = sorted(raw.keys() - {field.name for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
        if unknown:
            raise UsageError(f"{cls.__name__} has no {', '.join(unknown)}")
        return cls(**raw)


def group_size_problems(group_size: object) -> list[str]:
    """Problems of a group size; empty for None or a positive integer."""
    if group_size is None or (type(group_size) is int and group_size > 0):
        return []
    return [
        f"group size must be a positive integer, or none for one scale a row; got {group_size!r}"
    ]


def recover_problems(steps: object) -> list[str]:
    """Problems of a number of steps of training; empty for None or a positive integer."""
    if steps is None or (type(steps) is int and steps > 0):
        return []
    return [f"recover must be a positive number of steps; got {steps!r}"]


class SchemeConfig(Protocol):
    """The field that every scheme's `Config` has: the number of weights that share a scale.

    None is a whole row.
    """

    @property
    def group_size(self) -> int | None: ...


def is_fitted(config: SchemeConfig | None) -> bool:
    """Whether levels are chosen by what is known of a matrix: its scheme says so, if it can.

    None is the config of a vector.
    """
    return bool(getattr(config, "is_fitted", False))

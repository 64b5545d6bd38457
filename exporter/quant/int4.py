"""Symmetric int4: levels -7..7, rounded to nearest even, scale = max |w| / 7 over a group.

Groups of 32 weights by default: one scale a row would ruin a model at this width. A baseline for
quantizers that calibrate. Scales are rounded up to the 11 significant bits of half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from exporter.quant.tensor import (
    JsonConfig,
    by_group,
    dequantize,
    group_size_problems,
    round_symmetric,
)

__all__ = [
    "LEVEL_MIN",
    "NAME",
    "N_LEVELS",
    "Config",
    "dequantize",
    "expected_entropy",
    "quantize_rows",
]

NAME = "int4"
LEVEL_MIN, N_LEVELS = -7, 15
GROUP_SIZE = 32


@dataclass(frozen=True)
class Config(JsonConfig):
    """The settings of int4.

    `group_size` weights share a scale; None: GROUP_SIZE of them.
    """

    group_size: int | None = None

    def problems(self) -> list[str]:
        return group_size_problems(self.group_size)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size is None:
            object.__setattr__(self, "group_size", GROUP_SIZE)


def expected_entropy(config: Config) -> float:
    """Entropy of the levels of typical trained weights, in bits per weight."""
    return 3.6


def quantize_rows(w: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Levels int8 [n, cols] and scales float32 [n, groups] of weights float32 [n, cols].

    NaN or infinity gives a scale of it.
    """
    return by_group(w, config.group_size, lambda groups: round_symmetric(groups, -LEVEL_MIN))

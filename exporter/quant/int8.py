"""Symmetric int8: levels -127..127, rounded to nearest even, with a scale for each row or group.

The scale is max |w| / 127 over the row or group. Scales are rounded up to the 11 significant bits
of half precision.
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

NAME = "int8"
LEVEL_MIN, N_LEVELS = -127, 255


@dataclass(frozen=True)
class Config(JsonConfig):
    """The settings of int8.

    `group_size` weights share a scale; None: a whole row does.
    """

    group_size: int | None = None

    def problems(self) -> list[str]:
        return group_size_problems(self.group_size)


def expected_entropy(config: Config) -> float:
    """Entropy of the levels of typical trained weights, in bits per weight."""
    return 7.2


def quantize_rows(w: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Levels int8 [n, cols] and scales float32 [n, groups] of weights float32 [n, cols].

    NaN or infinity gives a scale of it.
    """
    return by_group(w, config.group_size, lambda groups: round_symmetric(groups, -LEVEL_MIN))

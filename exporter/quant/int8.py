"""Symmetric int8: levels -127..127, rounded to nearest even, with a scale for each row or group.

The scale is max |w| / 127 over the row or group. Scales are rounded up to the 11 significant bits
of half precision. Levels at a rate in bits per weight are made elsewhere: see `rate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from exporter.quant.tensor import (
    JsonConfig,
    by_group,
    dequantize,
    group_size_problems,
    recover_problems,
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
RATES = (1.5, 8.0)  # below, too little of a model is left; above, nothing is to be chosen


@dataclass(frozen=True)
class Config(JsonConfig):
    """The settings of int8.

    `group_size` weights share a scale; None: a whole row does. `bits_per_weight`: size of codes,
    tables and scales together, over all matrices that have the same; None: that of rounded weights.
    `constant`: the constant of a rate (exporter.quant.rate) itself, in the place of a size.
    `recover`: steps of training of the scales of levels at a rate; None: none.
    """

    group_size: int | None = None
    bits_per_weight: float | None = None
    constant: float | None = None
    recover: int | None = None

    def problems(self) -> list[str]:
        problems = group_size_problems(self.group_size) + rate_problems(self.bits_per_weight)
        problems += recover_problems(self.recover)
        if self.constant is not None and not _is_positive(self.constant):
            problems.append(f"constant must be a positive number; got {self.constant!r}")
        if None not in (self.bits_per_weight, self.constant):
            problems.append("bits_per_weight and constant exclude each other")
        if self.group_size is not None and self.at_rate:
            problems.append("bits_per_weight is for one scale a row; leave the group size away")
        return problems

    @property
    def at_rate(self) -> bool:
        """Whether levels are chosen for a size, and not by rounding."""
        return (self.bits_per_weight, self.constant) != (None, None)

    @property
    def is_fitted(self) -> bool:
        """Whether levels are chosen by what is known of a matrix."""
        return self.at_rate


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def rate_problems(bits: object) -> list[str]:
    """Problems of a number of bits per weight; empty for None or a number in RATES."""
    low, high = RATES
    if bits is None:
        return []
    if isinstance(bits, int | float) and not isinstance(bits, bool) and low <= bits <= high:
        return []
    return [f"bits_per_weight must be a number from {low} to {high}; got {bits!r}"]


def expected_entropy(config: Config) -> float:
    """Entropy of the levels of typical trained weights, in bits per weight."""
    return 7.2 if config.bits_per_weight is None else config.bits_per_weight


def quantize_rows(w: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Levels int8 [n, cols] and scales float32 [n, groups] of weights float32 [n, cols].

    NaN or infinity gives a scale of it.
    """
    return by_group(w, config.group_size, lambda groups: round_symmetric(groups, -LEVEL_MIN))

"""Symmetric int8: levels -127..127, rounded to nearest even, scale = max |w| / 127 over a row or a
group.

Scales are rounded up to the 11 significant bits of half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.quant.tensor import (
    JsonConfig,
    by_group,
    dequantize,
    group_size_problems,
    short_scales,
)

__all__ = ["LEVEL_MIN", "N_LEVELS", "Config", "dequantize", "quantize_rows"]

LEVEL_MIN, N_LEVELS = -127, 255


@dataclass(frozen=True)
class Config(JsonConfig):
    """`group_size` weights share a scale; None: a whole row does."""

    group_size: int | None = None

    def problems(self) -> list[str]:
        return group_size_problems(self.group_size)


def quantize_rows(w: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """w float32 [n, cols] -> levels int8 [n, cols], scales float32 [n, groups]. NaN or infinity
    gives a scale of it."""
    return by_group(w, config.group_size, _quantize_groups)


def _quantize_groups(w: Tensor) -> tuple[Tensor, Tensor]:
    scales = short_scales(
        w.abs().amax(-1) / -LEVEL_MIN, up=True
    )  # upwards: the largest weight stays within 127
    divisor = torch.where(scales == 0, 1.0, scales)  # a group of zeros keeps scale 0 and level 0
    levels = (w / divisor.unsqueeze(-1)).round_().clamp_(LEVEL_MIN, -LEVEL_MIN)
    return levels.to(torch.int8), scales

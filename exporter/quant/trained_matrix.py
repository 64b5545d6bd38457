"""Matrices in training: what of them is trained, and what they compute with.

Latent weights, in units of their scales, are rounded to levels. Gradients pass through the rounding
as if it were not there (the straight-through estimator, Bengio et al., arXiv 1308.3432), so that a
latent weight that goes far enough changes its level. Levels that an entropy code has made room for
stay as they are, and only their scales are trained. A scale is trained by its logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.quant.tensor import dequantize, short_scales

LATENT_RATE, SCALE_RATE = 0.003, 0.002  # of learning, at the highest
NEAR = 0.45  # how far from its level a latent weight may begin: beyond 0.5 it would be another


class TrainedMatrix(Protocol):
    """A matrix in training."""

    def to(self, device: torch.device) -> Self:
        """The same on a device, ready to be trained."""

    def parameters(self) -> list[tuple[Tensor, float]]:
        """What is trained, with the highest rate of learning of each."""

    def quantized(self) -> Tensor:
        """What the layer computes with, float32 [rows, cols], with its gradients."""

    def finished(self) -> tuple[Tensor, Tensor]:
        """Levels int8 [rows, cols] and scales float32 [rows, groups], zero for a group of zeros."""


class _Rounded(torch.autograd.Function):
    """The weights of latent ones and scales, with gradients as if nothing were rounded."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, scales: Tensor, group_size: int, most: int) -> Tensor:
        ctx.save_for_backward(weights, scales)
        ctx.sizes = group_size, most
        return dequantize(rounded(weights, most), scales, group_size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weights, scales = ctx.saved_tensors
        (gradient,), (size, most) = gradients, ctx.sizes
        products = gradient * rounded(weights, most)
        whole = F.pad(products, (0, scales.shape[1] * size - weights.shape[1]))
        of_scales = whole.unflatten(1, (-1, size)).sum(-1)
        return dequantize(gradient, scales, size), of_scales, None, None


def rounded(weights: Tensor, most: int) -> Tensor:
    """The levels of latent weights, of the same shape and type."""
    return weights.round().clamp_(-most, most)


@dataclass(frozen=True)
class LatentMatrix:
    """A matrix of which levels and scales are trained.

    weights: float32 [rows, cols], in units of scales. logs: of the factors of the scales, float32
    [rows, groups]. scales: as fitted, of the same shape, for every `group_size` columns. most: the
    largest level; the smallest is -most.
    """

    weights: Tensor
    logs: Tensor
    scales: Tensor
    group_size: int
    most: int

    @classmethod
    def of(cls, w: Tensor, levels: Tensor, scales: Tensor, group_size: int) -> LatentMatrix:
        """The beginning: weights float32 [rows, cols] that `levels` and `scales` were fitted to."""
        units = dequantize(torch.ones_like(w), scales, group_size)
        latent = torch.where(units > 0, w / units, 0.0)
        weights = latent.clamp(levels - NEAR, levels + NEAR)
        return cls(weights, torch.zeros_like(scales), scales, group_size, int(levels.abs().max()))

    def to(self, device: torch.device) -> LatentMatrix:
        weights, logs, scales = (x.to(device) for x in (self.weights, self.logs, self.scales))
        trained = (weights.requires_grad_(), logs.requires_grad_())
        return LatentMatrix(*trained, scales, self.group_size, self.most)

    def parameters(self) -> list[tuple[Tensor, float]]:
        return [(self.weights, LATENT_RATE), (self.logs, SCALE_RATE)]

    def quantized(self) -> Tensor:
        scales = self.scales * self.logs.exp()
        made: Tensor = _Rounded.apply(  # type: ignore[no-untyped-call]
            self.weights, scales, self.group_size, self.most
        )
        return made

    def finished(self) -> tuple[Tensor, Tensor]:
        levels = rounded(self.weights.detach(), self.most).to(torch.int8)
        return _finished(levels, self.scales * self.logs.detach().exp(), self.group_size)


@dataclass(frozen=True)
class ScaledMatrix:
    """A matrix of which scales are trained, and levels stay.

    levels: int8 [rows, cols]. logs: of the factors of the scales, float32 [rows, groups]. scales:
    as fitted, of the same shape, for every `group_size` columns.
    """

    levels: Tensor
    logs: Tensor
    scales: Tensor
    group_size: int

    @classmethod
    def of(cls, levels: Tensor, scales: Tensor, group_size: int) -> ScaledMatrix:
        """The beginning."""
        return cls(levels, torch.zeros_like(scales), scales, group_size)

    def to(self, device: torch.device) -> ScaledMatrix:
        levels, logs, scales = (x.to(device) for x in (self.levels, self.logs, self.scales))
        return ScaledMatrix(levels, logs.requires_grad_(), scales, self.group_size)

    def parameters(self) -> list[tuple[Tensor, float]]:
        return [(self.logs, SCALE_RATE)]

    def quantized(self) -> Tensor:
        return dequantize(self.levels, self.scales * self.logs.exp(), self.group_size)

    def finished(self) -> tuple[Tensor, Tensor]:
        return _finished(self.levels, self.scales * self.logs.detach().exp(), self.group_size)


def _finished(levels: Tensor, scales: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """The same levels, and scales as they are stored, zero for a group of zeros."""
    used = torch.stack([part.any(1) for part in levels.split(group_size, 1)], 1)
    return levels.cpu(), short_scales(torch.where(used, scales, 0.0).cpu(), up=False)

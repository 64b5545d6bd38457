"""Training of the levels of a layer, so that it computes again what it did before.

A matrix has latent weights, in units of its scales. Rounded to levels, and times the scales, they
are what the layer computes with. Gradients pass through the rounding as if it were not there (the
straight-through estimator, Bengio et al., arXiv 1308.3432), so that a latent weight that goes far
enough changes its level. They are trained together with the logarithms of the scales, and with the
weights of the layer's norms, on inputs x of the quantized layer with the outputs z of the given one
on its own inputs. The loss is the sum over tokens of |y(x) - z|^2 / |z|^2: the first token of a
window is so large that it would rule the sum of plain squares.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from exporter.models.layers import RMSNorm
from exporter.quant.calibration_passes import HeldLinear, States, finite
from exporter.quant.tensor import dequantize, short_scales

# Rates of learning, which rise over WARM_UP steps and then fall to SLOWEST as a cosine does.
LATENT_RATE, SCALE_RATE, NORM_RATE = 0.01, 0.002, 0.001
WARM_UP, SLOWEST = 3, 0.02
BETAS = (0.9, 0.95)
NEAR = 0.45  # how far from its level a latent weight may begin: beyond 0.5 it would be another
LEAST = 1e-6  # of the mean power of tokens: one that is nearly zero does not rule the others


@dataclass(frozen=True)
class LatentMatrix:
    """A matrix in training.

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
        """The same on a device, ready to be trained."""
        weights, logs, scales = (x.to(device) for x in (self.weights, self.logs, self.scales))
        trained = (weights.requires_grad_(), logs.requires_grad_())
        return LatentMatrix(*trained, scales, self.group_size, self.most)

    def quantized(self) -> Tensor:
        """What the layer computes with, float32 [rows, cols], with its gradients."""
        through = self.weights + (self._rounded() - self.weights).detach()
        return dequantize(through, self.scales * self.logs.exp(), self.group_size)

    def finished(self) -> tuple[Tensor, Tensor]:
        """Levels int8 [rows, cols] and scales float32 [rows, groups], zero for a group of zeros."""
        levels = self._rounded().detach().to("cpu", torch.int8)
        used = torch.stack([part.any(1) for part in levels.split(self.group_size, 1)], 1)
        scales = (self.scales * self.logs.detach().exp()).cpu()
        return levels, short_scales(torch.where(used, scales, 0.0), up=False)

    def _rounded(self) -> Tensor:
        return self.weights.round().clamp(-self.most, self.most)


def training_device() -> torch.device:
    """A GPU, if PyTorch sees one of CUDA's."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def same_sums(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Attention whose gradients have the same bits each time: on a GPU it is slower than others."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


@dataclass(frozen=True)
class Examples:
    """What a layer learns from: its inputs, and the outputs of the given layer, window by window.

    order: the number of the window of each step.
    """

    inputs: States
    outputs: States
    order: Sequence[int]


@dataclass(frozen=True)
class LayerRecovery:
    """The training of a layer, whose matrices are held.

    It computes `block(x, angles, start)` of inputs x. `matrices` are those that are trained, and
    `norms` the norms.
    """

    block: nn.Module
    angles: Tensor
    start: Tensor
    matrices: Mapping[HeldLinear, LatentMatrix]
    norms: Sequence[RMSNorm]

    def train(
        self, examples: Examples, report: Callable[[int], None]
    ) -> dict[HeldLinear, tuple[Tensor, Tensor]]:
        """The levels and scales of the matrices after the steps of `examples`, as `finished`.

        The norms have new weights afterwards. `report` is called with the steps that are done.
        Raises CheckpointError if the layer computes something that is not finite.
        """
        device = training_device()
        latent = {linear: matrix.to(device) for linear, matrix in self.matrices.items()}
        with self._on(device), same_sums(device), torch.enable_grad():
            for norm in self.norms:
                norm.weight = norm.weight.clone().requires_grad_()
            optimizer, rates = self._optimizer([*latent.values()], len(examples.order))
            for step, window in enumerate(examples.order):
                for linear, matrix in latent.items():
                    linear.weight = matrix.quantized()
                optimizer.zero_grad()
                self._loss(examples, window, device).backward()
                optimizer.step()
                rates.step()
                report(step + 1)
            for norm in self.norms:
                norm.weight = norm.weight.detach()
        return {linear: matrix.finished() for linear, matrix in latent.items()}

    @contextlib.contextmanager
    def _on(self, device: torch.device) -> Iterator[None]:
        """Has the layer on a device, but for the matrices that are trained."""
        self.block.to(device)
        others = [m for m in self.block.modules() if isinstance(m, HeldLinear)]
        for linear in (m for m in others if m not in self.matrices):
            linear.weight = linear.held.to(device)
        try:
            yield
        finally:
            self.block.cpu()
            for linear in (m for m in others if m not in self.matrices):
                linear.weight = linear.held.cpu()

    def _optimizer(
        self, latent: Sequence[LatentMatrix], steps: int
    ) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
        """The optimizer of all that is trained, and the rates of learning of its steps."""
        groups = (
            ([matrix.weights for matrix in latent], LATENT_RATE),
            ([matrix.logs for matrix in latent], SCALE_RATE),
            ([norm.weight for norm in self.norms], NORM_RATE),
        )
        trained = [{"params": tensors, "lr": rate} for tensors, rate in groups if tensors]
        optimizer = torch.optim.Adam(trained, betas=BETAS)

        def rate(step: int) -> float:
            falling = (1 + math.cos(math.pi * step / steps)) / 2
            return min(1.0, (step + 1) / WARM_UP) * (falling + SLOWEST)

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def _loss(self, examples: Examples, window: int, device: torch.device) -> Tensor:
        """The sum over the tokens of a window of squared errors by the squared norm."""
        x, expected = (s.window(window).to(device) for s in (examples.inputs, examples.outputs))
        found = finite(self.block(x, self.angles.to(device), self.start))
        return relative_errors(found, expected).sum()


def relative_errors(found: Tensor, expected: Tensor) -> Tensor:
    """The squared error of each token by its squared norm, float32 [.., tokens], of [.., n]."""
    power = expected.square().sum(-1)
    return (found - expected).square().sum(-1) / power.maximum(LEAST * power.mean())

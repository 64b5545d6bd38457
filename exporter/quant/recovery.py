"""Training of quantized layers together, so that the model says again what it said before.

A matrix has latent weights, in units of its scales. Rounded to levels, and times the scales, they
are what the model computes with. Gradients pass through the rounding as if it were not there (the
straight-through estimator, Bengio et al., arXiv 1308.3432), so that a latent weight that goes far
enough changes its level. They are trained together with the logarithms of the scales, and with the
weights of norms. The loss of a token is the divergence of its distribution from that of the given
model (distillation, Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from exporter.models.layers import Decoder, RMSNorm
from exporter.quant.calibration import Calibration
from exporter.quant.calibration_passes import HeldLinear, finite
from exporter.quant.tensor import dequantize, short_scales

# Rates of learning, which rise over WARM_UP steps and then fall to SLOWEST as a cosine does.
LATENT_RATE, SCALE_RATE, NORM_RATE = 0.003, 0.002, 0.001
WARM_UP, SLOWEST = 10, 0.02
BETAS = (0.9, 0.95)
NEAR = 0.45  # how far from its level a latent weight may begin: beyond 0.5 it would be another
SAVINGS = 20  # of a training, from which it can go on
STEPS_DONE, STATE = "steps-done", "training"  # files: of the last saving, and of its parameters


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
        scales = self.scales * self.logs.exp()
        made: Tensor = _Rounded.apply(  # type: ignore[no-untyped-call]
            self.weights, scales, self.group_size, self.most
        )
        return made

    def finished(self) -> tuple[Tensor, Tensor]:
        """Levels int8 [rows, cols] and scales float32 [rows, groups], zero for a group of zeros."""
        levels = rounded(self.weights.detach(), self.most).to("cpu", torch.int8)
        used = torch.stack([part.any(1) for part in levels.split(self.group_size, 1)], 1)
        scales = (self.scales * self.logs.detach().exp()).cpu()
        return levels, short_scales(torch.where(used, scales, 0.0), up=False)


def training_device() -> torch.device:
    """A GPU, if PyTorch sees one of CUDA's."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def same_sums(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Attention whose gradients have the same bits each time: on a GPU it is slower than others."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


@dataclass(frozen=True)
class Lesson:
    """What a step learns from, of one window, float32 [1, tokens, hidden].

    inputs: of the first layer. outputs: of the last layer of the given model.
    """

    inputs: Tensor
    outputs: Tensor


@dataclass
class Recovery:
    """The training of a network whose weights are held, but for those of `matrices`.

    `norms` are trained as well. State is saved in `calibration`, and gone on from.
    """

    network: Decoder
    angles: Tensor
    start: Tensor
    matrices: Mapping[HeldLinear, LatentMatrix]
    norms: Sequence[RMSNorm]
    calibration: Calibration
    device: torch.device = field(default_factory=training_device)

    def train(
        self, lesson: Callable[[int], Lesson], steps: int, report: Callable[[int], None]
    ) -> dict[HeldLinear, tuple[Tensor, Tensor]]:
        """The levels and scales of the matrices after the steps, as `finished`.

        The norms have new weights afterwards. `report` is called with the steps that are done.
        Raises CheckpointError if the model computes something that is not finite.
        """
        latent = {linear: matrix.to(self.device) for linear, matrix in self.matrices.items()}
        with self._on_device(), same_sums(self.device), torch.enable_grad():
            for norm in self.norms:
                norm.weight = norm.weight.clone().requires_grad_()
            optimizer = self._optimizer([*latent.values()])
            for step in range(self._restored(optimizer), steps):
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * rate(step, steps)
                optimizer.zero_grad()
                for linear, matrix in latent.items():
                    linear.weight = matrix.quantized()
                self._loss(lesson(step)).backward()
                optimizer.step()
                if (step + 1) % max(1, steps // SAVINGS) == 0:
                    self._save(optimizer, step + 1)
                report(step + 1)
            for norm in self.norms:
                norm.weight = norm.weight.detach()
        return {linear: matrix.finished() for linear, matrix in latent.items()}

    def forget(self) -> None:
        """Removes what has been saved."""
        for file in self.calibration.folder.glob(f"{STATE}.*"):
            file.unlink()

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """Has the network on the device, but for the matrices that are trained."""
        linears = [m for m in self.network.modules() if isinstance(m, HeldLinear)]
        self.network.to(self.device)
        for linear in linears:
            linear.weight = None if linear in self.matrices else linear.held.to(self.device)
        try:
            yield
        finally:
            self.network.cpu()
            for linear in linears:
                linear.weight = None

    def _optimizer(self, latent: Sequence[LatentMatrix]) -> torch.optim.Adam:
        """The optimizer of all that is trained; `rate` is what its rates of learning begin at."""
        groups = (
            ([matrix.weights for matrix in latent], LATENT_RATE),
            ([matrix.logs for matrix in latent], SCALE_RATE),
            ([norm.weight for norm in self.norms], NORM_RATE),
        )
        trained = [{"params": tensors, "rate": rate} for tensors, rate in groups if tensors]
        return torch.optim.Adam(trained, lr=LATENT_RATE, betas=BETAS)

    def _loss(self, lesson: Lesson) -> Tensor:
        """The mean over tokens of the divergence, in nats."""
        x, angles = lesson.inputs.to(self.device), self.angles.to(self.device)
        for block in self.network.blocks:
            x = block(x, angles, self.start)
        with torch.no_grad():
            expected = self.network.logits(lesson.outputs.to(self.device))
        return divergence(finite(self.network.logits(x)), finite(expected))

    def _save(self, optimizer: torch.optim.Adam, done: int) -> None:
        """Writes the parameters with their moments, and then how many steps that was."""
        for i, parameter in enumerate(_parameters(optimizer)):
            state = optimizer.state[parameter]
            values = (parameter.detach(), state["exp_avg"], state["exp_avg_sq"])
            self.calibration.write(f"{STATE}.{done}.{i}", torch.stack(values).cpu())
        self.calibration.write(f"{STATE}.{STEPS_DONE}", torch.tensor([float(done)]))
        kept = (f"{STATE}.{done}.", f"{STATE}.{STEPS_DONE}")
        for file in self.calibration.folder.glob(f"{STATE}.*"):
            if not file.name.startswith(kept):
                file.unlink()

    def _restored(self, optimizer: torch.optim.Adam) -> int:
        """The number of steps that were saved, after which the parameters are as they were then."""
        if not self.calibration.has(f"{STATE}.{STEPS_DONE}"):
            return 0
        done = self.calibration.read(f"{STATE}.{STEPS_DONE}")[0]
        for i, parameter in enumerate(_parameters(optimizer)):
            values, mean, square = self.calibration.read(f"{STATE}.{int(done)}.{i}").to(self.device)
            parameter.data.copy_(values)
            moments = {"exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
            optimizer.state[parameter] = {"step": done.clone(), **moments}
        return int(done)


def _parameters(optimizer: torch.optim.Adam) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def rate(step: int, steps: int) -> float:
    """The rate of learning of a step, as a share of the highest."""
    falling = (1 + math.cos(math.pi * step / steps)) / 2
    return min(1.0, (step + 1) / WARM_UP) * (falling + SLOWEST)


def divergence(found: Tensor, expected: Tensor) -> Tensor:
    """The mean over tokens of the Kullback-Leibler divergence of logits [1, tokens, vocab]."""
    q, p = (logits[0].log_softmax(-1) for logits in (found, expected))
    return F.kl_div(q, p, reduction="batchmean", log_target=True)

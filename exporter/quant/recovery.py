"""Training of quantized layers together, so that the model says again what it said before.

What of a matrix is trained, exporter.quant.trained_matrix says; the weights of norms are trained
as well. The loss of a token is the divergence of its distribution from that of the given model
(distillation, Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from exporter.models.layers import Decoder, RMSNorm
from exporter.quant.calibration import Calibration, finite
from exporter.quant.calibration_passes import HeldLinear
from exporter.quant.passage import Passage
from exporter.quant.trained_matrix import TrainedMatrix

# Rates of learning rise over WARM_UP steps and then fall to SLOWEST as a cosine does.
NORM_RATE = 0.001
WARM_UP, SLOWEST = 10, 0.02
BETAS = (0.9, 0.95)
SAVINGS = 20  # of a training, from which it can go on
STEPS_DONE, STATE = "steps-done", "training"  # files: of the last saving, and of its parameters


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
    """The training of the network of a passage, whose weights are held but for those of `matrices`.

    `norms` are trained as well. State is saved in `calibration`, and gone on from.
    """

    passage: Passage
    matrices: Mapping[HeldLinear, TrainedMatrix]
    norms: Sequence[RMSNorm]
    calibration: Calibration
    device: torch.device = field(default_factory=training_device)

    @property
    def network(self) -> Decoder:
        """The model in training."""
        return self.passage.network

    def train(
        self, lesson: Callable[[int], Lesson], steps: int, report: Callable[[int], None]
    ) -> dict[HeldLinear, tuple[Tensor, Tensor]]:
        """The levels and scales of the matrices after the steps, as `finished`.

        The norms have new weights afterwards. `report` is called with the steps that are done.
        Raises CheckpointError if the model computes something that is not finite.
        """
        matrices = {linear: matrix.to(self.device) for linear, matrix in self.matrices.items()}
        with self._on_device(), same_sums(self.device), torch.enable_grad():
            for norm in self.norms:
                norm.weight = norm.weight.clone().requires_grad_()
            optimizer = self._optimizer([*matrices.values()])
            for step in range(self._restored(optimizer), steps):
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * rate(step, steps)
                optimizer.zero_grad()
                for linear, matrix in matrices.items():
                    linear.weight = matrix.quantized()
                self._loss(lesson(step)).backward()
                optimizer.step()
                if (step + 1) % max(1, steps // SAVINGS) == 0:
                    self._save(optimizer, step + 1)
                report(step + 1)
            for norm in self.norms:
                norm.weight = norm.weight.detach()
        return {linear: matrix.finished() for linear, matrix in matrices.items()}

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

    def _optimizer(self, matrices: Sequence[TrainedMatrix]) -> torch.optim.Adam:
        """The optimizer of all that is trained; `rate` is the highest rate of learning."""
        trained = [given for matrix in matrices for given in matrix.parameters()]
        trained += [(norm.weight, NORM_RATE) for norm in self.norms]
        by_rate: dict[float, list[Tensor]] = {}
        for tensor, highest in trained:
            by_rate.setdefault(highest, []).append(tensor)
        groups = [{"params": tensors, "rate": highest} for highest, tensors in by_rate.items()]
        return torch.optim.Adam(groups, betas=BETAS)

    def _loss(self, lesson: Lesson) -> Tensor:
        """The mean over tokens of the divergence, in nats."""
        x, angles = lesson.inputs.to(self.device), self.passage.angles.to(self.device)
        for block in self.network.blocks:
            x = block(x, angles, self.passage.start)
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

"""The fitting of levels layer after layer, each to the inputs that the layers before it leave.

With levels of so few bits the inputs of a layer are no longer those of the given model. So windows
of text go through the layers with their weights as they become: the inputs of a layer are summed
up in Gram matrices, its matrices are fitted to them, and what the fitted layer makes of its inputs
goes on to the next. Memory holds one layer; what passes between layers lies in files. A pass that
was cut off goes on from the last layer that was finished. Where a plan asks for it, all layers are
trained together afterwards (quant.recovery).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from exporter.bundle import EMBEDDING
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.checkpoint.tensors import WrappedTensor
from exporter.models.layers import RMSNorm
from exporter.progress import Progress
from exporter.quant import load
from exporter.quant.calibration import MAX_WINDOWS, Calibration, input_of
from exporter.quant.calibration_passes import Grams, HeldLayers, HeldLinear, States, finite
from exporter.quant.plan import MatrixPlan
from exporter.quant.rate import Curvature, inverse_factor
from exporter.quant.rate_quantizer import QuantizedBlock, blocks_of
from exporter.quant.recovery import LatentMatrix, Lesson, Recovery
from exporter.quant.tensor import dequantize

# Files: of the inputs of a matrix, of the inputs of a layer by number in the quantized and in the
# given model, and of what training has made of a matrix or a norm.
FACTOR, INPUTS, GIVEN = "quantized-factor", "quantized-inputs", "given-inputs"
LEVELS, SCALES, TRAINED = "levels", "scales", "trained"


@dataclass(frozen=True)
class TrainedVector(WrappedTensor):
    """A vector of a checkpoint with other values, float32 [length]."""

    values: Tensor

    def rows(self, begin: int, end: int) -> Tensor:
        return self.values[begin:end]


@dataclass
class SequentialQuantizer:
    """Quantizes the matrices of `plans`, whose schemes have `fit_rows`.

    The inputs are those of windows of token ids, int64 [windows, tokens], in a model whose other
    matrices are as given. What is known of them lies in the folder of `calibration`. Where plans
    have steps of `recover`, the layers are trained for so many, each on one of the windows.
    """

    checkpoint: Checkpoint
    plans: Mapping[str, MatrixPlan]
    windows: Tensor
    calibration: Calibration
    layers: HeldLayers = field(init=False)

    def __post_init__(self) -> None:
        self.layers = HeldLayers(self.checkpoint)
        self.network = self.checkpoint.network(self.windows.shape[1], self.layers)
        self.start = torch.tensor([0])
        self.angles = self.network.rotation(self.windows[:1], self.start)
        self.steps = max((plan.recover for plan in self.plans.values()), default=0)
        every = -(-len(self.windows) // MAX_WINDOWS)
        self.summed = self.windows[::every]

    @property
    def names(self) -> list[str]:
        """Names of the matrices."""
        return [*self.plans]

    def blocks(self, name: str) -> Iterator[QuantizedBlock]:
        """The blocks of a matrix."""
        if self.calibration.has(f"{name}.{LEVELS}"):
            levels, scales = (self.calibration.read(f"{name}.{what}") for what in (LEVELS, SCALES))
            yield 0, levels, scales
        else:
            yield from self._fitted(name)

    def with_trained_norms(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same model with the weights of norms that training has come to."""
        trained = {
            name: TrainedVector(checkpoint.entries[name], self.calibration.read(file))
            for name in self.layers.norms
            if self.calibration.has(file := f"{name}.{TRAINED}")
        }
        return replace(checkpoint, entries={**checkpoint.entries, **trained})

    def _fitted(self, name: str) -> Iterator[QuantizedBlock]:
        """The blocks of a matrix before any training."""
        plan, curvature = self.plans[name], self._curvature(name)
        for begin, w in blocks_of(self.checkpoint, name):
            yield begin, *load(plan.scheme).fit_rows(w, plan.config, curvature)

    def _curvature(self, name: str) -> Curvature:
        rows, cols = self.checkpoint.shape(name)
        known = f"{input_of(name)}.{FACTOR}"
        # The input of an embedding is a token: its columns do not depend on each other.
        upper = self.calibration.read(known) if self.calibration.has(known) else torch.eye(cols)
        return Curvature(upper, torch.ones(rows))

    def calibrate(self, progress: Progress) -> None:
        """Sums up the inputs of all matrices, and trains, so far as that has not been done.

        Raises CheckpointError if the model computes something that is not finite.
        """
        n = len(self.network.blocks)
        total = n + 1 + (n + self.steps if self.steps else 0)

        def report(done: int) -> None:
            progress("calibrate", done, total)

        for layer in self._passed(INPUTS, self.summed):
            report(layer + 1)
            self._fit_layer(layer)
        head = self.network.head
        assert isinstance(head, HeldLinear)
        if head.name in self.plans and not self.calibration.has(f"{head.name}.{FACTOR}"):
            self._sum_up(head, n)
        report(n + 1)
        if self.steps:
            self._recover(lambda done: report(n + 1 + done))

    def _passed(self, what: str, windows: Tensor) -> range:
        """The layers that windows are yet to go through, whose files of inputs are there."""
        n = len(self.network.blocks)
        done = [i for i in range(n + 1) if self._states(what, i).path.is_file()]
        if not done:
            self._states(what, 0).write(map(self._embedded, windows))
        return range(max(done, default=0), n)

    def _states(self, what: str, layer: int) -> States:
        """The inputs of a layer, INPUTS or GIVEN; of the final norm after the last one."""
        shape = (1, self.windows.shape[1], self.checkpoint.config.hidden_size)
        return States(self.calibration.folder / f"{what}.{layer}", shape)

    def _embedded(self, ids: Tensor) -> Tensor:
        return torch.cat([self.checkpoint.rows(EMBEDDING, i, i + 1) for i in ids.tolist()])[None]

    def _fit_layer(self, layer: int) -> None:
        """Writes the inputs of the next layer, with the factors of the layer's own inputs."""
        block = self.network.blocks[layer]
        self._sum_up(block, layer)
        with torch.no_grad(), self.layers.observed(block, lambda *_: None):
            for linear in (m for m in block.modules() if isinstance(m, HeldLinear)):
                if linear.name in self.plans:
                    levels, scales = self._whole(linear.name)
                    size = self.plans[linear.name].group_size(levels.shape[1])
                    linear.weight = dequantize(levels, scales, size)
            self._pass_on(INPUTS, layer)
        self._states(INPUTS, layer).path.unlink()

    def _pass_on(self, what: str, layer: int) -> None:
        """Writes the inputs of the next layer that a layer, whose weights are held, makes."""
        block, inputs = self.network.blocks[layer], self._states(what, layer).windows()
        outputs = (finite(block(x, self.angles, self.start)) for x in inputs)
        self._states(what, layer + 1).write(outputs)

    def _sum_up(self, module: nn.Module, layer: int) -> None:
        """Writes the factors of the inputs of the matrices of a layer, or of the head."""
        grams = Grams()
        with torch.no_grad(), self.layers.observed(module, grams.add):
            for x in self._states(INPUTS, layer).windows():
                if module is self.network.head:
                    module(self.network.norm(x))
                else:
                    module(x, self.angles, self.start)
        for name in list(grams.sums):
            factor = inverse_factor(grams.sums.pop(name).div_(self.summed.numel()))
            self.calibration.write(f"{name}.{FACTOR}", factor)

    def _whole(self, name: str) -> tuple[Tensor, Tensor]:
        """Levels int8 [rows, cols] and scales float32 [rows, groups] as they were fitted."""
        _, *parts = zip(*self._fitted(name), strict=True)
        levels, scales = map(torch.cat, parts)
        return levels, scales

    # ---- training

    def _recover(self, report: Callable[[int], None]) -> None:
        """Trains the layers, so far as that has not been done, and writes what they have become.

        `report` is called with the layers of the given model that are passed and the steps.
        """
        linears = [m for m in self.network.blocks.modules() if isinstance(m, HeldLinear)]
        trained = [m for m in linears if m.name in self.plans and self.plans[m.name].recover]
        if all(self.calibration.has(f"{m.name}.{LEVELS}") for m in trained):
            return
        generator, used = torch.Generator().manual_seed(0), min(self.steps, len(self.windows))
        rounds = [torch.randperm(used, generator=generator) for _ in range(-(-self.steps // used))]
        order = torch.cat(rounds)[: self.steps].tolist()
        windows = self.windows[torch.randperm(len(self.windows), generator=generator)[:used]]
        self._pass_given(windows, report)
        n = len(self.network.blocks)
        inputs, outputs = self._states(GIVEN, 0), self._states(GIVEN, n)

        def lesson(step: int) -> Lesson:
            return Lesson(*(states.window(order[step]) for states in (inputs, outputs)))

        matrices = self._held_for(trained)
        norms = self._norms_between(trained)
        recovery = Recovery(
            self.network, self.angles, self.start, matrices, [*norms.values()], self.calibration
        )
        made = recovery.train(lesson, self.steps, lambda done: report(n + done))
        for name, norm in norms.items():
            self.calibration.write(f"{name}.{TRAINED}", norm.weight)
        for linear, (levels, scales) in made.items():
            self.calibration.write(f"{linear.name}.{SCALES}", scales)
            self.calibration.write(f"{linear.name}.{LEVELS}", levels)
        recovery.forget()
        for layer in (0, n):
            self._states(GIVEN, layer).path.unlink()

    def _pass_given(self, windows: Tensor, report: Callable[[int], None]) -> None:
        """Writes what the last layer of the given model makes of windows."""
        for layer in self._passed(GIVEN, windows):
            report(layer)
            block = self.network.blocks[layer]
            with torch.no_grad(), self.layers.observed(block, lambda *_: None):
                self._pass_on(GIVEN, layer)
            if layer:  # what goes into the first one is trained on
                self._states(GIVEN, layer).path.unlink()

    def _held_for(self, trained: Sequence[HeldLinear]) -> dict[HeldLinear, LatentMatrix]:
        """The matrices to be trained as they begin; of all others the weights are held."""
        made = {}
        for linear in (m for m in self.network.modules() if isinstance(m, HeldLinear)):
            linear.hold()
            if linear in trained:
                levels, scales = self._whole(linear.name)
                size = self.plans[linear.name].group_size(levels.shape[1])
                made[linear] = LatentMatrix.of(linear.held, levels, scales, size)
                linear.weight = None
        return made

    def _norms_between(self, trained: Sequence[HeldLinear]) -> dict[str, RMSNorm]:
        """The norms of layers all of whose matrices are trained, by name.

        A norm is as given where another matrix reads what it makes.
        """
        blocks = [
            layer
            for layer, block in enumerate(self.network.blocks)
            if all(m in trained for m in block.modules() if isinstance(m, HeldLinear))
        ]
        own = tuple(f"model.layers.{layer}." for layer in blocks)
        return {name: norm for name, norm in self.layers.norms.items() if name.startswith(own)}

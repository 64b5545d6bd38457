"""The training of layers after their matrices are quantized, all layers together (quant.recovery).

What is learnt from are windows of text, and what the last layer of the given model makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.checkpoint.tensors import WrappedTensor
from exporter.models.layers import RMSNorm
from exporter.progress import Progress
from exporter.quant.calibration import Calibration
from exporter.quant.calibration_passes import HeldLinear
from exporter.quant.passage import Passage
from exporter.quant.quantize import MatrixQuantizer
from exporter.quant.rate_quantizer import QuantizedBlock
from exporter.quant.recovery import Lesson, Recovery
from exporter.quant.trained_matrix import TrainedMatrix

# Files: of the inputs of a layer in the given model by number, and of what training has made of a
# matrix or a norm.
GIVEN = "given-inputs"
LEVELS, SCALES, TRAINED = "levels", "scales", "trained"


@dataclass(frozen=True)
class TrainedVector(WrappedTensor):
    """A vector of a checkpoint with other values, float32 [length]."""

    values: Tensor

    def rows(self, begin: int, end: int) -> Tensor:
        return self.values[begin:end]


@dataclass
class TrainedQuantizer:
    """The matrices of other quantizers, of which those of `trained` are trained for some steps.

    checkpoint: the model whose matrices they quantize. windows: of token ids, int64 [windows,
    tokens]; a step reads one of them. What has come of the training lies in the folder of
    `calibration`.
    """

    checkpoint: Checkpoint
    sources: Sequence[MatrixQuantizer]
    trained: Collection[str]
    steps: int
    windows: Tensor
    calibration: Calibration
    passage: Passage = field(init=False)

    def __post_init__(self) -> None:
        self.order, windows = _drawn(self.windows, self.steps)
        self.passage = Passage(GIVEN, self.checkpoint, windows, self.calibration.folder)

    @property
    def names(self) -> list[str]:
        """Names of the matrices."""
        return [name for source in self.sources for name in source.names]

    def blocks(self, name: str) -> Iterator[QuantizedBlock]:
        """The blocks of a matrix."""
        if self.calibration.has(f"{name}.{LEVELS}"):
            levels, scales = (self.calibration.read(f"{name}.{what}") for what in (LEVELS, SCALES))
            yield 0, levels, scales
        else:
            yield from self._source(name).blocks(name)

    def in_training(self, name: str, w: Tensor) -> TrainedMatrix:
        """A matrix, weights float32 [rows, cols], as its training begins."""
        return self._source(name).in_training(name, w)

    def _source(self, name: str) -> MatrixQuantizer:
        return next(source for source in self.sources if name in source.names)

    def with_trained_norms(self) -> Checkpoint:
        """The same model with the weights of norms that training has come to."""
        entries = self.checkpoint.entries
        trained = {
            name: TrainedVector(entries[name], self.calibration.read(file))
            for name in self.passage.layers.norms
            if self.calibration.has(file := f"{name}.{TRAINED}")
        }
        return replace(self.checkpoint, entries={**entries, **trained})

    def train(self, progress: Progress) -> None:
        """Trains the layers, so far as that has not been done.

        Raises CheckpointError if the model computes something that is not finite.
        """
        network, n = self.passage.network, len(self.passage.network.blocks)
        linears = [m for m in network.blocks.modules() if isinstance(m, HeldLinear)]
        trained = [m for m in linears if m.name in self.trained]
        if all(self.calibration.has(f"{m.name}.{LEVELS}") for m in trained):
            return

        def report(done: int) -> None:
            progress("train", done, n + self.steps)

        self._pass_given(report)
        norms = self._norms_between(trained)
        matrices = self._held_for(trained)
        recovery = Recovery(self.passage, matrices, [*norms.values()], self.calibration)
        made = recovery.train(self._lesson, self.steps, lambda done: report(n + done))
        for name, norm in norms.items():
            self.calibration.write(f"{name}.{TRAINED}", norm.weight)
        for linear, (levels, scales) in made.items():
            self.calibration.write(f"{linear.name}.{SCALES}", scales)
            self.calibration.write(f"{linear.name}.{LEVELS}", levels)
        recovery.forget()
        for layer in (0, n):
            self.passage.drop(layer)

    def _lesson(self, step: int) -> Lesson:
        window, n = self.order[step], len(self.passage.network.blocks)
        return Lesson(*(self.passage.states(layer).window(window) for layer in (0, n)))

    def _pass_given(self, report: Callable[[int], None]) -> None:
        """Writes what the last layer of the given model makes of windows."""
        for layer in self.passage.left():
            report(layer)
            block = self.passage.network.blocks[layer]
            with torch.no_grad(), self.passage.layers.observed(block, lambda *_: None):
                self.passage.pass_on(layer)
            if layer:  # what goes into the first one is trained on
                self.passage.drop(layer)

    def _held_for(self, trained: Sequence[HeldLinear]) -> dict[HeldLinear, TrainedMatrix]:
        """The matrices to be trained as they begin; of all others the weights are held."""
        made = {}
        for linear in (m for m in self.passage.network.modules() if isinstance(m, HeldLinear)):
            linear.hold()
            if linear in trained:
                made[linear] = self.in_training(linear.name, linear.held)
                linear.weight = None
        return made

    def _norms_between(self, trained: Sequence[HeldLinear]) -> dict[str, RMSNorm]:
        """The norms of layers all of whose matrices are trained, by name.

        A norm is as given where another matrix reads what it makes.
        """
        blocks = [
            layer
            for layer, block in enumerate(self.passage.network.blocks)
            if all(m in trained for m in block.modules() if isinstance(m, HeldLinear))
        ]
        own, norms = tuple(f"model.layers.{layer}." for layer in blocks), self.passage.layers.norms
        return {name: norm for name, norm in norms.items() if name.startswith(own)}


def _drawn(windows: Tensor, steps: int) -> tuple[list[int], Tensor]:
    """The number of the window that each step reads, and the windows that are read at all.

    They come again in another order where there are fewer than steps.
    """
    generator, used = torch.Generator().manual_seed(0), min(steps, len(windows))
    rounds = [torch.randperm(used, generator=generator) for _ in range(-(-steps // used))]
    order = torch.cat(rounds)[:steps].tolist()
    return order, windows[torch.randperm(len(windows), generator=generator)[:used]]

"""The fitting of levels layer after layer, each to the inputs that the layers before it leave.

With levels of so few bits the inputs of a layer are no longer those of the given model. So windows
of text go through the layers with their weights as they become: the inputs of a layer are summed
up in Gram matrices, its matrices are fitted to them, and what the fitted layer makes of its inputs
goes on to the next. Memory holds one layer; what passes between layers lies in files. A pass that
was cut off goes on from the last layer that was finished. Where a plan asks for it, all layers are
trained together afterwards (quant.recovery).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.progress import Progress
from exporter.quant import load
from exporter.quant.calibration import Calibration, input_of
from exporter.quant.calibration_passes import Grams, HeldLinear
from exporter.quant.passage import Passage
from exporter.quant.plan import MatrixPlan
from exporter.quant.rate import Curvature, Inputs, inverse_factor
from exporter.quant.rate_quantizer import QuantizedBlock, blocks_of
from exporter.quant.tensor import dequantize
from exporter.quant.trained_matrix import LatentMatrix

# Files: of the inputs of a matrix, and of those of a layer in the quantized model by number.
FACTOR, INPUTS = "quantized-factor", "quantized-inputs"


@dataclass
class SequentialQuantizer:
    """Quantizes the matrices of `plans`, whose schemes have `fit_rows`.

    The inputs are those of windows of token ids, int64 [windows, tokens], in a model whose other
    matrices are as given. What is known of them lies in the folder of `calibration`.
    """

    checkpoint: Checkpoint
    plans: Mapping[str, MatrixPlan]
    windows: Tensor
    calibration: Calibration
    passage: Passage = field(init=False)

    def __post_init__(self) -> None:
        self.passage = Passage(INPUTS, self.checkpoint, self.windows, self.calibration.folder)

    @property
    def names(self) -> list[str]:
        """Names of the matrices."""
        return [*self.plans]

    def blocks(self, name: str) -> Iterator[QuantizedBlock]:
        """The blocks of a matrix."""
        plan, curvature = self.plans[name], self._curvature(name)
        for begin, w in blocks_of(self.checkpoint, name):
            yield begin, *load(plan.scheme).fit_rows(w, plan.config, curvature)

    def in_training(self, name: str, w: Tensor) -> LatentMatrix:
        """A matrix, weights float32 [rows, cols], as its training begins."""
        return LatentMatrix.of(w, *self._whole(name), self.plans[name].group_size(w.shape[1]))

    def _curvature(self, name: str) -> Curvature:
        rows, cols = self.checkpoint.shape(name)
        known = f"{input_of(name)}.{FACTOR}"
        # The input of an embedding is a token: its columns do not depend on each other.
        upper = self.calibration.read(known) if self.calibration.has(known) else torch.eye(cols)
        return Curvature(Inputs(upper), torch.ones(rows))

    def calibrate(self, progress: Progress) -> None:
        """Sums up the inputs of all matrices, so far as that has not been done.

        Raises CheckpointError if the model computes something that is not finite.
        """
        network = self.passage.network
        n, head = len(network.blocks), network.head
        for layer in self.passage.left():
            progress("calibrate", layer + 1, n + 1)
            self._fit_layer(layer)
        assert isinstance(head, HeldLinear)
        if head.name in self.plans and not self.calibration.has(f"{head.name}.{FACTOR}"):
            self._sum_up(head, (network.norm(x) for x in self.passage.states(n).windows()))
        progress("calibrate", n + 1, n + 1)

    def _fit_layer(self, layer: int) -> None:
        """Writes the inputs of the next layer, with the factors of the layer's own inputs."""
        block, layers = self.passage.network.blocks[layer], self.passage.layers
        self._sum_up(block, self.passage.states(layer).windows())
        with torch.no_grad(), layers.observed(block, lambda *_: None):
            for linear in (m for m in block.modules() if isinstance(m, HeldLinear)):
                if linear.name in self.plans:
                    levels, scales = self._whole(linear.name)
                    size = self.plans[linear.name].group_size(levels.shape[1])
                    linear.weight = dequantize(levels, scales, size)
            self.passage.pass_on(layer)
        self.passage.drop(layer)

    def _sum_up(self, module: nn.Module, inputs: Iterator[Tensor]) -> None:
        """Writes the factors of the inputs of the matrices of a layer, or of the head."""
        grams, passage = Grams(), self.passage
        with torch.no_grad(), passage.layers.observed(module, grams.add):
            for x in inputs:
                if module is passage.network.head:
                    module(x)
                else:
                    module(x, passage.angles, passage.start)
        for name in list(grams.sums):
            factor = inverse_factor(grams.sums.pop(name).div_(self.windows.numel()))
            self.calibration.write(f"{name}.{FACTOR}", factor)

    def _whole(self, name: str) -> tuple[Tensor, Tensor]:
        """Levels int8 [rows, cols] and scales float32 [rows, groups] of a matrix."""
        _, *parts = zip(*self.blocks(name), strict=True)
        levels, scales = map(torch.cat, parts)
        return levels, scales

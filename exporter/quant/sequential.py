"""The fitting of levels layer after layer, each to the inputs that the layers before it leave.

With levels of so few bits the inputs of a layer are no longer those of the given model. So windows
of text go through the layers with their weights as they become: the inputs of a layer are summed
up in Gram matrices, its matrices are fitted to them, and what the fitted layer makes of its inputs
goes on to the next. Memory holds one layer; what passes between layers lies in files. A pass that
was cut off goes on from the last layer that was finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exporter.bundle import EMBEDDING
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.progress import Progress
from exporter.quant import load
from exporter.quant.calibration import Calibration, input_of
from exporter.quant.calibration_passes import Grams, HeldLayers, HeldLinear, States, finite
from exporter.quant.plan import MatrixPlan
from exporter.quant.rate import Curvature, inverse_factor
from exporter.quant.rate_quantizer import QuantizedBlock, blocks_of
from exporter.quant.tensor import dequantize

FACTOR, INPUTS = "quantized-factor", "quantized-inputs"  # files: of a matrix, of a layer by number


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
    layers: HeldLayers = field(init=False)

    def __post_init__(self) -> None:
        self.layers = HeldLayers(self.checkpoint)
        self.network = self.checkpoint.network(self.windows.shape[1], self.layers)
        self.start = torch.tensor([0])
        self.angles = self.network.rotation(self.windows[:1], self.start)

    @property
    def names(self) -> list[str]:
        """Names of the matrices."""
        return [*self.plans]

    def blocks(self, name: str) -> Iterator[QuantizedBlock]:
        """The blocks of a matrix."""
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
        """Sums up the inputs of all matrices, so far as that has not been done.

        Raises CheckpointError if the model computes something that is not finite.
        """
        n = len(self.network.blocks)
        done = [i for i in range(n + 1) if self._inputs(i).path.is_file()]
        if not done:
            self._inputs(0).write(map(self._embedded, self.windows))
        for layer in range(max(done, default=0), n):
            progress("calibrate", layer + 1, n + 1)
            self._fit_layer(layer)
        head = self.network.head
        assert isinstance(head, HeldLinear)
        if head.name in self.plans and not self.calibration.has(f"{head.name}.{FACTOR}"):
            self._sum_up(head, n)
        progress("calibrate", n + 1, n + 1)

    def _inputs(self, layer: int) -> States:
        """The inputs of a layer; of the final norm after the last one."""
        shape = (1, self.windows.shape[1], self.checkpoint.config.hidden_size)
        return States(self.calibration.folder / f"{INPUTS}.{layer}", shape)

    def _embedded(self, ids: Tensor) -> Tensor:
        return torch.cat([self.checkpoint.rows(EMBEDDING, i, i + 1) for i in ids.tolist()])[None]

    def _fit_layer(self, layer: int) -> None:
        """Writes the inputs of the next layer, with the factors of the layer's own inputs."""
        block = self.network.blocks[layer]
        self._sum_up(block, layer)
        with torch.no_grad(), self.layers.observed(block, lambda *_: None):
            for linear in (m for m in block.modules() if isinstance(m, HeldLinear)):
                if linear.name in self.plans:
                    linear.weight = self._quantized(linear.name)
            inputs = self._inputs(layer).windows()
            outputs = (finite(block(x, self.angles, self.start)) for x in inputs)
            self._inputs(layer + 1).write(outputs)
        self._inputs(layer).path.unlink()

    def _sum_up(self, module: nn.Module, layer: int) -> None:
        """Writes the factors of the inputs of the matrices of a layer, or of the head."""
        grams = Grams()
        with torch.no_grad(), self.layers.observed(module, grams.add):
            for x in self._inputs(layer).windows():
                if module is self.network.head:
                    module(self.network.norm(x))
                else:
                    module(x, self.angles, self.start)
        for name in list(grams.sums):
            factor = inverse_factor(grams.sums.pop(name).div_(self.windows.numel()))
            self.calibration.write(f"{name}.{FACTOR}", factor)

    def _quantized(self, name: str) -> Tensor:
        """The weights of a matrix as they become, float32 [rows, cols]."""
        size = self.plans[name].group_size(self.checkpoint.shape(name)[1])
        parts = [dequantize(levels, scales, size) for _, levels, scales in self.blocks(name)]
        return torch.cat(parts)

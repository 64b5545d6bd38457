"""The fitting of levels layer after layer, each to the inputs that the layers before it leave.

With levels of so few bits the inputs of a layer are no longer those of the given model. So windows
of text go through the layers with their weights as they become: the inputs of a layer are summed
up in Gram matrices, its matrices are fitted to them, and what the fitted layer makes of its inputs
goes on to the next. Where a plan asks for it, the layer is trained in between, against what the
given layer makes of its own inputs. Memory holds one layer; what passes between layers lies in
files. A pass that was cut off goes on from the last layer that was finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from exporter.bundle import EMBEDDING
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.checkpoint.tensors import WrappedTensor
from exporter.models.layers import RMSNorm
from exporter.progress import Progress
from exporter.quant import load
from exporter.quant.calibration import Calibration, input_of
from exporter.quant.calibration_passes import Grams, HeldLayers, HeldLinear, States, finite
from exporter.quant.plan import MatrixPlan
from exporter.quant.rate import Curvature, inverse_factor
from exporter.quant.rate_quantizer import QuantizedBlock, blocks_of
from exporter.quant.recovery import Examples, LatentMatrix, LayerRecovery
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
    have steps of `recover`, a layer is trained that long after it is fitted (quant.recovery).
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
        n, units = len(self.network.blocks), self.steps + 1
        done = [i for i in range(n + 1) if self._states(INPUTS, i).path.is_file()]
        if not done:
            for what in (GIVEN, INPUTS) if self.steps else (INPUTS,):
                self._states(what, 0).write(map(self._embedded, self.windows))
        for layer in range(max(done, default=0), n):

            def report(steps: int, before: int = layer * units + 1) -> None:
                progress("calibrate", before + steps, n * units + 1)

            report(0)
            self._fit_layer(layer, report)
        head = self.network.head
        assert isinstance(head, HeldLinear)
        if head.name in self.plans and not self.calibration.has(f"{head.name}.{FACTOR}"):
            self._sum_up(head, n)
        progress("calibrate", n * units + 1, n * units + 1)

    def _states(self, what: str, layer: int) -> States:
        """The inputs of a layer, INPUTS or GIVEN; of the final norm after the last one."""
        shape = (1, self.windows.shape[1], self.checkpoint.config.hidden_size)
        return States(self.calibration.folder / f"{what}.{layer}", shape)

    def _embedded(self, ids: Tensor) -> Tensor:
        return torch.cat([self.checkpoint.rows(EMBEDDING, i, i + 1) for i in ids.tolist()])[None]

    def _fit_layer(self, layer: int, report: Callable[[int], None]) -> None:
        """Writes the inputs of the next layer, with the factors of the layer's own inputs.

        `report` is called with the steps of training that are done.
        """
        block = self.network.blocks[layer]
        self._sum_up(block, layer)
        with torch.no_grad(), self.layers.observed(block, lambda *_: None):
            if self.steps:
                self._pass_on(GIVEN, layer)
            self._quantize(layer, report)
            self._pass_on(INPUTS, layer)
        for what in (GIVEN, INPUTS):
            self._states(what, layer).path.unlink(missing_ok=True)

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
            factor = inverse_factor(grams.sums.pop(name).div_(self.windows.numel()))
            self.calibration.write(f"{name}.{FACTOR}", factor)

    def _quantize(self, layer: int, report: Callable[[int], None]) -> None:
        """Gives the matrices of a layer, which are held, the weights that they become."""
        linears = [m for m in self.network.blocks[layer].modules() if isinstance(m, HeldLinear)]
        latent: dict[HeldLinear, LatentMatrix] = {}
        for linear in (m for m in linears if m.name in self.plans):
            plan, given = self.plans[linear.name], linear.held
            _, *parts = zip(*self._fitted(linear.name), strict=True)
            levels, scales = map(torch.cat, parts)
            size = plan.group_size(given.shape[1])
            linear.weight = dequantize(levels, scales, size)
            if plan.recover:
                latent[linear] = LatentMatrix.of(given, levels, scales, size)
        if latent:
            # A norm is as given where another matrix reads what it makes.
            own = f"model.layers.{layer}." if len(latent) == len(linears) else None
            norms = {n: m for n, m in self.layers.norms.items() if own and n.startswith(own)}
            self._train(layer, latent, norms, report)

    def _train(
        self,
        layer: int,
        latent: Mapping[HeldLinear, LatentMatrix],
        norms: Mapping[str, RMSNorm],
        report: Callable[[int], None],
    ) -> None:
        """Trains matrices of a layer, and norms by name, and writes what they have become."""
        steps = max(self.plans[linear.name].recover for linear in latent)
        generator = torch.Generator().manual_seed(layer)
        rounds = range(-(-steps // len(self.windows)))
        order = [torch.randperm(len(self.windows), generator=generator) for _ in rounds]
        examples = Examples(
            self._states(INPUTS, layer),
            self._states(GIVEN, layer + 1),
            torch.cat(order)[:steps].tolist(),
        )
        block, values = self.network.blocks[layer], [*norms.values()]
        recovery = LayerRecovery(block, self.angles, self.start, latent, values)
        for linear, (levels, scales) in recovery.train(examples, report).items():
            self.calibration.write(f"{linear.name}.{LEVELS}", levels)
            self.calibration.write(f"{linear.name}.{SCALES}", scales)
            linear.weight = dequantize(levels, scales, latent[linear].group_size)
        for name, norm in norms.items():
            self.calibration.write(f"{name}.{TRAINED}", norm.weight)

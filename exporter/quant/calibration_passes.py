"""Calibration: a pass forward over windows of text, and one backward over some, layer by layer.

Forward, the inputs of the matrices are summed up in Gram matrices; backward, the squared gradients
of their outputs in sensitivities. A matrix has so many more numbers than a row of sensitivities
that it needs more tokens, and forward a token costs less. The loss is that of labels which are
drawn from the model's own distribution, so that a mean squared gradient is a diagonal of the Fisher
information. Memory holds the weights and the Gram matrices of one layer; what passes between layers
lies in files. Passes that were cut off go on from the last layer that was finished.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.models.config import ModelConfig
from exporter.models.layers import RMSNorm, TorchLayers, rotate
from exporter.progress import Progress
from exporter.quant.calibration import Calibration, checksum, damaged, finite, input_of
from exporter.quant.head_statistics import HeadStatistics
from exporter.quant.rate import inverse_factor

# Shares of the mean that a row's own sensitivity is mixed with. A text tells little of tokens that
# are rare in it, and most of a vocabulary is.
FLOOR, VOCABULARY_FLOOR = 0.01, 0.5
GRAM_ROWS = 512  # of a Gram matrix that are summed up at once, from their diagonal on
HEAD_TOKENS = 128  # whose logits are in memory at a time
BACKWARD_WINDOWS = 64  # at most, whose gradients are computed; spread evenly over all
# Files: inputs of layers, of the windows that go backward and of the others, and gradients of
# inputs, by number; of every token its mean squared gradient as an output and its mean probability.
INPUTS, OTHERS, GRADIENTS, OUTPUTS, SHARES = "inputs", "others", "gradients", "outputs", "shares"

Observer = Callable[[str, Tensor, Tensor], None]
"""Called with the name of a matrix, its input and its output."""


class HeldLinear(nn.Module):
    """A linear module whose weight is in memory only while it is held."""

    def __init__(self, layers: HeldLayers, name: str) -> None:
        super().__init__()
        self.layers, self.name = layers, name
        self.weight: Tensor | None = None

    def hold(self) -> None:
        """Reads the weight."""
        rows, _ = self.layers.checkpoint.shape(self.name)
        self.weight = self.layers.checkpoint.rows(self.name, 0, rows)

    @property
    def held(self) -> Tensor:
        """The weight, which the caller has had read."""
        assert self.weight is not None
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.held)
        if self.layers.observe is not None:
            self.layers.observe(self.name, x, y)
        return y


class CausalAttention(nn.Module):
    """Causal grouped-query attention among the tokens of one call, without a cache."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor, _: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, angles), rotate(k, angles), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


class HeldLayers(TorchLayers):
    """`models.layers.Layers` over a checkpoint, whose linear modules can be observed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.observe: Observer | None = None
        self.norms: dict[str, RMSNorm] = {}

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        return HeldLinear(self, name)

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        return nn.Identity()  # its rows are read where they are needed

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        return CausalAttention(config.head_dim)

    def norm(self, name: str, eps: float) -> nn.Module:
        return self.norms.setdefault(name, RMSNorm(self.vector(name), eps))

    def vector(self, name: str) -> Tensor:
        return self.checkpoint.vector(name)

    @contextlib.contextmanager
    def observed(self, module: nn.Module, observe: Observer) -> Iterator[None]:
        """Holds the weights of a module, and has its matrices observed."""
        linears = [m for m in module.modules() if isinstance(m, HeldLinear)]
        for linear in linears:
            linear.hold()
        self.observe = observe
        try:
            yield
        finally:
            self.observe = None
            for linear in linears:
                linear.weight = None


@dataclass(frozen=True)
class States:
    """A file of hidden states or their gradients: float32 [windows, tokens, hidden], `checksum`."""

    path: Path
    shape: tuple[int, ...]  # of a window: [1, tokens, hidden]

    def windows(self) -> Iterator[Tensor]:
        """The windows one by one.

        Raises CheckpointError, after the last one, if they are not what was written.
        """
        n_bytes, crc = 4 * int(np.prod(self.shape)), 0
        with self.path.open("rb") as file:
            while len(window := file.read(n_bytes)) == n_bytes:
                crc = zlib.crc32(window, crc)
                yield torch.frombuffer(bytearray(window), dtype=torch.float32).view(self.shape)
        if window != checksum(crc):
            raise damaged(self.path)

    def window(self, number: int) -> Tensor:
        """One window, float32; the checksum is that of all, and is not looked at."""
        n_bytes = 4 * int(np.prod(self.shape))
        with self.path.open("rb") as file:
            file.seek(number * n_bytes)
            return torch.frombuffer(bytearray(file.read(n_bytes)), dtype=torch.float32).view(
                self.shape
            )

    def write(self, windows: Iterator[Tensor]) -> None:
        """Writes all windows; the file is there whole or not at all."""
        temporary, crc = self.path.with_name(f"{self.path.name}.new"), 0
        with temporary.open("wb") as file:
            for window in windows:
                values = window.contiguous().numpy().data
                crc = zlib.crc32(values, crc)
                file.write(values)
            file.write(checksum(crc))
        temporary.replace(self.path)


class Grams:
    """The sums of x x^T over the inputs x of matrices, float32 [cols, cols] by name.

    Below the diagonal they are not complete: the upper triangle says all.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Adds the inputs of a call, if no other matrix stands for them."""
        if input_of(name) == name:
            flat = x.detach().flatten(0, -2)
            if name not in self.sums:
                self.sums[name] = torch.zeros(x.shape[-1], x.shape[-1])
            for begin in range(0, x.shape[-1], GRAM_ROWS):
                rows = slice(begin, begin + GRAM_ROWS)
                self.sums[name][rows, begin:].addmm_(flat[:, rows].T, flat[:, begin:])


class Squares:
    """The sums of squared gradients of the outputs of matrices, float64 [rows] by name."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Has the gradients of a call added, as soon as they are known."""
        total = self.sums.setdefault(name, torch.zeros(y.shape[-1], dtype=torch.float64))

        def add_squares(gradient: Tensor) -> None:
            total.add_(_squares(gradient))

        y.register_hook(add_squares)


def _squares(x: Tensor) -> Tensor:
    """Sums over tokens of squares, float64 [n], of float32 [.., n]."""
    return x.flatten(0, -2).square().sum(0, dtype=torch.float64)


@dataclass
class Passes:
    """The two passes over windows of token ids, int64 [windows, tokens].

    The `backward` ones of them go through both passes, the `others` through the first.
    """

    checkpoint: Checkpoint
    windows: Tensor
    calibration: Calibration
    progress: Progress
    layers: HeldLayers = field(init=False)

    def __post_init__(self) -> None:
        every = -(-len(self.windows) // BACKWARD_WINDOWS)
        goes_backward = torch.arange(len(self.windows)) % every == 0
        self.backward, self.others = self.windows[goes_backward], self.windows[~goes_backward]
        self.layers = HeldLayers(self.checkpoint)
        self.network = self.checkpoint.network(self.windows.shape[1], self.layers)
        self.start = torch.tensor([0])
        self.angles = self.network.rotation(self.windows[:1], self.start)

    def run(self) -> None:
        """Writes the statistics of every matrix, so far as they are not there yet.

        Raises CheckpointError if the model computes something that is not finite.
        """
        if self.calibration.has(f"{EMBEDDING}.sensitivity"):
            return
        n = len(self.network.blocks)
        backward = min(self._written(GRADIENTS), default=n + 1)
        forward = n if backward <= n else max(self._written(INPUTS), default=-1)
        for layer in range(forward, n):
            self.progress("calibrate", layer + 1, 2 * (n + 1))
            self._forward(layer)
        for layer in range(backward - 1, -1, -1):
            self.progress("calibrate", 2 * n + 1 - layer, 2 * (n + 1))
            self._backward(layer)
        self._rate_embedding()
        self._states(GRADIENTS, 0).path.unlink()
        self.progress("calibrate", 2 * (n + 1), 2 * (n + 1))

    def _written(self, what: str) -> list[int]:
        """The layers whose inputs, or gradients of inputs, are there; the head is the last."""
        folder, n = self.calibration.folder, len(self.network.blocks)
        return [layer for layer in range(n + 1) if (folder / f"{what}.{layer}").is_file()]

    def _states(self, what: str, layer: int) -> States:
        tokens, hidden = self.windows.shape[1], self.checkpoint.config.hidden_size
        return States(self.calibration.folder / f"{what}.{layer}", (1, tokens, hidden))

    def _forward(self, layer: int) -> None:
        """Writes the inputs of the layer after `layer`, with the factors of its own inputs.

        Layer -1 is the embedding.
        """
        if layer < 0:
            for what, windows in ((OTHERS, self.others), (INPUTS, self.backward)):
                self._states(what, 0).write(embedded(self.checkpoint, ids) for ids in windows)
            return
        block, grams = self.network.blocks[layer], Grams()

        def outputs(what: str) -> Iterator[Tensor]:
            for x in self._states(what, layer).windows():
                yield finite(block(x, self.angles, self.start))
            if what == INPUTS:  # the last ones: before the file of outputs gets its name
                self._write_factors(grams)

        with torch.no_grad(), self.layers.observed(block, grams.add):
            for what in (OTHERS, INPUTS):
                self._states(what, layer + 1).write(outputs(what))
        self._states(OTHERS, layer).path.unlink()

    def _write_factors(self, grams: Grams) -> None:
        for name in list(grams.sums):
            factor = inverse_factor(grams.sums.pop(name).div_(self.windows.numel()))
            self.calibration.write(f"{name}.factor", factor)

    def _backward(self, layer: int) -> None:
        """Writes the gradients of a layer's inputs, with the sensitivities of its matrices.

        The layer after the last block is the head.
        """
        if layer == len(self.network.blocks):
            self._head(layer)
            return
        block, squares = self.network.blocks[layer], Squares()
        inputs, outputs = self._states(INPUTS, layer), self._states(GRADIENTS, layer + 1)

        def gradient(x: Tensor, of_output: Tensor) -> Tensor:
            y = block(x.requires_grad_(), self.angles, self.start)
            return torch.autograd.grad(y, x, of_output)[0]

        def gradients() -> Iterator[Tensor]:
            for x, of_output in zip(inputs.windows(), outputs.windows(), strict=True):
                yield gradient(x, of_output)
            for name, total in squares.sums.items():
                mean = (total / self.backward.numel()).float()
                self.calibration.write(f"{name}.sensitivity", mixed(mean, FLOOR))

        with self.layers.observed(block, squares.add):
            self._states(GRADIENTS, layer).write(gradients())
        outputs.path.unlink()
        inputs.path.unlink()

    def _head(self, layer: int) -> None:
        """Writes the gradients of the last hidden states, and what is known of the head."""
        inputs, others = self._states(INPUTS, layer), self._states(OTHERS, layer)
        statistics, grams = HeadStatistics(self.checkpoint.config.vocab_size), Grams()
        head = self.network.head
        assert isinstance(head, HeldLinear)

        def gradient(seed: int, x: Tensor) -> Tensor:
            normed = self.network.norm(x.requires_grad_())
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                of_normed = [
                    statistics.gradient(head(part), head.held, generator)
                    for part in normed[0].split(HEAD_TOKENS)
                ]
            return torch.autograd.grad(normed, x, torch.cat(of_normed)[None])[0]

        def gradients() -> Iterator[Tensor]:
            for seed, x in enumerate(inputs.windows()):
                yield gradient(seed, x)
            for x in others.windows():
                grams.add(head.name, self.network.norm(x), x)
            self._write_factors(grams)
            for what, total in ((OUTPUTS, statistics.squares), (SHARES, statistics.shares)):
                self.calibration.write(what, (total / self.backward.numel()).float())

        with self.layers.observed(head, grams.add):
            self._states(GRADIENTS, layer).write(gradients())
        inputs.path.unlink()
        others.path.unlink()

    def _rate_embedding(self) -> None:
        """Writes the sensitivities of the embedding and the head.

        A row of the embedding matters as often as its token comes in. A tied one matters as both,
        and has the factor of a head.
        """
        squares = sum(map(_squares, self._states(GRADIENTS, 0).windows()))
        power = (torch.as_tensor(squares) / self.backward.numel()).float()
        outputs = mixed(self.calibration.read(OUTPUTS), VOCABULARY_FLOOR)
        sensitivity = mixed(self.calibration.read(SHARES), VOCABULARY_FLOOR)
        if self.checkpoint.config.tie_word_embeddings:
            errors = 1 / self.calibration.read(f"{EMBEDDING}.factor").diagonal().square()
            sensitivity = outputs + sensitivity * power.mean() / errors.mean()
        else:
            self.calibration.write(f"{HEAD}.sensitivity", outputs)
            self.calibration.write(f"{EMBEDDING}.factor", inverse_factor(power.diag()))
        self.calibration.write(f"{EMBEDDING}.sensitivity", sensitivity)


def embedded(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """The rows of the embedding for token ids, float32 [1, tokens, hidden]."""
    tokens, places = ids.unique(return_inverse=True)
    return torch.cat([checkpoint.rows(EMBEDDING, i, i + 1) for i in tokens.tolist()])[places][None]


def mixed(sensitivity: Tensor, share: float) -> Tensor:
    """The sensitivities [n] with a share of their mean in all of them."""
    return (1 - share) * sensitivity + share * sensitivity.mean()

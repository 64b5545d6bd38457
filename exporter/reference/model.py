"""The quantized and the original model in PyTorch, whose weights are never whole in memory.

Weights are decoded in blocks of rows each time they are needed. This is an implementation of its
own: it shares the decoder with the packages, nothing of what they compute between products, and no
product of fewer than CORE_TOKENS tokens. Products of more tokens are those of the C++ core, in half
the time: both sum exact integers, and tests hold their bits equal.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.bundle import Activations, Arithmetic
from exporter.checkpoint.tensors import all_finite
from exporter.codec.encoder import release
from exporter.codec.native_tensor import NativeTensor
from exporter.codec.scales import StoredScales, widened
from exporter.errors import CheckpointError
from exporter.models.layers import Decoder, TorchLayers

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint

T = TypeVar("T")


# The weights that a thread decodes at a time: 2 MiB as float32, which stays in its cache and heap.
BLOCK_WEIGHTS = 1 << 19


# The columns over which sums of halves are exact in float32: 1024 * 128 * 128 is 2**24.
EXACT_COLUMNS = 1024


# The tokens of a call from which on its products are the core's. A prompt that greedy tokens follow
# has fewer.
CORE_TOKENS = 32


MOST = 32512.0  # of a quantized activation: 256 * 127


# The tokens of a prompt computed at a time: attention over a full context takes much memory.
PIECE_TOKENS = 512


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations quantized symmetrically to int16 per token, as by the operators.

    x is float32 [T, K]. Returns the integers as float32 [T, K] and the scales [T, 1].
    """
    largest = x.abs().amax(-1, keepdim=True)
    usable = largest >= 2.0**-100
    # A tensor is divided by a tensor: PyTorch computes number / tensor by the reciprocal, which
    # rounds differently.
    inverse = torch.where(
        usable, torch.full_like(largest, MOST) / largest, torch.zeros_like(largest)
    )
    return torch.round(x * inverse), torch.where(usable, largest / MOST, torch.zeros_like(largest))


def halves(quantized: Tensor) -> Tensor:
    """The halves of integers q = 256 * high + low, neither of them beyond 128.

    They are float32 [2 T, K] of float32 [T, K]: all high ones, then all low ones.
    """
    high = torch.floor((quantized + 128) / 256)
    return torch.cat((high, quantized - 256 * high))


def integer_product(quantized: Tensor, levels: Tensor) -> Tensor:
    """Exact integer dot products, float64 [T, n].

    quantized: integers as `halves` gives them, float32 [2 T, K]; levels: int8 [n, K]. The order of
    the sums does not matter: over EXACT_COLUMNS every sum of halves is an integer of float32, and
    65535 columns of 32512 * 128 are less than 2**53. `.float()` rounds such an integer once.
    """
    blocks = zip(
        quantized.split(EXACT_COLUMNS, 1), levels.float().split(EXACT_COLUMNS, 1), strict=True
    )
    sums = torch.zeros(quantized.shape[0], levels.shape[0], dtype=torch.float64)
    for q, w in blocks:
        sums += q @ w.T
    high, low = sums.chunk(2)
    return 256 * high + low


# From levels int8 [n, K] and their scales [n, n_groups] to their products float32 [T, n].
Multiply = Callable[[Tensor, Tensor], Tensor]


class CodedMatrix(Protocol):
    """A coded matrix wherever it lies: in files of an export, or in a package."""

    @property
    def rows(self) -> int: ...

    @property
    def cols(self) -> int: ...

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""

    def blob(self) -> NDArray[np.uint8]:
        """TQLZ blob, uint8 [blob_bytes], memory-mapped."""

    def scales(self) -> StoredScales:
        """Scales as they are stored, [rows, n_groups], memory-mapped."""


class CodedModel(Protocol):
    """Coded matrices and float32 vectors of a model, by checkpoint name."""

    @property
    def matrices(self) -> Mapping[str, CodedMatrix]: ...

    @property
    def vectors(self) -> Mapping[str, Tensor]: ...


class QuantizedLinear(nn.Module):
    """Linear layer y = W x over a coded matrix."""

    def __init__(self, matrix: CodedMatrix, activations: Activations) -> None:
        super().__init__()
        self.matrix, self.activations = matrix, activations
        self.blob, self.scales = matrix.blob(), matrix.scales()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # [T, K]
        in_the_core = self.activations == "int16" and flat.shape[0] >= CORE_TOKENS
        y = self._core_product(finite(flat)) if in_the_core else self._product(flat)
        return y.reshape(*x.shape[:-1], self.matrix.rows)

    def _core_product(self, x: Tensor) -> Tensor:
        release_pages = functools.partial(release, self.blob, self.scales)
        with NativeTensor(self.blob, passed=release_pages) as coded:
            threads = os.cpu_count() or 1
            y = coded.linear_x16(x.numpy(), self.scales, self.matrix.group_size, threads)
        return torch.from_numpy(y)

    def _product(self, x: Tensor) -> Tensor:
        y = torch.empty(x.shape[0], self.matrix.rows)
        multiply = self._multiply_float32(x)
        if self.activations == "int16":
            multiply = self._multiply_int16(*quantize_activations(x))
        with NativeTensor(self.blob) as coded:

            def block(begin: int, end: int) -> None:
                levels = torch.from_numpy(coded.decode_rows(begin, end))
                y[:, begin:end] = multiply(
                    levels, torch.from_numpy(widened(self.scales[begin:end]))
                )
                release(self.blob, self.scales)

            for_row_blocks(block, self.matrix.rows, self.matrix.cols)
        return y

    def _multiply_int16(self, quantized: Tensor, x_scales: Tensor) -> Multiply:
        integers = halves(quantized)

        def multiply(levels: Tensor, scales: Tensor) -> Tensor:
            if scales.shape[1] == 1:
                return integer_product(integers, levels).float() * (x_scales * scales.T)
            size = self.matrix.group_size
            groups = zip(integers.split(size, 1), levels.split(size, 1), strict=True)
            total = torch.zeros(quantized.shape[0], levels.shape[0])
            for g, (q, w) in enumerate(groups):  # from group 0 up: float sums depend on their order
                total += integer_product(q, w).float() * scales[:, g]
            return x_scales * total

        return multiply

    def _multiply_float32(self, x: Tensor) -> Multiply:
        def multiply(levels: Tensor, scales: Tensor) -> Tensor:
            if scales.shape[1] == 1:
                return (x @ levels.float().T) * scales.T
            return x @ dequantized(levels, scales, self.matrix.group_size).T

        return multiply


class FloatLinear(nn.Module):
    """Linear layer y = W x over a matrix of the checkpoint, which is read in blocks of rows."""

    def __init__(self, rows: Callable[[int, int], Tensor], out_features: int) -> None:
        super().__init__()
        self.rows, self.out_features = rows, out_features

    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty(*x.shape[:-1], self.out_features)

        def block(begin: int, end: int) -> None:
            y[..., begin:end] = x @ self.rows(begin, end).T

        for_row_blocks(block, self.out_features, x.shape[-1])
        return y


class RowEmbedding(nn.Module):
    """Embedding that reads one row at a time: ids int64 [1, S] -> float32 [1, S, cols]."""

    def __init__(self, row: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.row = row

    def forward(self, ids: Tensor) -> Tensor:
        return torch.stack([self.row(int(i)) for i in ids[0]])[None]


def dequantized(levels: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """Weights of levels [n, K] and scales [n, n_groups], each scale spread over its group."""
    return levels * scales.repeat_interleave(group_size, dim=1)[:, : levels.shape[1]]


def row_blocks(rows: int, cols: int) -> list[tuple[int, int]]:
    """Equal ranges of rows of at most BLOCK_WEIGHTS weights, as many for each core."""
    cores = os.cpu_count() or 1
    rounds = -(-rows * cols // (cores * BLOCK_WEIGHTS))
    step = -(-rows // (cores * rounds))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


@functools.cache
def _workers() -> ThreadPoolExecutor:
    """One thread a core, kept: the C library keeps a heap for each thread that there was."""
    return ThreadPoolExecutor(os.cpu_count() or 1)


os.register_at_fork(after_in_child=_workers.cache_clear)  # a fork has none of them, and would wait


def on_all_cores(work: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """What `work` returns for each item of the arguments, as by `map`, each from one thread.

    The items are too small for several threads of PyTorch each. A worker has the number of its own
    set before each item: it would take that of PyTorch with its first large tensor, and a product
    by two threads rounds otherwise than one by one.
    """

    def one(*items: Any) -> T:
        torch.set_num_threads(1)
        with torch.inference_mode():  # it is a state of each thread
            return work(*items)

    threads = torch.get_num_threads()
    try:
        return list(_workers().map(one, *arguments))
    finally:
        torch.set_num_threads(threads)


def for_row_blocks(work: Callable[[int, int], None], rows: int, cols: int) -> None:
    """Calls `work` with the range of each block of rows, on all cores.

    Each block is read and decoded by one thread.
    """
    on_all_cores(work, *zip(*row_blocks(rows, cols), strict=True))


class QuantizedLayers(TorchLayers):
    """`models.layers.Layers` over a coded model, in one arithmetic."""

    def __init__(self, encoded: CodedModel, arithmetic: Arithmetic) -> None:
        super().__init__(arithmetic.kv_type)
        self.encoded, self.activations = encoded, arithmetic.activations

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        return QuantizedLinear(self.encoded.matrices[name], self.activations)

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        matrix = self.encoded.matrices[name]
        blob, scales = matrix.blob(), matrix.scales()
        coded = NativeTensor(blob)

        def row(i: int) -> Tensor:
            levels = torch.from_numpy(coded.decode_rows(i, i + 1)).float()
            factors = torch.from_numpy(widened(scales[i : i + 1]))
            release(blob, scales)  # rows lie far apart, and the system maps what is around them too
            return dequantized(levels, factors, matrix.group_size)[0]

        return RowEmbedding(row)

    def vector(self, name: str) -> Tensor:
        return self.encoded.vectors[name]


class OriginalLayers(TorchLayers):
    """`models.layers.Layers` over the checkpoint itself, in float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        return FloatLinear(lambda begin, end: self.checkpoint.rows(name, begin, end), out_features)

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        return RowEmbedding(lambda i: self.checkpoint.rows(name, i, i + 1)[0])

    def vector(self, name: str) -> Tensor:
        return self.checkpoint.vector(name)


def hidden_states(model: Decoder, tokens: Sequence[int], begin: int = 0) -> Tensor:
    """Hidden states of tokens from position `begin` on, float32 [1, S, hidden].

    They are computed in pieces.
    """
    pieces = torch.tensor([tokens]).split(PIECE_TOKENS, 1)
    positions = (torch.tensor([begin + i * PIECE_TOKENS]) for i in range(len(pieces)))
    return torch.cat([model.hidden(*piece) for piece in zip(pieces, positions, strict=True)], 1)


def repeat(model: Decoder, token: int, n: int) -> None:
    """Fills the first n slots of the caches with one token, at the cost of one.

    Only keys and queries know their position. So the values of equal tokens are equal, whatever
    attention weighs them by their mean is the same, and so are all hidden states, layer by layer.
    """
    angles = model.rotation(torch.full((1, n), token), torch.tensor([0]))
    x = model.embed(torch.tensor([[token]]))
    for block in model.blocks:
        x = block(x, angles, torch.tensor([0]))


def finite(values: Tensor) -> Tensor:
    """The same logits or activations, if all are finite.

    Raises CheckpointError if one is NaN or infinite: no package could be judged by them.
    """
    if all_finite(values):
        return values
    raise CheckpointError(
        "the model computes values that are not finite: its weights overflow float32",
        hint="check the checkpoint: does it generate text with transformers?",
    )

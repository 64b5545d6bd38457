"""What a package must answer: logits and greedy tokens of the quantized model, computed in PyTorch.

Weights are decoded in blocks of rows each time they are needed, so the model is never in memory.
Two arithmetics are computed: `int16` as the operators define it (exact integer dot products of
levels and quantized activations) and `float32`. This is an implementation of its own: it shares the
decoder with the packages, and nothing of their products or attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from exporter.bundle import QuantizationLoss
from exporter.codec.encoder import release
from exporter.codec.native import NativeTensor
from exporter.encoded import EncodedMatrix, EncodedModel
from exporter.errors import CheckpointError
from exporter.models.llama import Layers, Llama, LlamaConfig, TorchAttention

if TYPE_CHECKING:
    from exporter.checkpoint import Checkpoint

Arithmetic = Literal["int16", "float32"]
ARITHMETICS: tuple[Arithmetic, Arithmetic] = ("int16", "float32")

BLOCK_WEIGHTS = (
    1 << 20
)  # decoded at a time: 4 MiB as float32, which stays in the cache and in the heap
MOST = 32512.0  # of a quantized activation: 256 * 127
PIECE_TOKENS = (
    256  # of a prompt computed at a time: attention over a full context takes much memory
)
LOSS_POSITIONS = 64  # whose logits are in memory at a time
LOSS_ROWS = 8  # of them compared at a time, in float64
SMALL_MODEL = (
    50_000_000  # parameters; for larger ones each answer takes seconds, so fewer are computed
)
SMALL_VOCABULARY = 32_768  # for larger ones each answer takes much space

TEXTS = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park "
    "with her dog.",
    "The quick brown fox jumps over the lazy dog. In 1969, three people flew to the moon; two of "
    "them walked on it. "
    "Water boils at 100 degrees Celsius, and ice melts at 0. What do you think happens when the "
    "wind turns to the "
    "north?",
)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int16 per token, as the operators: x float32 [T, K] -> (integers as float32 [T, K],
    scales [T, 1])."""
    largest = x.abs().amax(-1, keepdim=True)
    usable = largest >= 2.0**-100
    # A tensor over a tensor: PyTorch computes number / tensor by the reciprocal, which rounds
    # differently.
    inverse = torch.where(
        usable, torch.full_like(largest, MOST) / largest, torch.zeros_like(largest)
    )
    return torch.round(x * inverse), torch.where(usable, largest / MOST, torch.zeros_like(largest))


def integer_product(quantized: Tensor, levels: Tensor) -> Tensor:
    """Exact integer dot products as float64: [T, K] x [n, K] -> [T, n], both holding integers as
    float32.

    In any order: 65535 columns of 32512 * 128 are less than 2**53. `.float()` rounds such an
    integer once.
    """
    return quantized.double() @ levels.double().T


class QuantizedLinear(nn.Module):
    """y = W x for an encoded matrix, in one of the arithmetics."""

    def __init__(self, matrix: EncodedMatrix, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.matrix, self.arithmetic = matrix, arithmetic

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # [T, K]
        quantized, x_scales = (
            quantize_activations(flat) if self.arithmetic == "int16" else (flat, flat)
        )
        multiply = self._multiply_int16 if self.arithmetic == "int16" else self._multiply_float32
        y = torch.empty(flat.shape[0], self.matrix.rows)
        blob = self.matrix.blob()
        with NativeTensor(blob) as coded:
            scales = self.matrix.scales()
            for begin, end in row_blocks(self.matrix.rows, self.matrix.cols):
                levels = torch.from_numpy(coded.decode_rows(begin, end)).float()
                y[:, begin:end] = multiply(
                    quantized, x_scales, levels, torch.tensor(scales[begin:end])
                )
                release(blob, scales)
        return y.reshape(*x.shape[:-1], self.matrix.rows)

    def _multiply_int16(
        self, quantized: Tensor, x_scales: Tensor, levels: Tensor, scales: Tensor
    ) -> Tensor:
        if scales.shape[1] == 1:
            return integer_product(quantized, levels).float() * (x_scales * scales.T)
        groups = zip(
            quantized.split(self.matrix.group_size, 1),
            levels.split(self.matrix.group_size, 1),
            strict=True,
        )
        total = torch.zeros(quantized.shape[0], levels.shape[0])
        for g, (q, w) in enumerate(groups):  # from group 0 up: float sums depend on their order
            total += integer_product(q, w).float() * scales[:, g]
        return x_scales * total

    def _multiply_float32(self, x: Tensor, _: Tensor, levels: Tensor, scales: Tensor) -> Tensor:
        if scales.shape[1] == 1:
            return (x @ levels.T) * scales.T
        return x @ dequantized(levels, scales, self.matrix.group_size).T


class FloatLinear(nn.Module):
    """y = W x for a matrix of the checkpoint, read in blocks of rows."""

    def __init__(self, rows: Callable[[int, int], Tensor], out_features: int) -> None:
        super().__init__()
        self.rows, self.out_features = rows, out_features

    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty(*x.shape[:-1], self.out_features)
        for begin, end in row_blocks(self.out_features, x.shape[-1]):
            y[..., begin:end] = x @ self.rows(begin, end).T
        return y


class RowEmbedding(nn.Module):
    """ids int64 [1, S] -> float32 [1, S, cols], one row read at a time."""

    def __init__(self, row: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.row = row

    def forward(self, ids: Tensor) -> Tensor:
        return torch.stack([self.row(int(i)) for i in ids[0]])[None]


def dequantized(levels: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """levels [n, K] * scales [n, n_groups], each scale spread over its group."""
    return levels * scales.repeat_interleave(group_size, dim=1)[:, : levels.shape[1]]


def row_blocks(rows: int, cols: int) -> list[tuple[int, int]]:
    """Ranges of rows of about BLOCK_WEIGHTS weights."""
    step = max(1, BLOCK_WEIGHTS // cols)
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


@dataclass(frozen=True)
class QuantizedLayers:
    """`models.llama.Layers` over an encoded model."""

    encoded: EncodedModel
    vectors: dict[str, Tensor]
    arithmetic: Arithmetic

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        return QuantizedLinear(self.encoded.matrices[name], self.arithmetic)

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        matrix = self.encoded.matrices[name]
        blob, scales = matrix.blob(), matrix.scales()
        coded = NativeTensor(blob)

        def row(i: int) -> Tensor:
            levels = torch.from_numpy(coded.decode_rows(i, i + 1)).float()
            factors = torch.tensor(scales[i : i + 1])
            release(blob, scales)  # rows lie far apart, and the system maps what is around them too
            return dequantized(levels, factors, matrix.group_size)[0]

        return RowEmbedding(row)

    def attention(self, config: LlamaConfig, context: int) -> nn.Module:
        return TorchAttention(config, context)

    def vector(self, name: str) -> Tensor:
        return self.vectors[name]


@dataclass(frozen=True)
class OriginalLayers:
    """`models.llama.Layers` over the checkpoint itself, in float32."""

    checkpoint: Checkpoint

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        return FloatLinear(lambda begin, end: self.checkpoint.rows(name, begin, end), out_features)

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        return RowEmbedding(lambda i: self.checkpoint.rows(name, i, i + 1)[0])

    def attention(self, config: LlamaConfig, context: int) -> nn.Module:
        return TorchAttention(config, context)

    def vector(self, name: str) -> Tensor:
        return self.checkpoint.vector(name)


@dataclass(frozen=True)
class Prompt:
    """Token ids, and how many greedy tokens follow them (0: only the logits of the last
    position)."""

    tokens: tuple[int, ...]
    new_tokens: int


def make_prompts(
    sequences: Sequence[Sequence[int]], context: int, parameters: int, vocab_size: int
) -> list[Prompt]:
    """Prompts of several lengths from token sequences, and one that fills the context.

    Shorter than the context by as many tokens as are generated, so every one fits.
    """
    new = new_tokens(context, parameters, vocab_size)
    room = context - new
    lengths = sorted({min(length, room) for length in (1, 7, 24) if room > 0})
    prompts = [
        Prompt(tuple(_cycle(sequences[i % len(sequences)], n)), new) for i, n in enumerate(lengths)
    ]
    return [*prompts, Prompt(tuple(_cycle([t for s in sequences for t in s], context)), 0)]


def new_tokens(context: int, parameters: int, vocab_size: int) -> int:
    """How many greedy tokens follow a prompt."""
    small = parameters <= SMALL_MODEL and vocab_size <= SMALL_VOCABULARY
    return max(1, min(16 if small else 4, context // 4))


def loss_positions(parameters: int) -> int:
    """On how many positions quantization loss is measured at most."""
    return 256 if parameters <= SMALL_MODEL else 64


def _cycle(tokens: Sequence[int], n: int) -> list[int]:
    return [tokens[i % len(tokens)] for i in range(n)]


@torch.inference_mode()
def answers(model: Llama, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Logits float32 [max(new_tokens, 1), V] and the greedy token int64 of each row."""
    logits = [model.logits(hidden_states(model, prompt.tokens)[:, -1])[0]]
    for step in range(1, prompt.new_tokens):
        position = torch.tensor([len(prompt.tokens) + step - 1])
        logits.append(model(logits[-1].argmax().reshape(1, 1), position)[0])
    stacked = finite(torch.stack(logits))
    return stacked, stacked.argmax(-1)


def hidden_states(model: Llama, tokens: Sequence[int]) -> Tensor:
    """float32 [1, S, hidden] from position 0 on, computed in pieces."""
    pieces = torch.tensor([tokens]).split(PIECE_TOKENS, 1)
    return torch.cat(
        [model.hidden(piece, torch.tensor([i * PIECE_TOKENS])) for i, piece in enumerate(pieces)], 1
    )


def finite(logits: Tensor) -> Tensor:
    """The same logits. Raises CheckpointError if one is NaN or infinite: no package could be judged
    by them."""
    if (
        torch.stack(logits.aminmax()).isfinite().all()
    ):  # NaN passes through it, and nothing is copied
        return logits
    raise CheckpointError(
        "the model computes logits that are not finite: its weights overflow float32",
        do="check the checkpoint: does it generate text with transformers?",
    )


def write_reference(
    encoded: EncodedModel,
    vectors: dict[str, Tensor],
    config: LlamaConfig,
    context: int,
    prompts: list[Prompt],
    path: Path,
    progress: Callable[[int], None],
) -> None:
    """Answers all prompts and writes `reference.safetensors`; `progress` is told the tokens
    computed.

    Keys: `prompt.N` int64 [S]; `ARITHMETIC.N.logits` float32 [n, V] and `ARITHMETIC.N.tokens` int64
    [n]. The prompt that fills the context is answered in float32 only: it is there for the cache,
    and takes the longest.
    """
    from safetensors.torch import save

    tensors = {f"prompt.{i}": torch.tensor(p.tokens) for i, p in enumerate(prompts)}
    for arithmetic in ARITHMETICS:
        model = Llama(config, context, QuantizedLayers(encoded, vectors, arithmetic))
        for i, prompt in enumerate(prompts):
            if prompt.new_tokens or arithmetic == "float32":
                logits, tokens = answers(model, prompt)
                tensors |= {f"{arithmetic}.{i}.logits": logits, f"{arithmetic}.{i}.tokens": tokens}
                progress(len(prompt.tokens) + max(prompt.new_tokens, 1) - 1)
        del model  # its cache, before the next one's
    path.write_bytes(save(tensors))  # save_file would hide a full disk in an error of its own


@torch.inference_mode()
def quantization_loss(
    checkpoint: Checkpoint,
    encoded: EncodedModel,
    vectors: dict[str, Tensor],
    arithmetic: Arithmetic,
    tokens: Sequence[int],
) -> QuantizationLoss:
    """The quantized model against the float one over `tokens`: KL(original || quantized) in nats,
    top-1, perplexity."""
    config, n = checkpoint.config, len(tokens)
    all_layers: tuple[Layers, Layers] = (
        OriginalLayers(checkpoint),
        QuantizedLayers(encoded, vectors, arithmetic),
    )
    models = [Llama(config, n, layers) for layers in all_layers]
    hidden = [hidden_states(model, tokens) for model in models]
    following = torch.tensor(
        [*tokens[1:], 0]
    )  # nothing follows the last: what it would cost is left out below

    def compare(part: slice) -> list[tuple[Tensor, ...]]:
        logits = (
            finite(model.logits(h[:, part]))[0] for model, h in zip(models, hidden, strict=True)
        )
        rows = [*(x.split(LOSS_ROWS) for x in logits), following[part].split(LOSS_ROWS)]
        return [_compare(*block) for block in zip(*rows, strict=True)]

    blocks = [
        block
        for begin in range(0, n, LOSS_POSITIONS)
        for block in compare(slice(begin, begin + LOSS_POSITIONS))
    ]
    kl, same, log_original, log_quantized = (
        torch.cat(column) for column in zip(*blocks, strict=True)
    )
    return QuantizationLoss(
        positions=n,
        kl_mean=float(kl.mean()),
        top1_agreement=float(same.double().mean()),
        perplexity_original=float(torch.exp(-log_original[:-1].mean())),
        perplexity_quantized=float(torch.exp(-log_quantized[:-1].mean())),
    )


def _compare(
    original: Tensor, quantized: Tensor, following: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two times logits [n, V], and the ids that follow -> of each position: KL(original ||
    quantized) in nats, whether the largest agrees, and the log probabilities of the id that
    follows."""
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (original, quantized))
    same = original.argmax(-1) == quantized.argmax(-1)
    log_p, log_q = (x.gather(-1, following[:, None])[:, 0] for x in (p, q))
    return (p.exp() * (p - q)).sum(-1), same, log_p, log_q


def random_tokens(vocab_size: int, n: int) -> list[int]:
    """Fixed token ids for a model without a usable tokenizer."""
    return np.random.default_rng(0).integers(0, vocab_size, n).tolist()

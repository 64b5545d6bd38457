"""The loss by quantization: the quantized model against the original one, position by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exporter.bundle import Arithmetic, QuantizationLoss
from exporter.encoded import EncodedModel
from exporter.models.layers import Decoder
from exporter.reference.model import (
    CORE_TOKENS,
    OriginalLayers,
    QuantizedLayers,
    finite,
    hidden_states,
    on_all_cores,
)

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.reference.loss_text import LossText

HEAD_LOGITS = 1 << 24  # that are in memory at a time, of one model
COMPARED_LOGITS = 1 << 17  # that a thread compares at a time, at least: 1 MiB in float64
BLOCK_POSITIONS = 32  # in a row, whose mean is one sample of the standard error


@torch.inference_mode()
def quantization_loss(
    checkpoint: Checkpoint,
    encoded: EncodedModel,
    arithmetic: Arithmetic,
    text: LossText,
    progress: Callable[[int], None],
) -> QuantizationLoss:
    """The loss of the quantized model against the float one, over the windows of a text.

    It has KL(original || quantized) in nats with its standard error, top-1 agreement, and the
    perplexity of both, in which the last position of a window has no part. `progress` is told the
    number of positions compared.
    """
    context = max(map(len, text.windows))
    models = [
        checkpoint.network(context, OriginalLayers(checkpoint)),
        checkpoint.network(context, QuantizedLayers(encoded, arithmetic)),
    ]
    compared, step = [], head_positions(checkpoint.config.vocab_size)
    for window in text.windows:
        compared.append(_compare_window(models, window, step))
        progress(len(window))
    kl, same, log_p, log_q = torch.cat(compared, 1)
    blocks = [block for found in compared for block in found[0].split(BLOCK_POSITIONS)]
    return QuantizationLoss(
        text=text.name,
        positions=len(kl),
        kl_mean=float(kl.mean()),
        kl_standard_error=standard_error(blocks),
        top1_agreement=float(same.mean()),
        perplexity_original=float(torch.exp(-log_p.nanmean())),
        perplexity_quantized=float(torch.exp(-log_q.nanmean())),
    )


def standard_error(blocks: Sequence[Tensor]) -> float:
    """The standard error of the mean of all values, from blocks of neighbours, float64 [n] each.

    Values of neighbouring positions are correlated, means of blocks hardly: it is the deviation of
    the means over the square root of their number (batch means). Of one block it is 0.
    """
    means = torch.stack([block.mean() for block in blocks])
    return float(means.std(correction=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def head_positions(vocab_size: int) -> int:
    """Number of positions whose logits are computed together."""
    return max(CORE_TOKENS, HEAD_LOGITS // vocab_size)


def compared_positions(vocab_size: int) -> int:
    """Number of positions that a thread compares at a time."""
    return -(-COMPARED_LOGITS // vocab_size)


def _compare_window(models: Sequence[Decoder], window: Sequence[int], step: int) -> Tensor:
    """What `_compare` gives for all positions of a window; logits are made by `step` positions."""
    hidden = [hidden_states(model, window) for model in models]
    following = torch.tensor([*window[1:], 0])
    found = torch.empty(4, len(window), dtype=torch.float64)

    def compare(part: slice) -> None:
        logits = [finite(m.logits(h[:, part]))[0] for m, h in zip(models, hidden, strict=True)]
        size = compared_positions(logits[0].shape[-1])
        rows = (*logits, following[part], found[:, part].T)
        on_all_cores(_compare, *(x.split(size) for x in rows))

    for begin in range(0, len(window), step):
        compare(slice(begin, begin + step))
    found[2:, -1] = torch.nan  # nothing follows the last token
    return found


def _compare(original: Tensor, quantized: Tensor, following: Tensor, found: Tensor) -> None:
    """Compares two logits [n, V] of each position, and writes into `found`, float64 [n, 4].

    It gets KL(original || quantized) in nats, whether the largest logit agrees, and, of both
    models, the log probability of the id that follows. A thread that returned them in tensors of
    its own would keep its heap around each: 1.4 GB, with the vocabulary of Llama 3.2.
    """
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (original, quantized))
    found[:, 0] = (p.exp() * (p - q)).sum(-1)
    found[:, 1] = original.argmax(-1) == quantized.argmax(-1)
    for column, x in enumerate((p, q), 2):
        found[:, column] = x.gather(-1, following[:, None])[:, 0]

"""What quantization costs: the quantized model against the original one, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exporter.bundle import Arithmetic, QuantizationLoss
from exporter.encoded import EncodedModel
from exporter.models.layers import Layers

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
from exporter.reference.model import OriginalLayers, QuantizedLayers, finite, hidden_states

LOSS_POSITIONS = 64  # whose logits are in memory at a time
LOSS_ROWS = 8  # of them compared at a time, in float64


@torch.inference_mode()
def quantization_loss(
    checkpoint: Checkpoint,
    encoded: EncodedModel,
    arithmetic: Arithmetic,
    tokens: Sequence[int],
) -> QuantizationLoss:
    """The quantized model against the float one over `tokens`: KL(original || quantized) in nats,
    top-1, perplexity."""
    n = len(tokens)
    all_layers: tuple[Layers, Layers] = (
        OriginalLayers(checkpoint),
        QuantizedLayers(encoded, arithmetic),
    )
    models = [checkpoint.network(n, layers) for layers in all_layers]
    hidden = [hidden_states(model, tokens) for model in models]
    # Nothing follows the last: what it would cost is left out below.
    following = torch.tensor([*tokens[1:], 0])

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

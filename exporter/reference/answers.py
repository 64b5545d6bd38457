"""Answers that a package must give: logits and greedy tokens of the quantized model, in PyTorch.

Weights are decoded in blocks of rows each time they are needed, so the model is never in memory.
Two arithmetics are computed: `int16` as the operators define it (exact integer dot products of
levels and quantized activations) and `float32`. This is an implementation of its own: it shares the
decoder with the packages, and nothing of their products or attention.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exporter import bundle as bundles
from exporter.bundle import ARITHMETICS
from exporter.encoded import EncodedModel
from exporter.memory import release_free_memory
from exporter.models.layers import Decoder
from exporter.reference.loss import quantization_loss
from exporter.reference.model import (
    QuantizedLayers,
    finite,
    hidden_states,
)
from exporter.reference.prompts import (
    TEXTS,
    Prompt,
    loss_positions,
    make_prompts,
    token_sequences,
)

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig
    from exporter.progress import Progress


@torch.inference_mode()
def answers(model: Decoder, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Logits, float32 [max(new_tokens, 1), V], and the greedy token of each row, int64.

    Raises CheckpointError if a logit is NaN or infinite.
    """
    logits = [model.logits(hidden_states(model, prompt.tokens)[:, -1])[0]]
    for step in range(1, prompt.new_tokens):
        position = torch.tensor([len(prompt.tokens) + step - 1])
        logits.append(model(logits[-1].argmax().reshape(1, 1), position)[0])
    stacked = finite(torch.stack(logits))
    return stacked, stacked.argmax(-1)


def write_reference(
    checkpoint: Checkpoint,
    encoded: EncodedModel,
    context: int,
    prompts: list[Prompt],
    path: Path,
    progress: Callable[[int], None],
) -> None:
    """Answers all prompts and writes `reference.safetensors`.

    `progress` is told the number of tokens computed.

    Keys: `prompt.N` int64 [S]; `ARITHMETIC.N.logits` float32 [n, V] and `ARITHMETIC.N.tokens` int64
    [n]. The prompt that fills the context is answered in float32 only: it is there for the cache,
    and takes the longest.
    """
    from safetensors.torch import save

    tensors = {f"prompt.{i}": torch.tensor(p.tokens) for i, p in enumerate(prompts)}
    for arithmetic in ARITHMETICS:
        model = checkpoint.network(context, QuantizedLayers(encoded, arithmetic))
        for i, prompt in enumerate(prompts):
            if prompt.new_tokens or arithmetic == "float32":
                logits, tokens = answers(model, prompt)
                tensors |= {f"{arithmetic}.{i}.logits": logits, f"{arithmetic}.{i}.tokens": tokens}
                progress(len(prompt.tokens) + max(prompt.new_tokens, 1) - 1)
        del model  # its cache, before the next one's
    path.write_bytes(save(tensors))  # save_file would hide a full disk in an error of its own


def answer_prompts(
    checkpoint: Checkpoint,
    encoded: EncodedModel,
    context: int,
    config: ExportConfig,
    work: Path,
    progress: Progress,
) -> tuple[list[str], bundles.QuantizationLoss]:
    """Writes `reference.safetensors`.

    Returns how its prompts were made, and what quantization cost.
    """
    vocab_size = checkpoint.config.vocab_size
    texts, sequences = token_sequences(work, vocab_size, config.texts or TEXTS)
    # What lowering and the tokenizer leave is freed now, and not at some time in what follows.
    release_free_memory()
    prompts = make_prompts(sequences, context, checkpoint.parameters, vocab_size)
    total = sum(len(p.tokens) + max(p.new_tokens, 1) - 1 for p in prompts)
    total += sum(len(p.tokens) + p.new_tokens - 1 for p in prompts if p.new_tokens)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress("compute reference answers", done, total)

    advance(0)
    write_reference(checkpoint, encoded, context, prompts, work / bundles.REFERENCE, advance)
    progress("compare with the original", 0, 0)
    tokens = prompts[-1].tokens[: loss_positions(checkpoint.parameters)]
    return texts, quantization_loss(checkpoint, encoded, config.activations, tokens)

"""The memory that an export will take, said before it begins.

It is counted from the memory of the process as it is, what making each package takes and leaves
behind, and the largest of the other stages. The constants were measured with the versions of
PyTorch, ExecuTorch and coremltools that pyproject.toml names. What is said is meant to lie above
what happens, and close to it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.backends import registry
from exporter.backends.package import kv_cache_values
from exporter.codec.encoder import BLOCK_BYTES
from exporter.errors import OutOfSpaceError
from exporter.estimate.bundle import estimate_bundle
from exporter.estimate.rate import calibration_memory, fitting_memory, recovery_memory
from exporter.in_order import AT_ONCE
from exporter.memory import peak_bytes, resident_bytes
from exporter.quant.calibration import NONE
from exporter.quant.plan import fitted, plan_matrix, trained
from exporter.quant.tensor import effective_group_size
from exporter.reference.loss import compared_positions, head_positions
from exporter.reference.loss_text import WINDOW_TOKENS
from exporter.reference.model import BLOCK_WEIGHTS, PIECE_TOKENS
from exporter.reference.prompts import new_tokens

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig

MB = 10**6


@dataclass(frozen=True)
class Stage:
    """A stage of an export, and the most memory that the whole process takes in it, in bytes."""

    what: str
    n_bytes: int


PROGRAM_FORMAT = "pte"  # the one that a session runs
SESSION_BUFFERS = 50 * MB  # of the batches, and what the answers before left
TOKENIZER_GROWTH = 11.5  # times the size of tokenizer.json
MARGIN = 1.07  # heaps are not packed tightly


def check_memory(max_ram: int, checkpoint: Checkpoint, config: ExportConfig, context: int) -> None:
    """Checks that an export takes no more than `max_ram` bytes of memory.

    Raises OutOfSpaceError if it would.
    """
    most = max(stages(checkpoint, config, context), key=lambda stage: stage.n_bytes)
    if most.n_bytes > max_ram:
        smallest = -(-most.n_bytes // MB)
        raise OutOfSpaceError(
            f"--max-ram {max_ram / MB:,.0f} MB is too little: {most.what} takes the process up "
            f"to {smallest:,} MB",
            hint=f"give --max-ram {smallest}MB or more",
        )


def stages(checkpoint: Checkpoint, config: ExportConfig, context: int) -> list[Stage]:
    """The stages that take much memory.

    The process grows by what each package leaves behind.
    """
    at = resident_bytes()
    name = max(_matrices(checkpoint, config), key=lambda name: math.prod(checkpoint.shape(name)))
    found = [
        ("this process before any work", peak_bytes()),
        (f"coding {name}", at + _coding(checkpoint, config, name)),
    ]
    calibrated = config.calibration != NONE
    plans = fitted(config.quantization, checkpoint)
    if plans and calibrated:
        found.append(("calibrating", at + calibration_memory(checkpoint)))
    if plans and (calibrated or config.quantization.at_rate):
        found.append(("fitting levels", at + fitting_memory(checkpoint, plans)))
    if in_training := trained(plans):
        found.append(("training layers", at + recovery_memory(checkpoint, in_training)))
    for kind in (registry.load(name).MEMORY for name in config.formats):
        found.append((kind.what, at + kind.making.n_bytes(checkpoint.config)))
        at += kind.left.n_bytes(checkpoint.config)
    found.append(
        ("reading the tokenizer", at + int(TOKENIZER_GROWTH * _tokenizer_bytes(checkpoint)))
    )
    found.append(("computing the reference answers", at + _answers(checkpoint, context)))
    found.append(("answering in a session", at + _session(checkpoint, config, context)))
    found.append(("comparing with the original", at + _loss(checkpoint)))
    return [Stage(what, int(n_bytes * MARGIN)) for what, n_bytes in found]


def _tokenizer_bytes(checkpoint: Checkpoint) -> int:
    return checkpoint.text_files.get("tokenizer.json", 0)


def _matrices(checkpoint: Checkpoint, config: ExportConfig) -> list[str]:
    return [name for name in checkpoint.names if config.quantization.scheme_for(name)]


def _coding(checkpoint: Checkpoint, config: ExportConfig, name: str) -> int:
    """Memory of coding one matrix, in bytes.

    It is that of the blocks of weights being quantized, or of the blocks of levels with what they
    are coded and decoded to.
    """
    shape = checkpoint.shape(name)
    blocks = min(math.prod(shape), AT_ONCE * max(BLOCK_BYTES, shape[1]))
    return 12 * MB + 3 * blocks + 2 * _scales_bytes(checkpoint, config, name)


def _scales_bytes(checkpoint: Checkpoint, config: ExportConfig, name: str) -> int:
    plan, (rows, cols) = plan_matrix(config.quantization, checkpoint, name), checkpoint.shape(name)
    group_size = effective_group_size(plan.config.group_size if plan else None, cols)
    return 4 * rows * -(-cols // group_size)


def _cache_bytes(checkpoint: Checkpoint, context: int) -> int:
    """Size of a KV cache in float32, in bytes."""
    return 4 * kv_cache_values(checkpoint.config, context)


def _answers(checkpoint: Checkpoint, context: int) -> int:
    """Memory of computing the reference answers, in bytes.

    It is that of a model with its cache, and of the logits of six prompts: as made, of a prompt
    together, and in the file.
    """
    vocab = checkpoint.config.vocab_size
    rows = 6 * new_tokens(context, checkpoint.parameters, vocab) + 1
    return _model(checkpoint, context) + 3 * 4 * rows * vocab


def _session(checkpoint: Checkpoint, config: ExportConfig, context: int) -> int:
    """Memory of the exact answers, in bytes.

    It is that of the program, whose pages a session maps and reads all of, and of its cache. The
    system can drop the pages at any time; as long as it has room they count as this process's.
    """
    if PROGRAM_FORMAT not in config.formats or config.activations != "int16":
        return 0
    tensors = estimate_bundle(checkpoint, config, context).tensors
    mapped = sum(t.blob_bytes + t.scales_bytes for t in tensors)
    return SESSION_BUFFERS + mapped + _cache_bytes(checkpoint, context)


def _loss(checkpoint: Checkpoint) -> int:
    """Memory of comparing with the original, in bytes.

    It is that of two models with short caches, then of the logits of both for some positions, of
    which a few are compared in float64.
    """
    config = checkpoint.config
    n, vocab = min(config.max_position_embeddings, WINDOW_TOKENS), config.vocab_size
    compared = (os.cpu_count() or 1) * compared_positions(vocab)
    logits = 2 * 4 * min(n, head_positions(vocab)) * vocab + 6 * 8 * compared * vocab
    return _model(checkpoint, n) + _cache_bytes(checkpoint, n) + logits


def _model(checkpoint: Checkpoint, context: int) -> int:
    """Memory of one model in PyTorch, in bytes.

    It is that of its cache, a block of decoded weights, and a layer's activations for a piece of a
    prompt.
    """
    config, piece = checkpoint.config, min(context, PIECE_TOKENS)
    largest = max(math.prod(shape) for shape in map(checkpoint.shape, checkpoint.names))
    queries = config.num_attention_heads * config.head_dim
    mlp = piece * (4 * config.intermediate_size + 6 * config.hidden_size)
    attention = 2 * context * queries + 2 * piece * context + 4 * piece * queries
    modules = 6 * MB + 600_000 * config.num_hidden_layers
    return (
        modules
        + _cache_bytes(checkpoint, context)
        + 6 * min((os.cpu_count() or 1) * BLOCK_WEIGHTS, largest)
        + 4 * (mlp + attention)
    )

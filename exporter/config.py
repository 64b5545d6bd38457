"""The configuration of an export: what to make of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.bundle import Arithmetic
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.codec.encoder import Codec
    from exporter.quant.config import QuantConfig


MIN_CONTEXT = 8
DEFAULT_CONTEXT = 2048
DEFAULT_CHUNK_BYTES = 1_000_000_000


@dataclass(frozen=True)
class ExportConfig:
    """What to make of a checkpoint. `context` None is DEFAULT_CONTEXT, or the model's own if that
    is less.

    `formats` are the packages to make: "pte", "mlprogram", "custom-op". `chunk_bytes` limits each
    weight file of an ML Program. `texts` are what the answers and the loss are measured on; by
    default those of exporter.reference.
    """

    quantization: QuantConfig
    formats: tuple[str, ...] = ("pte",)
    context: int | None = None
    codec: Codec = "auto"
    activations: Arithmetic = "int8"
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    with_native: bool = False
    texts: tuple[str, ...] = ()


def context_of(config: ExportConfig, checkpoint: Checkpoint) -> int:
    """Positions of the cache. Raises UsageError if the model has not as many."""
    limit = checkpoint.config.max_position_embeddings
    context = min(DEFAULT_CONTEXT, limit) if config.context is None else config.context
    if not MIN_CONTEXT <= context <= limit:
        raise UsageError(
            f"--context must be from {MIN_CONTEXT} to {limit} (max_position_embeddings), got "
            f"{context}"
        )
    return context

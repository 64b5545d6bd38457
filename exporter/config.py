"""The configuration of an export: what to make of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.bundle import ACTIVATIONS, BACKENDS, KV_TYPES
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.bundle import Activations, KVType
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.codec.encoder import Codec
    from exporter.quant.config import QuantConfig


MIN_CONTEXT = 8
DEFAULT_CONTEXT = 2048
DEFAULT_CHUNK_BYTES = 1_000_000_000
CODECS = ("auto", "lzw", "raw")


@dataclass(frozen=True)
class ExportConfig:
    """The configuration of an export: what to make of a checkpoint.

    `context` None is DEFAULT_CONTEXT, or the model's own if that is less. `formats` are the
    packages to make: "pte", "mlprogram", "custom-op". `chunk_bytes` limits each weight file of an
    ML Program. `kv_cache` is the type of the cache of a `.pte`. `loss_text` is a text in UTF-8 that
    the loss is measured on; by default that of exporter.reference. `revision` is a branch, tag or
    commit of a model on the hub; `adapter` the folder or hub id of a LoRA adapter to merge. Raises
    UsageError with everything that is wrong.
    """

    quantization: QuantConfig
    formats: tuple[str, ...] = ("pte",)
    context: int | None = None
    codec: Codec = "auto"
    activations: Activations = "int16"
    kv_cache: KVType = "float16"
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    with_native: bool = False
    loss_text: Path | None = None
    revision: str | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be one of {', '.join(known)}; got {value!r}"
            for name, value, known in (
                *(("a format", value, tuple(BACKENDS)) for value in self.formats),
                ("codec", self.codec, CODECS),
                ("activations", self.activations, ACTIVATIONS),
                ("kv_cache", self.kv_cache, KV_TYPES),
            )
            if value not in known
        ]
        if not self.formats:
            problems.append(f"formats must name at least one of {', '.join(BACKENDS)}")
        if self.chunk_bytes < 1:
            problems.append(f"chunk_bytes must be a positive number, got {self.chunk_bytes}")
        if problems:
            raise UsageError("the options of the export are wrong", problems=problems)


def context_of(config: ExportConfig, checkpoint: Checkpoint) -> int:
    """Number of positions of the cache.

    Raises UsageError if it is below MIN_CONTEXT or the model has not as many.
    """
    limit = checkpoint.config.max_position_embeddings
    context = min(DEFAULT_CONTEXT, limit) if config.context is None else config.context
    if not MIN_CONTEXT <= context <= limit:
        raise UsageError(
            f"--context must be from {MIN_CONTEXT} to {limit} (max_position_embeddings), got "
            f"{context}"
        )
    return context

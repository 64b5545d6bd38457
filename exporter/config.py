"""The configuration of an export: what to make of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
    commit of a model on the hub; `adapter` the folder or hub id of a LoRA adapter to merge.
    `size_bytes` stands for the `bits_per_weight` of the quantization: see `at_size`. `calibration`
    is the text file that levels are fitted by (those at a rate, and ternary ones), "none" for none;
    None is the text that ships.
    `calibration_cache` is a folder for what the text shows at any rate. `save_plan` is a file for
    the plan that was found (exporter.quant.rules).
    Raises UsageError with everything that is wrong.
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
    size_bytes: int | None = None
    calibration: str | None = None
    calibration_cache: Path | None = None
    save_plan: Path | None = None

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
        problems += self._rate_problems()
        if problems:
            raise UsageError("the options of the export are wrong", problems=problems)

    def _rate_problems(self) -> list[str]:
        """Problems of the options that come with a rate; empty if there are none."""
        from exporter.quant.calibration import NONE

        rate, size = self.quantization.at_rate, self.size_bytes
        checks = {
            "size_bytes excludes bits_per_weight and a plan": size is not None
            and (rate or bool(self.quantization.rules)),
            f"size_bytes must be a positive number, got {size}": size is not None and size < 1,
            "calibration is for a rate, and for ternary without a sparsity: give one of them": (
                self.calibration is not None and not self.quantization.is_fitted and size is None
            ),
            "recover trains on a text: leave calibration none away": (
                self.quantization.recovery_steps > 0 and self.calibration == NONE
            ),
            "raw codes have no rate: leave codec away": (
                self.codec == "raw" and (rate or size is not None)
            ),
        }
        return [problem for problem, wrong in checks.items() if wrong]

    @property
    def matrix_codec(self) -> Codec:
        """The codec of the matrices: who asks for a rate wants what is smallest."""
        at_rate = self.quantization.at_rate
        return "smallest" if at_rate and self.codec == "auto" else self.codec


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


def at_size(config: ExportConfig, checkpoint: Checkpoint) -> ExportConfig:
    """The same configuration, with bits per weight in the place of a size.

    Raises UsageError for a size that no rate of the scheme leads to.
    """
    if config.size_bytes is None:
        return config
    from exporter.quant.plan import names_at_rate

    any_rate = replace(config.quantization, bits_per_weight=4.0)
    shapes = map(checkpoint.shape, names_at_rate(any_rate, checkpoint))
    bits = 8 * config.size_bytes / max(1, sum(map(math.prod, shapes)))
    try:
        at_rate = replace(any_rate, bits_per_weight=round(bits, 6))
    except UsageError as error:
        what = f"{config.size_bytes / 1e6:.1f} MB for the weights is {bits:.2f} bits for each"
        raise UsageError(what, problems=error.problems, hint="give another size") from None
    return replace(config, quantization=at_rate, size_bytes=None)

"""The interface that all package formats share, what they are made from, and what they report.

A format is a module that `registry` names, with the members of `PackageFormat`. It owns what a
package of that kind is: its name, its checks, its contents, and what an export of it takes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from exporter.bundle import (
    EMBEDDING,
    HEAD,
    NETWORK_VERSION,
    Artifact,
    FileEntry,
    KVType,
    LedgerRow,
    Network,
    TensorEntry,
)
from exporter.models.config import ModelConfig
from exporter.progress import Progress
from exporter.quant.plan import summary

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig
    from exporter.encoded import EncodedModel


@dataclass(frozen=True)
class PackageInput:
    """The input that a package is made from.

    `work` is the directory of the bundle in the making.
    """

    checkpoint: Checkpoint
    encoded: EncodedModel
    context: int
    config: ExportConfig
    work: Path


@dataclass(frozen=True)
class Emitted:
    """A package that was written, with its ledger rows and the files that are still to be expanded.

    `expanded` lists the files that `tinyqmoe expand` will make of the package.
    """

    artifact: Artifact
    ledger: list[LedgerRow]
    expanded: list[FileEntry]


@dataclass(frozen=True)
class Growth:
    """Growth of the process, in MB: imported packages, and what follows the layers of a model."""

    imports: float
    layer: float

    def n_bytes(self, model: ModelConfig) -> int:
        """Growth for a model, in bytes."""
        return int((self.imports + self.layer * model.num_hidden_layers) * 10**6)


@dataclass(frozen=True)
class ExportMemory:
    """Memory that making a package takes at most, and what of it stays afterwards."""

    what: str
    making: Growth
    left: Growth


@dataclass(frozen=True)
class PlannedModel:
    """A model before its export: its shape, and the matrices that the export would write."""

    config: ModelConfig
    context: int
    activations: str
    kv_cache: KVType
    tensors: Sequence[TensorEntry]


class PackageFormat(Protocol):
    """The members of a format's module.

    TOOL is the distribution that makes the package.
    """

    NAME: str
    TOOL: str
    MEMORY: ExportMemory

    def supports(self, family: str) -> str | None:
        """The reason why models of a family cannot be packed, or None."""

    def check(self, config: ExportConfig, checkpoint: Checkpoint) -> None:
        """Refuses, before any work, what the format cannot hold.

        Raises UsageError.
        """

    def emit(self, source: PackageInput, progress: Progress) -> Emitted:
        """Writes the package into the bundle.

        Raises ExportError if it is not what was asked.
        """

    def estimate(self, planned: PlannedModel) -> Artifact:
        """The package that an export would write, as far as shapes tell."""


def kv_cache_values(config: ModelConfig, context: int) -> int:
    """Number of values in the KV cache: keys and values of every layer, position and head."""
    return 2 * config.num_hidden_layers * context * config.num_key_value_heads * config.head_dim


def network_entry(config: ModelConfig, context: int) -> Network:
    """The sizes of a model with a cache of `context` slots."""
    return Network(
        version=NETWORK_VERSION,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        context=context,
        eps=_shortest(config.rms_norm_eps),
    )


def _shortest(value: float) -> float:
    """The shortest decimal that is rounded to the same float32, which nine digits always are."""
    wanted = struct.pack("<f", value)
    digits = (float(f"{struct.unpack('<f', wanted)[0]:.{n}g}") for n in range(1, 10))
    return next(decimal for decimal in digits if struct.pack("<f", decimal) == wanted)


def matrix_rows(source: PackageInput, *, scales: bool = True) -> dict[str, int]:
    """Sizes of the coded matrices in bytes, by kind, scheme and codec.

    With `scales`, one entry more counts the scales of all matrices.
    """
    rows: dict[str, int] = {}
    for m in source.encoded.matrices.values():
        kind = "embedding and head" if m.name in (EMBEDDING, HEAD) else "layers"
        what = f"{kind}: {m.scheme} levels, {m.codec} {m.code_bits} bit"
        rows[what] = rows.get(what, 0) + m.blob_bytes
    return rows | (
        {"scales": sum(m.scales_bytes for m in source.encoded.matrices.values())} if scales else {}
    )


def rows_of(path: Path, name: str, parts: dict[str, int], rest: str) -> list[LedgerRow]:
    """Ledger rows of the parts of one file, and one row for what is left of it."""
    rows = [LedgerRow(name, what, n) for what, n in parts.items()]
    return [*rows, LedgerRow(name, rest, path.stat().st_size - sum(parts.values()))]


def file_rows(work: Path, folder: Path, what: str) -> list[LedgerRow]:
    """Ledger rows of a folder, one for each file."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return [LedgerRow(f.relative_to(work).as_posix(), what, f.stat().st_size) for f in files]


def metadata(source: PackageInput, name: str) -> dict[str, str]:
    """The metadata that Xcode shows of a Core ML package.

    The model's licence is the checkpoint's, not ours to state.
    """
    import importlib.metadata

    q = summary(source.config.quantization, source.checkpoint)
    config, bos = source.checkpoint.config, source.checkpoint.bos_token_id
    return {
        "author": "exported by tiny-qmoe",
        "license": "that of the checkpoint it was made from",
        "versionString": importlib.metadata.version("tiny-qmoe"),
        "shortDescription": f"{source.checkpoint.path.resolve().name}, {q['scheme']} weights, "
        f"context {source.context}",
        "tinyqmoe.format": name,
        "tinyqmoe.scheme": q["scheme"],
        "tinyqmoe.embedding": q["embedding"],
        "tinyqmoe.context": str(source.context),
        "tinyqmoe.vocab_size": str(config.vocab_size),
        "tinyqmoe.bos_token_id": "" if bos is None else str(bos),
        "tinyqmoe.eos_token_ids": ",".join(map(str, source.checkpoint.eos_token_ids)),
        "tinyqmoe.coremltools": importlib.metadata.version("coremltools"),
    }

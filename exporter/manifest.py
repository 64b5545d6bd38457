"""The manifest of an export: its entries, and the check that they match."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import bundle as bundles
from exporter.backends import registry
from exporter.backends.package import network_entry
from exporter.bundle import (
    FileEntry,
    Interface,
    LedgerRow,
    Manifest,
    ModelEntry,
    QuantizationLoss,
    TensorEntry,
)
from exporter.bundle.relations import relation_problems
from exporter.chat_format import chat_format
from exporter.errors import ExportError
from exporter.quant import plan

if TYPE_CHECKING:
    from exporter.backends.package import Emitted, PackageInput
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.encoded import EncodedMatrix


def write_for_session(source: PackageInput, emitted: list[Emitted]) -> None:
    """Writes what a session reads of a manifest, in the place of the whole one.

    The answers come before the manifest, which has their SHA-256, and some are a session's.
    """
    read = {
        "network": asdict(network_entry(source.checkpoint.config, source.context)),
        "tensors": [asdict(_tensor_entry(m)) for m in source.encoded.matrices.values()],
        "artifacts": [asdict(e.artifact) for e in emitted],
    }
    (source.work / bundles.MANIFEST).write_text(json.dumps(read), encoding="utf-8")


def write(
    source: PackageInput,
    emitted: list[Emitted],
    prompts: list[str],
    loss: QuantizationLoss,
    source_sha256: dict[str, str],
) -> None:
    """Writes the manifest of a bundle whose other files are all there.

    source_sha256: as in `ModelEntry`. Raises ExportError if it does not match them.
    """
    work, config = source.work, source.config
    files: list[FileEntry] = []
    chat = chat_format(work, meanwhile=lambda: files.extend(_files(work)))
    manifest = Manifest(
        schema_version=bundles.SCHEMA_VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tools={name: importlib.metadata.version(name) for name in registry.tools(config.formats)},
        model=model_entry(source.checkpoint, source_sha256),
        quantization=plan.summary(config.quantization, source.checkpoint),
        rate=source.encoded.rate,
        quantization_loss=loss,
        interface=interface(source.checkpoint, source.context),
        network=network_entry(source.checkpoint.config, source.context),
        artifacts=[e.artifact for e in emitted],
        prompts=prompts,
        chat=chat,
        warnings=[
            *source.checkpoint.warnings,
            *plan.warnings(config.quantization, source.checkpoint),
            *_rounding_warnings(source, emitted),
            *loss_warnings(loss),
        ],
        tensors=[_tensor_entry(m) for m in source.encoded.matrices.values()],
        ledger=_ledger(work, [row for e in emitted for row in e.ledger]),
        files=files,
        expanded=[file for e in emitted for file in e.expanded],
    )
    check_relations(manifest)
    (work / bundles.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _files(work: Path) -> list[FileEntry]:
    """The files of a bundle but its manifest."""
    return [f for f in bundles.file_entries(work) if f.path != bundles.MANIFEST]


def _tensor_entry(m: EncodedMatrix) -> TensorEntry:
    return TensorEntry(
        name=m.name,
        rows=m.rows,
        cols=m.cols,
        scheme=m.scheme,
        n_levels=m.n_levels,
        group_size=m.group_size,
        scale_type=m.scale_type,
        codec=m.codec,
        code_bits=m.code_bits,
        cap=m.cap,
        bits_per_weight=round(m.bits_per_weight, 6),
        entropy_bits=round(m.entropy_bits, 6),
        zeros=round(m.zeros, 6),
        levels_crc32=m.levels_crc32,
        blob_bytes=m.blob_bytes,
        scales_bytes=m.scales_bytes,
        sizes_bytes=m.sizes_bytes,
        own_levels=m.own_levels,
    )


def model_entry(checkpoint: Checkpoint, source_sha256: dict[str, str]) -> ModelEntry:
    """The model that a bundle is made from."""
    name = checkpoint.origin.repo_id or checkpoint.path.resolve().name
    return ModelEntry(
        name,
        checkpoint.parameters,
        checkpoint.source_bytes,
        source_sha256,
        checkpoint.config_dict,
        checkpoint.origin,
    )


def interface(checkpoint: Checkpoint, context: int) -> Interface:
    """What all packages share, as the checkpoint has it."""
    return Interface(
        context,
        checkpoint.config.vocab_size,
        checkpoint.bos_rule,
        checkpoint.bos_token_id,
        list(checkpoint.eos_token_ids),
    )


def loss_warnings(loss: QuantizationLoss) -> list[str]:
    """What will disappoint about a quantized model that is far from the original."""
    if not loss.is_large:
        return []
    return [
        f"the loss by quantization is large: {loss.kl_words}, the same best token in "
        f"{100 * loss.top1_agreement:.0f} % of them; int8 loses the least"
    ]


def _rounding_warnings(source: PackageInput, emitted: list[Emitted]) -> list[str]:
    """What becomes of the scales of a checkpoint in packages of half precision."""
    half = [e.artifact.path for e in emitted if e.artifact.activations == bundles.HALF]
    own = [m for m in source.encoded.matrices.values() if half and m.own_levels]
    rounded = [m.name for m in own if not m.scales_fit_half]
    if not rounded:
        return []
    return [
        f"{', '.join(half)}: half precision does not hold the scales of {len(rounded)} matrices "
        f"exactly, such as {rounded[0]}: they are rounded to 11 bits there"
    ]


def _ledger(work: Path, told_by_backends: list[LedgerRow]) -> list[LedgerRow]:
    """Ledger rows of every byte of a bundle.

    Packages are listed by part, as their backends say, every other file as a whole.
    """
    ledger, told = list(told_by_backends), {row.file for row in told_by_backends}
    descriptions = {bundles.REFERENCE: "answers of the quantized model, for parity"}
    for name in bundles.bundle_files(work):
        if name not in told:
            other = (
                "C++ sources of the operators"
                if name.startswith("native/")
                else "tokenizer and prompts"
            )
            ledger.append(
                LedgerRow(name, descriptions.get(name, other), (work / name).stat().st_size)
            )
    return ledger


def check_relations(manifest: Manifest) -> None:
    """Checks what everybody checks who opens the bundle, as `relation_problems` says.

    Raises ExportError with all that is wrong.
    """
    if problems := relation_problems(manifest):
        what = "the manifest does not match what was written"
        raise ExportError(what, problems=problems, hint="report this as a bug")

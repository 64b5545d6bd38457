"""The packages of a bundle, by format: which backend makes each, and what the manifest and the
ledger say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import bundle as bundles
from exporter.bundle import Artifact, FileEntry, LedgerRow, Place

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.checkpoint import Checkpoint
    from exporter.encoded import EncodedModel
    from exporter.pipeline import ExportConfig

Progress = Callable[[str, int, int], None]

CUSTOM_OP_PACKAGE = "model-custom-op.mlpackage"
CUSTOM_OP_TOKENS = 128  # of the longest call: scores of attention are kept for so many
_CUSTOM_OP_REST = {
    ".mlmodel": "custom layers: graph, package",
    ".json": "package",
    ".weights": "alignment",
}


@dataclass(frozen=True)
class Source:
    """What a package is made of, and where: `work` is the directory of the bundle being made."""

    checkpoint: Checkpoint
    encoded: EncodedModel
    vectors: dict[str, Tensor]  # norm weights, float32
    context: int
    config: ExportConfig
    work: Path


@dataclass(frozen=True)
class Emitted:
    """A package that was written, its rows in the ledger, and the files `tinyqmoe expand` will make
    of it."""

    artifact: Artifact
    ledger: list[LedgerRow]
    expanded: list[FileEntry]


def check(config: ExportConfig, checkpoint: Checkpoint) -> None:
    """Refuses before any work what a format cannot hold. Raises UsageError."""
    if "mlprogram" in config.formats:
        from exporter.backends import coreml_mlprogram

        schemes = {name: config.quantization.config_for(name) for name in checkpoint.names}
        coreml_mlprogram.check_groups(
            {
                name: (checkpoint.shape(name)[1], scheme.group_size)
                for name, scheme in schemes.items()
                if scheme
            }
        )


def emit(name: str, source: Source, progress: Progress) -> Emitted:
    """Writes one package into the bundle. Raises ExportError if it is not what was asked for."""
    return {"pte": _pte, "mlprogram": _mlprogram, "custom-op": _custom_op}[name](source, progress)


def tools(formats: Sequence[str]) -> list[str]:
    """Distributions whose versions made the packages."""
    backends = {bundles.BACKENDS[name] for name in formats}
    return [
        "tiny-qmoe",
        "torch",
        *sorted({"executorch": "executorch", "coreml": "coremltools"}[b] for b in backends),
    ]


def _pte(source: Source, progress: Progress) -> Emitted:
    from exporter.backends import executorch

    progress("lower to ExecuTorch", 0, 0)
    checkpoint = source.checkpoint
    activations = source.config.activations
    config = executorch.ProgramConfig(
        source.context,
        activations == "int16",
        checkpoint.config.bos_token_id,
        checkpoint.eos_token_ids,
    )
    path = source.work / bundles.PROGRAM
    emitted = executorch.emit(source.encoded, source.vectors, checkpoint.config, config, path)
    places = {
        m.name: Place(
            path.name,
            "tqlz",
            emitted.blob_offsets[m.name],
            m.blob_bytes,
            emitted.scales_offsets[m.name],
        )
        for m in source.encoded.matrices.values()
    }
    artifact = Artifact(
        format="pte",
        path=path.name,
        files=[path.name],
        activations=activations,
        prefill_tokens=config.prefill_tokens,
        kv_cache_bytes=4 * _kv_values(source),
        operators=dict(sorted(emitted.operators.items())),
        places=places,
        details={"arena_bytes": emitted.arena_bytes, "delegates": emitted.delegates},
    )
    rows = _matrix_rows(source) | {"norms, rope frequencies": emitted.constants_bytes}
    return Emitted(artifact, _rows_of(path, path.name, rows, "graph, delegates, alignment"), [])


def _mlprogram(source: Source, progress: Progress) -> Emitted:
    from exporter.backends import coreml, coreml_mlprogram

    stage = "write the ML Program"
    progress(stage, 0, 0)
    config = coreml_mlprogram.MLProgramConfig(source.context, source.config.chunk_bytes)
    emitted = coreml_mlprogram.emit(
        source.encoded,
        source.vectors,
        source.checkpoint.config,
        config,
        source.work,
        _metadata(source, "mlprogram"),
        lambda done, total: progress(stage, done, total),
    )
    template = source.work / emitted.recipe.template
    coded, recipe = (
        source.work / emitted.recipe.coded_file,
        source.work / coreml_mlprogram.RECIPE_FILE,
    )
    rows = _file_rows(source.work, template, "ML Program: template of the package")
    rows += _rows_of(
        coded, coded.name, _matrix_rows(source, scales=False), "float16 scales, norms, rope, layout"
    )
    rows.append(LedgerRow(recipe.name, "how to rebuild the weight file", recipe.stat().st_size))
    artifact = Artifact(
        format="mlprogram",
        path=emitted.recipe.package,
        files=list(dict.fromkeys(row.file for row in rows)),
        activations="float16",
        prefill_tokens=config.prefill_tokens,
        kv_cache_bytes=2 * _kv_values(source),
        operators=emitted.operators,
        places=emitted.places,
        details={
            "recipe": recipe.name,
            "specification_version": emitted.specification_version,
            "minimum_deployment_target": "iOS 18",
            "weight_files_bytes": sum(file.n_bytes for file in emitted.recipe.weight_files),
        },
    )
    package = emitted.recipe.package
    expanded = [
        FileEntry(f"{package}/{file.path}", file.n_bytes, file.sha256)
        for file in emitted.recipe.weight_files
    ]
    expanded += [
        FileEntry(
            f"{package}/{name}", (template / name).stat().st_size, bundles.sha256(template / name)
        )
        for name in ("Manifest.json", coreml.MODEL_FILE)
    ]
    return Emitted(artifact, rows, expanded)


def _custom_op(source: Source, progress: Progress) -> Emitted:
    from exporter.backends import coreml_custom_op

    progress("write the Core ML package with custom layers", 0, 0)
    activations, max_tokens = source.config.activations, min(source.context, CUSTOM_OP_TOKENS)
    config = coreml_custom_op.CustomOpConfig(source.context, max_tokens, activations == "int16")
    package = source.work / CUSTOM_OP_PACKAGE
    emitted = coreml_custom_op.emit(
        source.encoded,
        source.vectors,
        source.checkpoint.config,
        config,
        package,
        _metadata(source, "custom-op"),
    )
    weights_file = next(iter(emitted.places.values())).file
    rows = []
    for file in emitted.files:
        name = file.as_posix()
        parts = _matrix_rows(source) if name == weights_file else {}
        if name.endswith(".mlmodel"):
            parts["norms, rope tables"] = emitted.constants_bytes
        rows += _rows_of(source.work / file, name, parts, _CUSTOM_OP_REST[file.suffix])
    artifact = Artifact(
        format="custom-op",
        path=package.name,
        files=[file.as_posix() for file in emitted.files],
        activations=activations,
        prefill_tokens=max_tokens,
        kv_cache_bytes=4 * _kv_values(source),
        operators=emitted.layers,
        places=emitted.places,
        details={
            "specification_version": emitted.specification_version,
            "minimum_deployment_target": "iOS 13",
            "inputs": emitted.inputs,
            "outputs": emitted.outputs,
        },
    )
    return Emitted(artifact, rows, [])


def _kv_values(source: Source) -> int:
    config = source.checkpoint.config
    return (
        2 * config.num_hidden_layers * source.context * config.num_key_value_heads * config.head_dim
    )


def _matrix_rows(source: Source, *, scales: bool = True) -> dict[str, int]:
    """Bytes of the coded matrices by kind, scheme and codec."""
    rows: dict[str, int] = {}
    for m in source.encoded.matrices.values():
        kind = (
            "embedding and head"
            if m.name.split(".")[-2] in ("embed_tokens", "lm_head")
            else "layers"
        )
        what = f"{kind}: {m.scheme} levels, {m.codec} {m.code_bits} bit"
        rows[what] = rows.get(what, 0) + m.blob_bytes
    return rows | (
        {"scales": sum(m.scales_bytes for m in source.encoded.matrices.values())} if scales else {}
    )


def _rows_of(path: Path, name: str, parts: dict[str, int], rest: str) -> list[LedgerRow]:
    """The parts of one file, and what is left of it."""
    rows = [LedgerRow(name, what, n) for what, n in parts.items()]
    return [*rows, LedgerRow(name, rest, path.stat().st_size - sum(parts.values()))]


def _file_rows(work: Path, folder: Path, what: str) -> list[LedgerRow]:
    """One row for each file of a folder."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return [LedgerRow(f.relative_to(work).as_posix(), what, f.stat().st_size) for f in files]


def _metadata(source: Source, name: str) -> dict[str, str]:
    """What Xcode shows of a Core ML package. The model's licence is the checkpoint's, not ours to
    state."""
    import importlib.metadata

    q = source.config.quantization
    config = source.checkpoint.config
    return {
        "author": "exported by tiny-qmoe",
        "license": "that of the checkpoint it was made from",
        "versionString": importlib.metadata.version("tiny-qmoe"),
        "shortDescription": f"{source.checkpoint.path.resolve().name}, {q.scheme} weights, "
        f"context {source.context}",
        "tinyqmoe.format": name,
        "tinyqmoe.scheme": q.scheme,
        "tinyqmoe.embedding": q.embedding,
        "tinyqmoe.context": str(source.context),
        "tinyqmoe.vocab_size": str(config.vocab_size),
        "tinyqmoe.bos_token_id": "" if config.bos_token_id is None else str(config.bos_token_id),
        "tinyqmoe.eos_token_ids": ",".join(map(str, source.checkpoint.eos_token_ids)),
        "tinyqmoe.coremltools": importlib.metadata.version("coremltools"),
    }

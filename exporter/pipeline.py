"""The main path: a checkpoint goes in, a bundle comes out. Read `export` first."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import bundle as bundles
from exporter.bundle import (
    Artifact,
    Bundle,
    Interface,
    LedgerRow,
    Manifest,
    ModelEntry,
    Place,
    TensorEntry,
)
from exporter.errors import ExportError, OutOfSpaceError, UsageError

if TYPE_CHECKING:
    from exporter.checkpoint import Checkpoint
    from exporter.codec.encoder import Codec
    from exporter.encoded import EncodedMatrix, EncodedModel
    from exporter.partial import Fingerprint, Workplace
    from exporter.quant import QuantConfig
    from exporter.reference import Arithmetic

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 where it is not known."""

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
    activations: Arithmetic = "int16"
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    with_native: bool = False
    texts: tuple[str, ...] = ()


def export(
    model: str | Path,
    out: Path,
    config: ExportConfig,
    progress: Progress,
    *,
    force: bool = False,
    resume: bool = False,
    max_ram: int | None = None,
) -> Bundle:
    """Checkpoint -> quantized levels -> TQLZ blobs -> packages -> answers of the quantized model ->
    bundle at `out`.

    Nothing is at `out` unless all of it succeeded. `resume` goes on from the matrices that an
    interrupted export has coded. `max_ram` limits the memory of this process, in bytes. Raises the
    errors of exporter.errors.
    """
    from exporter import forecast, packages, partial
    from exporter.checkpoint import Checkpoint

    bundles.check_target(out, force=force)  # before a download of gigabytes
    checkpoint = Checkpoint.open(model, progress=progress)
    context = context_of(config, checkpoint)
    packages.check(config, checkpoint)
    if max_ram is not None:
        forecast.check_memory(max_ram, checkpoint, config, context)
    with (
        partial.workplace(
            out, _fingerprint(checkpoint, config), force=force, resume=resume
        ) as place,
        _memory_errors(),
    ):
        work = place.bundle
        _check_disk(checkpoint, config, place)
        checkpoint.check_finite(lambda _, done, total: progress("check weights", done, total))
        encoded = _encode(checkpoint, config, place.coded, progress)
        vectors = {
            name: checkpoint.vector(name)
            for name in checkpoint.names
            if len(checkpoint.shape(name)) == 1
        }
        source = packages.Source(checkpoint, encoded, vectors, context, config, work)
        emitted = [packages.emit(name, source, progress) for name in config.formats]
        prompts, loss = _answer(checkpoint, encoded, vectors, context, config, work, progress)
        for file in checkpoint.tokenizer_files:
            shutil.copyfile(file, work / file.name)
        if config.with_native:
            _copy_native(work / "native")
        progress("write manifest", 0, 0)
        manifest = Manifest(
            schema_version=bundles.SCHEMA_VERSION,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            tools={
                name: importlib.metadata.version(name) for name in packages.tools(config.formats)
            },
            model=_model_entry(checkpoint),
            quantization=config.quantization.to_dict(),
            quantization_loss=loss,
            interface=_interface(checkpoint, context),
            artifacts=[e.artifact for e in emitted],
            prompts=prompts,
            tensors=[_tensor_entry(m) for m in encoded.matrices.values()],
            ledger=_ledger(work, [row for e in emitted for row in e.ledger]),
            files=bundles.file_entries(work),
            expanded=[file for e in emitted for file in e.expanded],
        )
        _check_ledger(manifest, work)
        (work / bundles.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(out)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """PyTorch has no type of its own for the error that memory is short."""
    try:
        yield
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error)) from error


def _fingerprint(checkpoint: Checkpoint, config: ExportConfig) -> Fingerprint:
    """What the coded matrices depend on. The names of files, not where they lie: a checkpoint may
    be moved."""
    from exporter import partial

    stats = {
        file: file.stat() for file in sorted({entry.file for entry in checkpoint.entries.values()})
    }
    return {
        "format": str(partial.FORMAT_VERSION),
        "codec": config.codec,
        "quantization": json.dumps(config.quantization.to_dict(), sort_keys=True),
        **{name: importlib.metadata.version(name) for name in ("tiny-qmoe", "torch")},
        **{
            file.name: f"{stat.st_size} bytes of {stat.st_mtime_ns} ns"
            for file, stat in stats.items()
        },
    }


def _encode(
    checkpoint: Checkpoint, config: ExportConfig, work: Path, progress: Progress
) -> EncodedModel:
    """All matrices, those that `work` already has without coding them again."""
    from exporter import encoded
    from exporter.quant import quantize

    stage = "quantize and code"
    progress(stage, 0, 0)
    finished = encoded.finished(work)
    tensors = quantize(
        checkpoint, config.quantization, lambda _, done, total: progress(stage, done, total),
        scratch=work, skip=finished,
    )  # fmt: skip
    matrices = finished | encoded.encode_model(tensors, work, config.codec).matrices
    return encoded.EncodedModel(
        {name: matrices[name] for name in checkpoint.names if name in matrices}
    )


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


def _check_disk(checkpoint: Checkpoint, config: ExportConfig, place: Workplace) -> None:
    """The blobs lie on disk once and again in each package; levels take a byte at most, scales are
    few."""
    largest = max(
        math.prod(checkpoint.shape(name)) for name in checkpoint.names
    )  # its levels lie there for a while
    needed = int((1 + 1.1 * len(config.formats)) * checkpoint.parameters) + largest + (64 << 20)
    needed -= sum(file.stat().st_size for file in place.coded.iterdir())
    free = shutil.disk_usage(place.root).free
    if free < needed:
        raise OutOfSpaceError(
            f"the export may need {needed / 1e9:.1f} GB beside {place.root.parent}, "
            f"{free / 1e9:.1f} GB are free",
            do="free space, or choose another OUT",
        )


def _answer(
    checkpoint: Checkpoint,
    encoded: EncodedModel,
    vectors: dict[str, Any],
    context: int,
    config: ExportConfig,
    work: Path,
    progress: Progress,
) -> tuple[list[str], bundles.QuantizationLoss]:
    """Writes `reference.safetensors`; returns how its prompts were made, and what quantization
    cost."""
    from exporter import memory, reference

    texts, sequences = token_sequences(checkpoint, config.texts or reference.TEXTS)
    # what lowering and the tokenizer leave goes now, and not at some time in what follows
    memory.give_back()
    prompts = reference.make_prompts(
        sequences, context, checkpoint.parameters, checkpoint.config.vocab_size
    )
    total = sum(len(p.tokens) + max(p.new_tokens, 1) - 1 for p in prompts)
    total += sum(len(p.tokens) + p.new_tokens - 1 for p in prompts if p.new_tokens)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress("compute reference answers", done, total)

    advance(0)
    reference.write_reference(
        encoded, vectors, checkpoint.config, context, prompts, work / bundles.REFERENCE, advance
    )
    progress("compare with the original", 0, 0)
    tokens = prompts[-1].tokens[: reference.loss_positions(checkpoint.parameters)]
    return texts, reference.quantization_loss(
        checkpoint, encoded, vectors, config.activations, tokens
    )


def token_sequences(
    checkpoint: Checkpoint, texts: Sequence[str]
) -> tuple[list[str], list[list[int]]]:
    """Texts through the model's tokenizer, or fixed random ids where it has none that fits its
    vocabulary."""
    from tokenizers import Tokenizer

    from exporter import reference

    vocab = checkpoint.config.vocab_size
    path = checkpoint.path / "tokenizer.json"
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
        sequences = [tokenizer.encode(text).ids for text in texts]
        bos = checkpoint.config.bos_token_id
        sequences = [s if bos is None or s[:1] == [bos] else [bos, *s] for s in sequences]
        if all(s and max(s) < vocab for s in sequences):
            return list(texts), sequences
        return ["random ids: the tokenizer gives ids the model does not have"], [
            reference.random_tokens(vocab, 64)
        ]
    return ["random ids: the checkpoint has no tokenizer.json"], [
        reference.random_tokens(vocab, 64)
    ]


def _copy_native(target: Path) -> None:
    from exporter.codec.native import native_dir

    wanted = shutil.ignore_patterns("*.so", "*.o", "__pycache__", "*.py", "tests", "fuzz")
    shutil.copytree(native_dir(), target, ignore=wanted)


def _tensor_entry(m: EncodedMatrix) -> TensorEntry:
    return TensorEntry(
        name=m.name,
        rows=m.rows,
        cols=m.cols,
        scheme=m.scheme,
        n_levels=m.n_levels,
        group_size=m.group_size,
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
    )


def _model_entry(checkpoint: Checkpoint) -> ModelEntry:
    name = checkpoint.path.resolve().name
    return ModelEntry(name, checkpoint.parameters, checkpoint.source_bytes, checkpoint.config_dict)


def _interface(checkpoint: Checkpoint, context: int) -> Interface:
    config = checkpoint.config
    return Interface(
        context, config.vocab_size, config.bos_token_id, list(checkpoint.eos_token_ids)
    )


def _ledger(work: Path, packages: list[LedgerRow]) -> list[LedgerRow]:
    """What every byte is: packages by part, as their backends say, every other file as a whole."""
    ledger, told = list(packages), {row.file for row in packages}
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


def _check_ledger(manifest: Manifest, work: Path) -> None:
    """Every file's rows sum to its size, none is negative, and the matrices lie apart in their
    files."""
    problems = [
        f"{row.file}: {row.what} has {row.n_bytes:,} bytes"
        for row in manifest.ledger
        if row.n_bytes < 0
    ]
    for entry in manifest.files:
        total = sum(row.n_bytes for row in manifest.ledger if row.file == entry.path)
        if total != entry.n_bytes:
            problems.append(
                f"{entry.path}: the ledger has {total:,} bytes, the file {entry.n_bytes:,}"
            )
    scales_bytes = {t.name: t.scales_bytes for t in manifest.tensors}
    sizes = {entry.path: entry.n_bytes for entry in [*manifest.files, *manifest.expanded]}
    for artifact in manifest.artifacts:
        if artifact.places.keys() != scales_bytes.keys():
            problems.append(
                f"{artifact.path}: {len(artifact.places)} matrices, expected {len(scales_bytes)}"
            )
        problems += _overlaps(artifact, scales_bytes, sizes)
    if problems:
        what = "the byte ledger does not match what was written"
        raise ExportError(what, problems=problems, do="report this as a bug")


def _overlaps(artifact: Artifact, scales_bytes: dict[str, int], sizes: dict[str, int]) -> list[str]:
    spans = sorted(
        span
        for name, place in artifact.places.items()
        for span in _spans(name, place, scales_bytes[name])
    )
    problems = [
        f"{name} and {other} overlap in {file}"
        for (file, _, end, name), (next_file, begin, _, other) in itertools.pairwise(spans)
        if file == next_file and begin < end
    ]
    beyond = [span for span in spans if span[2] > sizes.get(span[0], 0)]
    return problems + [f"{name} ends past the end of {file}" for file, _, _, name in beyond]


def _spans(name: str, place: Place, scales_bytes: int) -> list[tuple[str, int, int, str]]:
    """(file, begin, end, name) of the levels and of the scales."""
    spans = [(place.file, place.offset, place.offset + place.n_bytes, name)]
    if place.scales_offset is not None:
        spans.append((place.file, place.scales_offset, place.scales_offset + scales_bytes, name))
    return spans

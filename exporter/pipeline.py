"""The main path: a checkpoint goes in, a bundle comes out. Read `export` first."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import bundle as bundles
from exporter.bundle import Bundle, LedgerRow, Manifest, ModelEntry, ProgramEntry, TensorEntry
from exporter.errors import ExportError, OutOfSpaceError, UsageError

if TYPE_CHECKING:
    from exporter.backends.executorch import EmittedProgram, ProgramConfig
    from exporter.checkpoint import Checkpoint
    from exporter.codec.encoder import Codec
    from exporter.encoded import EncodedModel
    from exporter.quant import QuantConfig
    from exporter.reference import Arithmetic

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 where it is not known."""

MIN_CONTEXT = 8
DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class ExportConfig:
    """What to make of a checkpoint. `context` None is DEFAULT_CONTEXT, or the model's own if that is less.

    `texts` are what the answers and the loss are measured on; by default those of exporter.reference.
    """

    quantization: QuantConfig
    context: int | None = None
    codec: Codec = "auto"
    activations: Arithmetic = "int8"
    with_native: bool = False
    texts: tuple[str, ...] = ()


def export(model: str | Path, out: Path, config: ExportConfig, progress: Progress, *, force: bool = False) -> Bundle:
    """Checkpoint -> quantized levels -> TQLZ blobs -> `.pte` -> answers of the quantized model -> bundle at `out`.

    Nothing is left at `out` unless all of it succeeded. Raises the errors of exporter.errors.
    """
    from exporter.backends import executorch
    from exporter.checkpoint import Checkpoint
    from exporter.encoded import encode_model
    from exporter.quant import quantize

    bundles.check_target(out, force=force)  # before a download of gigabytes
    checkpoint = Checkpoint.open(model, progress=progress)
    context = _context(config.context, checkpoint)
    with (
        bundles.new_bundle(out, force=force) as work,
        tempfile.TemporaryDirectory(dir=work.parent, prefix=f".{out.name}.", suffix=".scratch") as scratch,
    ):
        _check_disk(checkpoint, work)
        checkpoint.check_finite(lambda _, done, total: progress("check weights", done, total))
        tensors = quantize(
            checkpoint, config.quantization, lambda _, done, total: progress("quantize and code", done, total)
        )
        encoded = encode_model(tensors, Path(scratch), config.codec)
        vectors = {name: checkpoint.vector(name) for name in checkpoint.names if len(checkpoint.shape(name)) == 1}
        progress("lower to ExecuTorch", 0, 0)
        program = executorch.ProgramConfig(
            context, config.activations == "int8", checkpoint.config.bos_token_id, checkpoint.eos_token_ids
        )
        emitted = executorch.emit(encoded, vectors, checkpoint.config, program, work / bundles.PROGRAM)
        prompts, loss = _answer(checkpoint, encoded, vectors, context, config, work, progress)
        for file in checkpoint.tokenizer_files:
            shutil.copyfile(file, work / file.name)
        if config.with_native:
            _copy_native(work / "native")
        progress("write manifest", 0, 0)
        entries = _tensor_entries(encoded, emitted)
        manifest = Manifest(
            schema_version=bundles.SCHEMA_VERSION,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            tools={name: importlib.metadata.version(name) for name in ("tiny-qmoe", "torch", "executorch")},
            model=_model_entry(checkpoint),
            quantization=config.quantization.to_dict(),
            quantization_loss=loss,
            program=_program_entry(checkpoint, program, config.activations, emitted),
            prompts=prompts,
            tensors=entries,
            ledger=_ledger(work, entries, emitted),
            files=bundles.file_entries(work),
        )
        _check_ledger(manifest, work)
        (work / bundles.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(out)


def _context(wanted: int | None, checkpoint: Checkpoint) -> int:
    limit = checkpoint.config.max_position_embeddings
    context = min(DEFAULT_CONTEXT, limit) if wanted is None else wanted
    if not MIN_CONTEXT <= context <= limit:
        raise UsageError(f"--context must be from {MIN_CONTEXT} to {limit} (max_position_embeddings), got {context}")
    return context


def _check_disk(checkpoint: Checkpoint, work: Path) -> None:
    """The blobs lie on disk twice while the program is written; levels take a byte at most, scales are few."""
    needed = int(2.1 * checkpoint.parameters) + (64 << 20)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise OutOfSpaceError(
            f"the export may need {needed / 1e9:.1f} GB beside {work.parent}, {free / 1e9:.1f} GB are free",
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
    """Writes `reference.safetensors`; returns how its prompts were made, and what quantization cost."""
    from exporter import reference

    texts, sequences = token_sequences(checkpoint, config.texts or reference.TEXTS)
    prompts = reference.make_prompts(sequences, context, checkpoint.parameters, checkpoint.config.vocab_size)
    total = sum(len(p.tokens) + max(p.new_tokens, 1) - 1 for p in prompts)
    total += sum(len(p.tokens) + p.new_tokens - 1 for p in prompts if p.new_tokens)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress("compute reference answers", done, total)

    reference.write_reference(
        encoded, vectors, checkpoint.config, context, prompts, work / bundles.REFERENCE, advance
    )
    progress("compare with the original", 0, 0)
    tokens = prompts[-1].tokens[: reference.loss_positions(checkpoint.parameters)]
    return texts, reference.quantization_loss(checkpoint, encoded, vectors, config.activations, tokens)


def token_sequences(checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Texts through the model's tokenizer, or fixed random ids where it has none that fits its vocabulary."""
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
        return ["random ids: the tokenizer gives ids the model does not have"], [reference.random_tokens(vocab, 64)]
    return ["random ids: the checkpoint has no tokenizer.json"], [reference.random_tokens(vocab, 64)]


def _copy_native(target: Path) -> None:
    from exporter.codec.native import native_dir

    wanted = shutil.ignore_patterns("*.so", "*.o", "__pycache__", "*.py", "tests", "fuzz")
    shutil.copytree(native_dir(), target, ignore=wanted)


def _tensor_entries(encoded: EncodedModel, emitted: EmittedProgram) -> list[TensorEntry]:
    return [
        TensorEntry(
            name=m.name,
            rows=m.rows,
            cols=m.cols,
            scheme=m.scheme,
            group_size=m.group_size,
            codec=m.codec,
            code_bits=m.code_bits,
            cap=m.cap,
            bits_per_weight=round(m.bits_per_weight, 6),
            entropy_bits=round(m.entropy_bits, 6),
            zeros=round(m.zeros, 6),
            levels_crc32=m.levels_crc32,
            blob_offset=emitted.blob_offsets[m.name],
            blob_bytes=m.blob_bytes,
            scales_offset=emitted.scales_offsets[m.name],
            scales_bytes=m.scales_bytes,
            sizes_bytes=m.sizes_bytes,
        )
        for m in encoded.matrices.values()
    ]


def _model_entry(checkpoint: Checkpoint) -> ModelEntry:
    name = checkpoint.path.resolve().name
    return ModelEntry(name, checkpoint.parameters, checkpoint.source_bytes, checkpoint.config_dict)


def _program_entry(
    checkpoint: Checkpoint, program: ProgramConfig, activations: str, emitted: EmittedProgram
) -> ProgramEntry:
    config = checkpoint.config
    kv_values = config.num_hidden_layers * program.context * config.num_key_value_heads * config.head_dim
    return ProgramEntry(
        file=bundles.PROGRAM,
        context=program.context,
        prefill_tokens=program.prefill_tokens,
        activations=activations,
        vocab_size=config.vocab_size,
        bos_token_id=config.bos_token_id,
        eos_token_ids=list(program.eos_token_ids),
        arena_bytes=emitted.arena_bytes,
        kv_cache_bytes=2 * 4 * kv_values,
        delegates=emitted.delegates,
        operators=dict(sorted(emitted.operators.items())),
    )


def _ledger(work: Path, tensors: list[TensorEntry], emitted: EmittedProgram) -> list[LedgerRow]:
    """What every byte is: the program by part, every other file as a whole."""
    rows: dict[str, int] = {}
    for t in tensors:
        kind = "embedding and head" if t.name.split(".")[-2] in ("embed_tokens", "lm_head") else "layers"
        what = f"{kind}: {t.scheme} levels, {t.codec} {t.code_bits} bit"
        rows[what] = rows.get(what, 0) + t.blob_bytes
    rows["scales"] = sum(t.scales_bytes for t in tensors)
    rows["norms, rope frequencies"] = emitted.constants_bytes
    known = sum(rows.values())
    rows["graph, delegates, alignment"] = (work / bundles.PROGRAM).stat().st_size - known
    ledger = [LedgerRow(bundles.PROGRAM, what, n) for what, n in rows.items()]
    descriptions = {bundles.REFERENCE: "answers of the quantized model, for parity"}
    for name in bundles.bundle_files(work):
        if name != bundles.PROGRAM:
            other = "C++ sources of the operators" if name.startswith("native/") else "tokenizer and prompts"
            ledger.append(LedgerRow(name, descriptions.get(name, other), (work / name).stat().st_size))
    return ledger


def _check_ledger(manifest: Manifest, work: Path) -> None:
    """Every file's rows sum to its size, none is negative, and the matrices lie apart in the program."""
    problems = [f"{row.file}: {row.what} has {row.n_bytes:,} bytes" for row in manifest.ledger if row.n_bytes < 0]
    for entry in manifest.files:
        total = sum(row.n_bytes for row in manifest.ledger if row.file == entry.path)
        if total != entry.n_bytes:
            problems.append(f"{entry.path}: the ledger has {total:,} bytes, the file {entry.n_bytes:,}")
    spans = sorted(
        (begin, begin + n, t.name)
        for t in manifest.tensors
        for begin, n in ((t.blob_offset, t.blob_bytes), (t.scales_offset, t.scales_bytes))
    )
    for (_, end, name), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            problems.append(f"{name} and {other} overlap in {bundles.PROGRAM}")
    if spans and spans[-1][1] > (work / bundles.PROGRAM).stat().st_size:
        problems.append(f"{spans[-1][2]} ends past the end of {bundles.PROGRAM}")
    if problems:
        what = "the byte ledger does not match what was written"
        raise ExportError(what, problems=problems, do="report this as a bug")

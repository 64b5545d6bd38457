"""The main path: a checkpoint goes in, a bundle comes out. Read `export` first."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import bundle as bundles
from exporter.bundle import (
    Bundle,
)
from exporter.config import (
    ExportConfig,
    at_size,
    context_of,
)
from exporter.errors import OutOfSpaceError
from exporter.memory import release_free_memory, return_large_blocks
from exporter.progress import Progress

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.checkpoint.source_files import Hashing
    from exporter.encoded import EncodedModel
    from exporter.staging import Fingerprint, StagingDirectory


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
    """Bundle made from a model at `out`: levels -> TQLZ blobs -> packages -> answers -> manifest.

    Nothing is at `out` unless all of it succeeded. `resume` goes on from what an interrupted export
    has coded. `max_ram` limits memory, in bytes. Raises the errors of exporter.errors.
    """
    from exporter import manifest, staging
    from exporter.backends import registry
    from exporter.backends.package import PackageInput
    from exporter.checkpoint import source_files
    from exporter.reference.answers import answer_prompts

    bundles.check_target(out, force=force)  # before a download of gigabytes
    with source_files.hashed_beside() as hashing:
        checkpoint, config, context = _checked(model, config, progress, max_ram, hashing)
        fingerprint = _fingerprint(checkpoint, config)
        staged = staging.staging_directory(out, fingerprint, force=force, resume=resume)
        with staged as place, _memory_errors():
            _check_disk(checkpoint, config, place)
            checkpoint.check_finite(progress)
            source_sha256 = hashing.result()
            encoded = _encode(checkpoint, config, place, source_sha256, progress)
            source = PackageInput(checkpoint, encoded, context, config, place.bundle)
            emitted = [registry.emit(name, source, progress) for name in config.formats]
            _copy_files(checkpoint, config, place.bundle)
            manifest.write_for_session(source, emitted)
            prompts, loss = answer_prompts(source, [e.artifact for e in emitted], progress)
            source_files.check_unchanged(checkpoint.files, fingerprint)
            progress("write manifest", 0, 0)
            manifest.write(source, emitted, prompts, loss, source_sha256)
    return Bundle.open(out)


def _checked(
    model: str | Path,
    config: ExportConfig,
    progress: Progress,
    max_ram: int | None,
    hashing: Hashing,
) -> tuple[Checkpoint, ExportConfig, int]:
    """The opened checkpoint, the configuration for it, and the positions of the cache.

    `hashing` of the files of the weights has begun. Raises the errors of exporter.errors, before
    any work, where something speaks against the export.
    """
    from exporter import allocation
    from exporter.backends import registry
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.estimate import export_memory
    from exporter.quant import plan
    from exporter.reference.loss_text import read_text

    if config.loss_text is not None:
        read_text(config.loss_text)  # an error comes before any work
    checkpoint = Checkpoint.open(
        model,
        revision=config.revision,
        adapter=config.adapter,
        progress=progress,
        meanwhile=hashing.begin,
    )
    release_free_memory()  # what reading the tokenizer leaves
    config, context = at_size(config, checkpoint), context_of(config, checkpoint)
    plan.check(config.quantization, checkpoint)
    registry.check(config, checkpoint)
    allocation.check(config, checkpoint)
    if max_ram is not None:
        return_large_blocks()
        export_memory.check_memory(max_ram, checkpoint, config, context)
    return checkpoint, config, context


def _copy_files(checkpoint: Checkpoint, config: ExportConfig, work: Path) -> None:
    """Copies into the bundle what is not made: the tokenizer, and the C++ sources if asked for."""
    from exporter.native import copy_sources

    checkpoint.write_texts(work)
    if config.with_native:
        copy_sources(work / "native")


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
    from exporter import allocation, staging
    from exporter.checkpoint import source_files

    text = allocation.text_of(config, checkpoint)
    return {
        "format": str(staging.FORMAT_VERSION),
        "codec": config.codec,
        "quantization": json.dumps(config.quantization.to_dict(), sort_keys=True),
        "calibration": "none" if text is None else text.sha256,
        "rope": repr(checkpoint.config.rope),  # its attention factor is folded into weights
        **{name: importlib.metadata.version(name) for name in ("tiny-qmoe", "torch")},
        **source_files.file_states(checkpoint.files),
    }


def _encode(
    checkpoint: Checkpoint,
    config: ExportConfig,
    place: StagingDirectory,
    source_sha256: Mapping[str, str],
    progress: Progress,
) -> EncodedModel:
    """All matrices, those that `place` already has without coding them again."""
    from exporter import allocation, encoded
    from exporter.quant import plan, rules
    from exporter.quant.calibration_cache import CalibrationCache
    from exporter.quant.quantize import quantize

    folder = config.calibration_cache
    cache = None if folder is None else CalibrationCache(folder, source_sha256)
    allocated = allocation.allocate(checkpoint, config, place.calibration, cache, progress)
    fitted = () if allocated is None else allocated.quantizers
    progress("quantize and code", 0, 0)
    work, finished = place.coded, encoded.finished(place.coded)
    tensors = quantize(
        *(checkpoint, config.quantization, progress), scratch=work, skip=finished, fitted=fitted
    )
    matrices = finished | encoded.encode_matrices(tensors, work, config.matrix_codec)
    ordered = {name: matrices[name] for name in checkpoint.names if name in matrices}
    rate = None if allocated is None else allocated.entry(ordered)
    source = checkpoint if allocated is None else allocated.checkpoint
    if config.save_plan is not None:
        constants = {} if allocated is None else allocated.constants
        rules.write(config.save_plan, plan.found(config.quantization, checkpoint, constants))
    return encoded.EncodedModel(ordered, source.vectors(), rate)


def _check_disk(checkpoint: Checkpoint, config: ExportConfig, place: StagingDirectory) -> None:
    """The blobs lie on disk once and again in each package; levels take a byte at most, scales are
    few."""
    from exporter import allocation
    from exporter.estimate.rate import calibration_disk, recovery_disk
    from exporter.quant import plan

    # Its levels lie there for a while.
    largest = max(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
    needed = int((1 + 1.1 * len(config.formats)) * checkpoint.parameters) + largest + (64 << 20)
    needed -= sum(file.stat().st_size for file in place.coded.iterdir())
    if allocation.text_of(config, checkpoint):
        measured = calibration_disk(checkpoint)
        needed += measured
        if config.calibration_cache is not None:
            _check_free(config.calibration_cache, measured, "another --calibration-cache")
    if matrices := plan.trained(plan.fitted(config.quantization, checkpoint)):
        needed += recovery_disk(checkpoint, matrices)
    _check_free(place.root, needed, "another OUT")


def _check_free(folder: Path, needed: int, other: str) -> None:
    """Raises OutOfSpaceError if the disk of a folder has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutOfSpaceError(
            f"the export may need {needed / 1e9:.1f} GB beside {folder.parent}, "
            f"{free / 1e9:.1f} GB are free",
            hint=f"free space, or choose {other}",
        )

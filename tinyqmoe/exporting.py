"""Making a bundle from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from tinyqmoe.packages import no_progress
from tinyqmoe.settings import ExportSettings, export_config

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from exporter.config import ExportConfig
    from exporter.progress import Progress


def export(
    model: str | Path,
    out: str | Path,
    *,
    config: ExportConfig | None = None,
    force: bool = False,
    resume: bool = False,
    max_ram: int | None = None,
    progress: Progress | None = None,
    **settings: Unpack[ExportSettings],
) -> Bundle:
    """The bundle made from a model, written to the directory `out`.

    `model` is a Hugging Face directory, a GGUF file or a hub id. The settings are those of
    `ExportSettings` (scheme, group_size, sparsity, recover, bits_per_weight, size_bytes,
    calibration, calibration_cache, embedding, formats, context, codec, activations, chunk_bytes,
    with_native, loss_text, revision, adapter), or all of them in one as `config`. `force` replaces
    a bundle that is at `out`; `resume` goes on from what an interrupted export to `out` has
    finished; `max_ram` is the memory that this process may take, in bytes. Nothing is at `out`
    unless all of it succeeded. Raises TinyQMoEError.
    """
    from exporter import pipeline

    return pipeline.export(
        model,
        Path(out),
        export_config(config, **settings),
        progress or no_progress,
        force=force,
        resume=resume,
        max_ram=max_ram,
    )


def demo_model() -> Path:
    """The directory of the small trained model that ships with this package."""
    from exporter.demo import model_path

    return model_path()

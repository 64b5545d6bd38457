"""The command compare: several models against one original, by the size of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinyqmoe
from exporter.cli.console import emit, out_console, progress_bars
from exporter.cli.evaluation_options import (
    AgainstOption,
    EvaluatedBackendOption,
    LimitOption,
    ResumeEvaluationOption,
    WindowOption,
    journal_of,
)
from exporter.cli.options import JsonOption, writable
from exporter.errors import require_extra

FORMS = (".png", ".svg")


def figure_file(path: Path | None) -> Path | None:
    """The same path, if a figure can be written there.

    Raises BadParameter, MissingComponentError.
    """
    if path is not None:
        if path.suffix not in FORMS:
            raise typer.BadParameter(f"{path} must end with {' or '.join(FORMS)}")
        require_extra("report", ("matplotlib",), f"writing {path.name}")
    return writable(path)


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL..",
            help="Bundles and checkpoints, GGUF files too; the first is the original, unless "
            "--against names it.",
        ),
    ],
    text: Annotated[Path, typer.Option(metavar="FILE", help="The text they are compared on.")],
    against: AgainstOption = None,
    backend: EvaluatedBackendOption = None,
    window: WindowOption = None,
    limit: LimitOption = None,
    resume: ResumeEvaluationOption = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=figure_file, help="A figure, .png or .svg."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Compare models of one original by KL, perplexity and size, in a table and a figure."""
    from exporter.cli.evaluation_tables import comparison_table

    with progress_bars() as progress:
        found = tinyqmoe.compare(
            models,
            against=against,
            text=text,
            backend=backend,
            window=window,
            limit=limit,
            journal=journal_of(json_file, resume=resume),
            resume=resume,
            progress=progress,
        )
    if plot is not None:
        from exporter.evaluation.figure import draw
        from runtime_ref.reports.atomic import write_whole

        write_whole(plot, draw(found, plot.suffix.removeprefix(".")))
    emit(json_file, found.to_dict, lambda: out_console.print(comparison_table(found)))

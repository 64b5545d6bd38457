"""The command eval: perplexity, divergence from the original, and multiple-choice tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinyqmoe
from exporter.cli.console import emit, out_console, progress_bars
from exporter.cli.evaluation_options import (
    EvaluatedBackendOption,
    LimitOption,
    ResumeEvaluationOption,
    WindowOption,
    journal_of,
)
from exporter.cli.options import ChatOption, ChatTemplateOption, JsonOption, ThreadsOption


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_BUNDLE", help="A bundle; or a checkpoint, as for `export`."
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="arc_easy, arc_challenge, hellaswag or mmlu. Can be repeated.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the files of the tasks lie.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text for perplexity and KL.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The original: adds KL, same best token and flips."),
    ] = None,
    backend: EvaluatedBackendOption = None,
    threads: ThreadsOption = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="Examples before each question; by default 5 for mmlu, else 0."),
    ] = None,
    chat: ChatOption = False,
    chat_template: ChatTemplateOption = None,
    window: WindowOption = None,
    limit: LimitOption = None,
    resume: ResumeEvaluationOption = False,
    json_file: JsonOption = None,
) -> None:
    """Measure how good a model or a package is, on a text and on multiple-choice tasks.

    Tasks are scored as lm-evaluation-harness scores them. docs/eval.md says how FOLDER is laid out.
    """
    from exporter.cli.evaluation_tables import evaluation_view

    with progress_bars() as progress:
        found = tinyqmoe.evaluate(
            model,
            against=against,
            backend=backend,
            threads=threads,
            journal=journal_of(json_file, resume=resume),
            resume=resume,
            progress=progress,
            tasks=task or (),
            data=data,
            text=text,
            n_shots=shots,
            chat=chat,
            chat_template=chat_template,
            window=window,
            limit=limit,
        )
    emit(json_file, found.to_dict, lambda: out_console.print(evaluation_view(found)))

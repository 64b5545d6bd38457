"""The command eval: perplexity, divergence from the original, and multiple-choice tasks."""

from __future__ import annotations

import tinyqmoe
from exporter.cli.console import emit, out_console, progress_bars
from exporter.cli.evaluation_options import (
    AgainstOption,
    DataOption,
    EvaluatedArgument,
    EvaluatedBackendOption,
    LimitOption,
    ResumeEvaluationOption,
    ShotsOption,
    TasksOption,
    TextOption,
    WindowOption,
    journal_of,
)
from exporter.cli.generation_options import ChatOption, ChatTemplateOption
from exporter.cli.options import JsonOption, ThreadsOption


def evaluate(
    model: EvaluatedArgument,
    task: TasksOption = None,
    data: DataOption = None,
    text: TextOption = None,
    against: AgainstOption = None,
    backend: EvaluatedBackendOption = None,
    threads: ThreadsOption = None,
    shots: ShotsOption = None,
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

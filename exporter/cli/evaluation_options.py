"""Options of the commands eval and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli import options
from exporter.errors import UsageError

if TYPE_CHECKING:  # whose members are known when the program runs
    EvaluatedPackage = str
else:
    EvaluatedPackage = options.one_of("EvaluatedPackage", [*options.PACKAGES, "reference"])

JOURNAL = ".journal"  # after the name of the result's file

EvaluatedArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL_OR_BUNDLE", help="A bundle; or a checkpoint, as for `export`."),
]
TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="arc_easy, arc_challenge, hellaswag or mmlu. Can be repeated.",
    ),
]
DataOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where the files of the tasks lie.")
]
TextOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A text for perplexity and KL.")
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="The original: for KL, same best token and flips against it."
    ),
]
ShotsOption = Annotated[
    int | None,
    typer.Option(min=0, help="Examples before each question; by default 5 for mmlu, else 0."),
]
EvaluatedBackendOption = Annotated[
    EvaluatedPackage | None,
    typer.Option(
        "--backend",
        help="How a bundle computes: its packages as for `run`, native by default; or reference, "
        "the quantized model in PyTorch. A checkpoint computes in PyTorch, in float32.",
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens scored in one piece; by default 512, or the context if it is shorter."
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="The first questions of each task or subject, and windows, only."),
]
ResumeEvaluationOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Take results of finished items from the journal beside --json FILE."
    ),
]


def journal_of(json_file: Path | None, *, resume: bool) -> Path | None:
    """The journal beside a result's file; None where the result goes to no file.

    Raises UsageError for `resume` without a file.
    """
    if json_file is not None and str(json_file) != "-":
        return json_file.with_name(json_file.name + JOURNAL)
    if resume:
        what = "--resume goes on from the journal beside --json FILE, and there is no file"
        raise UsageError(what, hint="give --json FILE, the same as before")
    return None

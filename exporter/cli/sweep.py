"""The commands sweep and report: many bundles at once, and what came of them."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

import tinyqmoe
from exporter.cli.console import emit, out_console
from exporter.cli.options import JsonOption, MarkdownOption
from exporter.cli.options import report as report_file
from exporter.cli.sweep_progress import sweep_progress
from exporter.errors import UsageError


class Jobs(enum.StrEnum):
    """The form of jobs that others start."""

    GITHUB_MATRIX = "github-matrix"
    SLURM = "slurm"


class Executors(enum.StrEnum):
    """Where cells are made."""

    LOCAL = "local"
    RAY = "ray"
    SLURM = "slurm"


def sweep(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A TOML file: see docs/sweep.md.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder of its cells; finished ones stay.")
    ],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Commands at once; by default as many as there are cores."),
    ] = None,
    executor: Annotated[
        Executors,
        typer.Option(
            help="local: processes here; ray: a running cluster; slurm: jobs by submitit."
        ),
    ] = Executors.LOCAL,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="A bundle of the plan, by --emit. Can be repeated."),
    ] = None,
    emit_jobs: Annotated[
        Jobs | None,
        typer.Option("--emit", help="Print jobs for other machines, and run nothing."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Run nothing: make the results of finished cells.")
    ] = False,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", metavar="FOLDER", help="With --merge: an OUT of another machine. Repeatable."
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Make and measure many bundles: models x schemes x rates x devices x tasks.

    What is finished is never made again. Exit code 1 if a cell failed, which the next sweep tries
    again.
    """
    if source and not merge:
        raise UsageError("--from is of --merge", hint="give --merge, or leave it away")
    if emit_jobs is not None:
        typer.echo(tinyqmoe.emit_sweep(emit_jobs.value, plan, out).rstrip("\n"))
        return
    if merge:
        table = tinyqmoe.merge_sweep(out, source or ())
    else:
        options: dict[str, Any] = {"workers": workers, "executor": executor.value}
        with sweep_progress() as told:
            table = tinyqmoe.sweep(plan, out, **options, only=only or (), told=told)
    _emit_table(table, json_file)


def report(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="The OUT of a sweep, or its results.sqlite.")
    ],
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=report_file, help="For a browser, with the plot."),
    ] = None,
    markdown: MarkdownOption = None,
    json_file: JsonOption = None,
) -> None:
    """Draw the table of a sweep, what its rules choose, and the plot of the best.

    Exit code 1 if a cell failed or is not finished.
    """
    table = tinyqmoe.read_sweep(results)
    from runtime_ref.reports import sweep_reports

    if markdown is not None:
        sweep_reports.write_markdown(table, markdown)
    if html is not None:
        sweep_reports.write_html(table, html)
    _emit_table(table, json_file)


def _emit_table(table: tinyqmoe.SweepTable, json_file: Path | None) -> None:
    from runtime_ref.reports import sweep_reports

    def show() -> None:
        out_console.print(sweep_reports.rows_table(table))
        for words in sweep_reports.choices(table):
            out_console.print(words, markup=False, highlight=False, soft_wrap=True)

    emit(json_file, table.to_dict, show)
    if table.failed:
        raise typer.Exit(1)

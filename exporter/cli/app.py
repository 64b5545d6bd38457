"""The command line, whose commands parse, make one library call, and print.

Results go to stdout, progress and errors to stderr. Exit codes: 0 fine; 1 a verdict failed; 2 wrong
usage; 3 bad or unsupported input; 4 out of budget, memory or disk; 5 a missing component; 70 a bug;
130, 141, 143 interrupted, output closed, terminated.
"""

from __future__ import annotations

import codecs
import io
import locale
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import tinyqmoe
from exporter.cli import (
    apps,
    bench,
    chat,
    check,
    compare,
    devices,
    export,
    lost_pages,
    run,
    serve,
    signals,
    sweep,
    trust,
)
from exporter.cli import eval as evaluation
from exporter.cli.console import Commands, emit, err_console, out_console, progress_bars
from exporter.cli.options import JsonOption
from exporter.errors import MissingComponentError

FAILED, BUG = 1, 70


app = typer.Typer(
    cls=Commands,
    name="tinyqmoe",
    help="Llama 3.2 as ternary or int8 packages for phones, and the evidence that they work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"tinyqmoe {importlib.metadata.version('tiny-qmoe')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """The options that all commands share.

    The help of the program is the one given to `typer.Typer`.
    """


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="A bundle that is meant for an app.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Check compiler, versions, kernels and disk, or a BUNDLE for an app, and say what to do.

    Exit code 5 if something is missing on this machine, 1 if the bundle is not fit for an app.
    """
    from dataclasses import asdict

    from rich.table import Table

    from runtime_ref.doctor import examine

    with progress_bars() as progress:
        progress("look around (compiles the kernels the first time)", 0, 0)
        findings = examine() if bundle is None else tinyqmoe.examine_bundle(bundle)
    table = Table()
    for name in ("", "what", "found", "next step"):
        table.add_column(name, overflow="fold")
    for f in findings:
        table.add_row(
            "[green]ok" if f.ok else "[red]no",
            f.what,
            escape(f.found),
            "" if f.ok else escape(f.do),
        )
    emit(
        json_file,
        lambda: {"findings": [asdict(f) for f in findings]},
        lambda: out_console.print(table),
    )
    if not all(f.ok for f in findings):
        raise typer.Exit(MissingComponentError.exit_code if bundle is None else FAILED)


for command in (
    export.export,
    run.run,
    chat.chat,
    serve.serve,
    run.parity,
    check.check,
    sweep.sweep,
    sweep.report,
    compare.compare,
    bench.bench,
    devices.devices,
    devices.fit,
    export.expand,
    export.inspect,
    trust.sign,
    trust.verify,
    trust.push,
    export.demo,
    doctor,
):
    app.command()(command)
app.command("eval")(evaluation.evaluate)
app.command("app-files")(apps.app_files)
app.command("native-dir")(export.native_dir_command)


def _use_utf_8() -> None:
    """Starts the program anew in Python's UTF-8 mode where the locale is another one.

    Libraries read files of their own by the locale's encoding, and fail under one of ASCII.
    """
    if (
        not sys.flags.utf8_mode
        and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8"
    ):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def main() -> None:
    """Runs the command line.

    What is not an error of `exporter.errors` is a bug, and has an exit code that says so.
    """
    _use_utf_8()
    # OpenMP's threads wait by spinning unless told otherwise, and take the processor from those
    # that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A terminal or a file that takes ASCII only gets "?" for the rest, and not the end of the run.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    lost_pages.end_with_message()
    try:
        app()
    except Exception:
        signals.exit_if_asked()
        traceback.print_exc()
        err_console.print(
            "[bold red]this is a bug in tinyqmoe[/]: please report the lines above", soft_wrap=True
        )
        sys.exit(BUG)
    finally:
        signals.exit_if_asked()

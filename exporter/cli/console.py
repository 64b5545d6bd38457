"""The output of the command line: results, progress, errors and exit codes.

Results go to stdout, as tables or JSON; progress and errors go to stderr.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import rich.console
import typer
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from typer.core import TyperGroup

from exporter import interrupts
from exporter.cli.narrow import fit
from exporter.errors import MissingComponentError, OutOfSpaceError, TinyQMoEError
from exporter.interrupts import INTERRUPTED

DISK_FULL = (28, 122)  # ENOSPC, EDQUOT
OUTPUT_CLOSED = 141
DOCUMENT_VERSION = 1  # of what --json writes; it rises when a key changes its meaning or goes
PLAIN_WIDTH = 120  # of tables where there is no terminal to measure


# Of ASCII and Latin-1, but for tabs and ends of lines; and those that turn the direction of a text.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


class Console(rich.console.Console):
    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterable[Segment]:
        """The segments of what is shown; a table as `narrow.fit` lays it out.

        Texts of a bundle may hold control characters, which would command the terminal: they are
        shown as they are written in Python.
        """
        if isinstance(renderable, Table):
            renderable = fit(renderable, self, options or self.options)
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else CONTROL.sub(_escaped, text), style, control)

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, as any other output does.

        Rich would exit with 1, which here means that a verdict failed.
        """
        raise BrokenPipeError


def _width() -> int | None:
    return (
        None
        if sys.stdout is None or sys.stdout.isatty() or os.environ.get("COLUMNS")
        else PLAIN_WIDTH
    )


out_console = Console(width=_width(), emoji=False)  # ":cat:" is text
err_console = Console(stderr=True, emoji=False)


class Commands(TyperGroup):
    """Turns the errors a user can meet into one message and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                # A reader that has gone away shows here, and not when the interpreter exits.
                sys.stdout.flush()
            return result
        except TinyQMoEError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OUTPUT_CLOSED) from None
        except OSError as error:
            fail_os(error)
        except MemoryError as error:
            fail(f"out of memory {error}".rstrip(), OutOfSpaceError.exit_code)
        except ImportError as error:
            what = f"a package is missing or broken: {error}\nNext step: run `tinyqmoe doctor`"
            fail(what, MissingComponentError.exit_code)


def fail(message: str, code: int) -> NoReturn:
    if interrupts.asked.is_set():  # a library that was interrupted made another error of it
        raise typer.Exit(INTERRUPTED)
    err_console.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def fail_os(error: OSError) -> NoReturn:
    full = error.errno in DISK_FULL
    what = "the disk is full" if full else f"{error.strerror or error}"
    where = f": {error.filename}" if error.filename else ""
    fail(what + where, OutOfSpaceError.exit_code if full else TinyQMoEError.exit_code)


def stream(text: str, style: str | None = None) -> None:
    """Prints a text as it is, without markup and without breaking a line."""
    out_console.print(text, end="", style=style, highlight=False, markup=False, soft_wrap=True)


def emit(
    json_file: Path | None, data: Callable[[], dict[str, Any]], show: Callable[[], None]
) -> None:
    """Shows a result for people, or writes it as JSON to stdout; with a file it does both.

    documents.schema.json says what each command writes.
    """
    if str(json_file) != "-":
        show()
    if json_file is None:
        return
    text = (
        json.dumps(
            {"schema_version": DOCUMENT_VERSION, **_finite(data())}, indent=1, allow_nan=False
        )
        + "\n"
    )
    if str(json_file) == "-":
        sys.stdout.write(text)
    else:
        json_file.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same value with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, one a stage, with an ETA.

    There are none when stderr is not a terminal.
    """
    if not err_console.is_terminal:
        yield lambda stage, done, total: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # The bars have a descriptor of their own: they go on while exporter.quiet holds back what
    # libraries write to stderr. Rich would otherwise take over sys.stderr, and show it there.
    with (
        open(os.dup(sys.stderr.fileno()), "w") as stream,
        Progress(
            *columns,
            console=Console(file=stream),
            redirect_stdout=False,
            redirect_stderr=False,
        ) as bars,
    ):
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    # A stage begins when the one before has ended.
                    bars.update(task, total=1, completed=1)
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield update

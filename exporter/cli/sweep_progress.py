"""How a sweep shows on stderr: a line for each cell that ends; on a terminal what runs besides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from rich.markup import escape

import tinyqmoe
from exporter.cli.console import err_console

BAR_WIDTH = 8  # in characters
OTHERS_WIDTH = 50  # of all that a line shows beside what runs


@contextlib.contextmanager
def sweep_progress() -> Iterator[Callable[[tinyqmoe.CellEvent], None]]:
    """What hears of the begin and end of each cell, and shows it while the block runs."""
    if not err_console.is_terminal:
        yield _say_where
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    running = TextColumn("{task.description}", table_column=Column(ratio=1))
    n_done, left = TextColumn("{task.completed} of {task.total}"), TextColumn("{task.fields[left]}")
    columns = (SpinnerColumn(), n_done, BarColumn(BAR_WIDTH), TimeElapsedColumn(), left, running)
    with Progress(*columns, console=err_console, expand=True, transient=True) as bars:
        task = bars.add_task("", total=None, left="", visible=False)
        labels: dict[str, None] = {}

        def tell(event: tinyqmoe.CellEvent) -> None:
            if event.ended:
                labels.pop(event.label, None)
            else:
                labels[event.label] = None
            what = escape(_shortened(labels, err_console.width - OTHERS_WIDTH))
            counts: dict[str, Any] = {
                "completed": event.done,
                "total": event.total,
                "left": _left(event),
            }
            bars.update(task, description=what, visible=True, **counts)
            if event.ended:
                bars.print(_end(event), highlight=False, soft_wrap=True)
            bars.refresh()

        yield tell


def _shortened(labels: Collection[str], width: int) -> str:
    """The first of what runs, cut at so many characters, and how many run beside it."""
    more = f" +{len(labels) - 1}" if len(labels) > 1 else ""
    first, room = next(iter(labels), ""), max(1, width - len(more))
    return (first if len(first) <= room else f"{first[: room - 1]}…") + more


def _say_where(event: tinyqmoe.CellEvent) -> None:
    """Says what has ended, and how far the sweep is."""
    if event.ended:
        where = f"{event.done} of {event.total}, {_left(event)}: "
        err_console.print(where + _end(event), highlight=False, soft_wrap=True)


def _end(event: tinyqmoe.CellEvent) -> str:
    verdict = f"[red]failed[/]: {escape(event.message)}" if event.message else "done"
    return f"{escape(event.label)} {verdict}, {event.seconds:.0f} s"


def _left(event: tinyqmoe.CellEvent) -> str:
    """How long the rest may take, in words; empty while nothing is known."""
    seconds = event.left_seconds
    if seconds is None:
        return ""
    return f"about {seconds / 60:.0f} min left" if seconds >= 60 else f"about {seconds:.0f} s left"

"""Reports of a sweep: its table on a terminal, in Markdown and in HTML with a plot of the best.

A file is whole or not there; the OSError of a full disk or of a path that cannot be written goes to
the caller.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from exporter.errors import require_extra
from runtime_ref.memory import MB
from runtime_ref.reports.atomic import write_whole
from runtime_ref.reports.files import environment, xml_text
from runtime_ref.reports.sweep_plot import plot_svg
from runtime_ref.reports.tables import columns
from runtime_ref.sweep_table import SweepRow, SweepTable

TEXTS = ("model", "package", "device")
SPEED, TASKS = "tokens/s, projected", "tasks"  # columns that are left out where nothing is in them
NUMBERS = ("MB", "KL", "best token", "dirty MB", SPEED)
NONE = "-"
LINE_BREAK = " "


def rows_table(table: SweepTable) -> Table:
    """Table of all rows; the best of each device have a star."""
    head = _head(table)
    numbers = [name for name in head if name in NUMBERS]
    last = [name for name in head if name not in (*TEXTS, *NUMBERS)]
    shown = columns("Sweep", ("", *TEXTS), numbers, last)
    for star, row in zip(_stars(table), table.rows, strict=True):
        cells = _cells(row)
        shown.add_row(star, *(escape(cells[name]) for name in head))
    shown.caption = "* no other on the device is as good in everything and better in something"
    return shown


def choices(table: SweepTable) -> list[str]:
    """What each rule chooses, in words."""
    said = []
    for rule in table.rules:
        row = table.chosen(rule)
        found = "none" if row is None else f"{row.name}, {row.format}: {', '.join(_figures(row))}"
        said.append(f"{rule.name} ({rule.words}): {found}")
    return said


def write_markdown(table: SweepTable, path: Path) -> None:
    """Writes the choices and the table as Markdown."""
    template = environment(autoescape=False).get_template("sweep.md")
    write_whole(path, xml_text(template.render(_content(table))).encode())


def write_html(table: SweepTable, path: Path) -> None:
    """Writes the same with a plot, in one file that needs no other.

    Raises MissingComponentError.
    """
    require_extra("report", ("matplotlib",), "a plot of a sweep")
    template = environment(autoescape=True).get_template("sweep.html")
    content = {**_content(table), "plot": plot_svg(table)}
    write_whole(path, xml_text(template.render(content)).encode())


def _content(table: SweepTable) -> dict[str, Any]:
    """Values that both templates show, by name."""
    head = _head(table)
    cells = [[found[name] for name in head] for found in map(_cells, table.rows)]
    return {
        "head": ("", *head),
        "numbers": NUMBERS,
        "rows": [(star, *texts) for star, texts in zip(_stars(table), cells, strict=True)],
        "choices": choices(table),
        "failed": [(row.name, row.device or "", row.message) for row in table.failed],
    }


def _stars(table: SweepTable) -> list[str]:
    return ["*" if best else "" for best in table.best]


def _head(table: SweepTable) -> list[str]:
    """The names of the columns, without those that have nothing in any row."""
    every = [_cells(row) for row in table.rows]
    empty = [name for name in (SPEED, TASKS) if all(cells[name] == NONE for cells in every)]
    return [name for name in (*TEXTS, *NUMBERS, TASKS, "verdict") if name not in empty]


def _cells(row: SweepRow) -> dict[str, str]:
    """Texts of a row by the names of columns."""
    n_bytes = None if row.n_bytes is None else row.n_bytes / MB
    dirty = None if row.dirty_bytes is None else row.dirty_bytes / MB
    return {
        "model": row.name,
        "package": row.format or NONE,
        "device": row.device or NONE,
        "MB": _text(n_bytes, ".1f"),
        "KL": _text(row.kl, ".4f"),
        "best token": _text(row.top1, ".4f"),
        "dirty MB": _text(dirty, ".1f"),
        SPEED: _text(row.speed, ".1f"),
        TASKS: ", ".join(f"{name} {value:.3f}" for name, value in row.tasks.items()) or NONE,
        "verdict": _verdict(row),
    }


def _text(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _verdict(row: SweepRow) -> str:
    """What speaks against a row, or that nothing does."""
    if row.message:
        return f"FAIL: {LINE_BREAK.join(row.message.split())}"
    against = [*(["does not fit"] if row.fits is False else [])]
    against += ["parity failed"] if row.parity is False else []
    return ", ".join(against) or "ok"


def _figures(row: SweepRow) -> list[str]:
    """Figures of a row that was chosen, in words."""
    found = [f"{(row.n_bytes or 0) / MB:.1f} MB", f"KL {_text(row.kl, '.4f')}"]
    found += [f"{row.dirty_bytes / MB:.1f} MB dirty"] if row.dirty_bytes is not None else []
    return found + ([f"{row.speed:.1f} tokens/s projected"] if row.speed is not None else [])

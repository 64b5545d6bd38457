"""Tables at 80 columns and at fewer: no word and no number of a cell is cut or broken."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator

import pytest
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from exporter.bundle import Bundle
from exporter.cli import bundle_tables, chat_demo
from exporter.cli.console import Console
from exporter.cli.narrow import UNLIMITED
from runtime_ref.device import profile
from runtime_ref.generate import RunResult
from runtime_ref.reports import parity_tables, run_tables, tables
from tests.support.reports import device_plan, device_run, killed_run, parity

BORDERS = re.compile("[─-╿]")


def printed(what: RenderableType, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), emoji=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return BORDERS.sub(" ", console.file.getvalue()).splitlines()


def tables_in(what: RenderableType) -> Iterator[Table]:
    if isinstance(what, Group):
        for part in what.renderables:
            yield from tables_in(part)
    elif isinstance(what, Table):
        yield what


def plain(cell: RenderableType) -> str:
    assert isinstance(cell, str)
    return Text.from_markup(cell).plain


RESULT = RunResult([1], [2, 3], "x", "limit", 1.0, 1.0)

# What the commands show, made without running them.
VIEWS: dict[str, Callable[[], RenderableType]] = {
    "devices": lambda: tables.devices_table(profile.all_devices()),
    "a device": lambda: tables.device_view(profile.load("iphone-13")),
    "fit on all": lambda: tables.fit_table([device_plan(), device_plan(1400)]),
    "fit on one": lambda: tables.fit_view(device_plan(1400), ["a smaller context"]),
    "a run": lambda: run_tables.run_view(device_run(), None),
    "a killed run": lambda: run_tables.run_view(killed_run(), None),
    "runs": lambda: run_tables.run_table([device_run(), killed_run()]),
    "parity": lambda: parity_tables.parity_table(parity()),
    "parity, side by side": lambda: parity_tables.side_by_side([parity(), parity(), parity()]),
    "demo": lambda: chat_demo._table([chat_demo.Asked("custom-op", 10**9, [RESULT], 10**8)]),
}


def assert_whole(view: RenderableType, width: int) -> None:
    lines = printed(view, width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for table in tables_in(view):
        for column in table.columns:
            for cell in map(plain, column.cells):
                missing = [w for w in BORDERS.sub(" ", cell).split() if w not in words]
                assert not missing, f"{cell!r} lost {missing}"
                if column.justify == "right":
                    spaced = [" ".join(line.split()) for line in lines]
                    assert any(" ".join(cell.split()) in line for line in spaced), cell


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("name", VIEWS)
def test_cells_are_whole(name: str, width: int) -> None:
    assert_whole(VIEWS[name](), width)


@pytest.mark.parametrize("width", [80, 60])
def test_a_bundle_is_whole(bundle: Bundle, width: int) -> None:
    assert_whole(bundle_tables.bundle_view(bundle, tensors=True), width)


def test_a_table_that_has_room_is_as_it_was() -> None:
    table = tables.fit_table([device_plan()])
    assert printed(table, 200) == printed(table, UNLIMITED)
    assert len(printed(table, 200)) < len(printed(table, 60))


def test_a_word_that_is_wider_than_the_terminal_is_folded() -> None:
    table = Table(show_header=False, box=None)
    for _ in range(2):
        table.add_column()
    table.add_row("file", "x" * 50 + "y")
    assert "".join("".join(printed(table, 30)).split()) == "file" + "x" * 50 + "y"

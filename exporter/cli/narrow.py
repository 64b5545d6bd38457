"""Tables on a terminal that is narrower than they are: every word and number stays whole.

Rich would cut cells short. Here text wraps between words, and numbers, which stand to the right,
keep their line. Where that is too wide the borders go, and where not even that fits, each row
becomes a list of its cells beside their headers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Column, Table

UNLIMITED = 10_000  # columns: wider than any table


def fit(table: Table, console: Console, options: ConsoleOptions) -> RenderableType:
    """The same table, or what shows its cells within the width of the options."""
    wide = options.update_width(UNLIMITED)
    spans = [_span(column, console, wide) for column in table.columns]
    natural = sum(most for _, most in spans)

    def room(shape: Table) -> int:  # without borders and padding
        return options.max_width - (console.measure(shape, options=wide).maximum - natural)

    if natural <= room(table):
        return table
    shapes = [shape for shape in (table, _bare(table)) if sum(w for w, _ in spans) <= room(shape)]
    if shapes:
        return _with_widths(shapes[0], _share(spans, room(shapes[0])))
    if table.show_header:
        return _records(table)
    return _with_widths(table, _squeeze([least for least, _ in spans], room(table)))


def _bare(table: Table) -> Table:
    """The same table with a space between columns and no borders."""
    bare = copy.copy(table)
    bare.box, bare.pad_edge, bare.padding, bare.collapse_padding = None, False, (0, 1), True
    return bare


def _span(column: Column, console: Console, wide: ConsoleOptions) -> tuple[int, int]:
    """The narrowest and the natural width of a column; numbers keep their line."""
    head = [console.measure(text, options=wide) for text in (column.header, column.footer)]
    body = [console.measure(cell, options=wide) for cell in column.cells]
    most = max(m.maximum for m in [*head, *body])
    wrapped = [*head, *([] if column.justify == "right" else body)]
    kept = body if column.justify == "right" else []
    least = max([*(m.minimum for m in wrapped), *(m.maximum for m in kept)])
    return min(least, most), most


def _share(spans: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Widths that sum to `room` at most; the columns that lack least get theirs first."""
    widths = [least for least, _ in spans]
    order = sorted(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0])
    for done, i in enumerate(order):
        share = (room - sum(widths)) // (len(order) - done)
        widths[i] += min(spans[i][1] - spans[i][0], share)
    return widths


def _squeeze(widths: Sequence[int], room: int) -> list[int]:
    """The same widths with the widest made narrower until they fit: words are folded there."""
    squeezed = list(widths)
    while sum(squeezed) > room and max(squeezed) > 1:
        squeezed[squeezed.index(max(squeezed))] -= 1
    return squeezed


def _with_widths(table: Table, widths: Sequence[int]) -> Table:
    narrow = copy.copy(table)
    narrow.columns = [
        replace(column, width=width, overflow="fold", no_wrap=False)
        for column, width in zip(table.columns, widths, strict=True)
    ]
    return narrow


def _records(table: Table) -> RenderableType:
    """A line for each cell: its header, and what it holds."""
    records = Table(show_header=False, box=None, pad_edge=False)
    heads = [_one_line(column.header) for column in table.columns]
    rows: list[Sequence[RenderableType]] = [*zip(*(c.cells for c in table.columns), strict=True)]
    if table.show_footer:
        rows.append([column.footer for column in table.columns])
    for number, row in enumerate(rows):
        if number:
            records.add_row()
        for head, cell in zip(heads, row, strict=True):
            records.add_row(head, cell)
    return Group(*(part for part in (table.title, records, table.caption) if part))


def _one_line(header: RenderableType) -> RenderableType:
    return " ".join(header.split()) if isinstance(header, str) else header

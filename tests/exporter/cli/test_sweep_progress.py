"""What a sweep shows while it runs: on a terminal, and in a log."""

from __future__ import annotations

import io
import re

import pytest

from exporter.cli import sweep_progress as shown
from exporter.cli.console import Console
from exporter.cli.sweep_progress import sweep_progress
from tinyqmoe import CellEvent

LABELS = ("export of Meta-Llama int8 at 4.4 b", "fit of it on [iphone-13]")
WHY = "fit: it was ended by signal 9"


def text_of(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """What is shown of two cells, of which one fails, on 80 columns."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    monkeypatch.setattr(shown, "err_console", console)
    with sweep_progress() as tell:
        tell(CellEvent(LABELS[0], False, "", 0.0, 0, 24, None))
        tell(CellEvent(LABELS[1], False, "", 0.0, 0, 24, None))
        tell(CellEvent(LABELS[1], True, WHY, 3.4, 1, 24, 90.0))
        tell(CellEvent(LABELS[0], True, "", 70.0, 24, 24, 0.0))
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())


def test_a_log_has_a_line_for_each_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_of(monkeypatch, terminal=False).splitlines() == [
        f"1 of 24, about 2 min left: {LABELS[1]} failed: {WHY}, 3 s",
        f"24 of 24, about 0 s left: {LABELS[0]} done, 70 s",
    ]


def test_a_terminal_shows_what_runs_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(monkeypatch, terminal=True)
    lines = re.split(r"[\r\n]+", text)
    assert max(map(len, lines)) == 80
    for end in (f"{LABELS[1]} failed: {WHY}, 3 s", f"{LABELS[0]} done, 70 s"):
        assert end in lines
    assert [line for line in lines if "1 of 24" in line and "about 2 min left" in line]


@pytest.mark.parametrize(
    ("labels", "width", "expected"),
    [
        ((), 10, ""),
        (("export",), 6, "export"),
        (("export",), 5, "expo…"),
        (("export", "fit", "parity"), 8, "expo… +2"),
        (("export",), -3, "…"),
    ],
)
def test_what_runs_is_shortened(labels: tuple[str, ...], width: int, expected: str) -> None:
    assert shown._shortened(labels, width) == expected

"""The examples of docs/python.md run as they stand there, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tinyqmoe
from exporter.bundle import BACKENDS
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "python.md"
FUNCTIONS = (
    *("export", "open_runner", "generate", "hold_package", "converse"),
    *("check_parity", "evaluate", "compare", "fit", "Bundle.open"),
)


def examples(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with the number of the line before it."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One program, in a folder of its own; an error names the line of the page."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "python_docs"}
    for line, code in examples(PAGE):
        exec(compile("\n" * line + code, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    for part in (
        "bytes",
        "manifest",
        "tokens/s",
        "checks",
        "nats of KL",
        "of weights",
        "iphone-13 pte fits",
        "scheme must be",
        "embedding must be",
    ):
        assert part in said
    assert [file.name for file in tmp_path.iterdir()] == ["demo-bundle"]


def test_every_function_has_an_example() -> None:
    code = "".join(code for _, code in examples(PAGE))
    assert [name for name in FUNCTIONS if f"tinyqmoe.{name}(" not in code] == []


def test_all_errors_and_settings_are_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    errors = [name for name in tinyqmoe.__all__ if name.endswith("Error")]
    kinds = (
        tinyqmoe.ExportSettings,
        tinyqmoe.GenerationSettings,
        tinyqmoe.EvaluationSettings,
    )
    settings = [name for kind in kinds for name in kind.__annotations__]
    assert [name for name in (*errors, *settings) if f"`{name}`" not in text] == []
    assert tuple(BACKENDS) == tinyqmoe.FORMATS

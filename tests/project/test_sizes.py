"""Sizes that keep the code readable: of files and of functions, in lines."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.paths import ROOT

FILES = sorted(
    f for part in ("exporter", "runtime_ref", "tinyqmoe") for f in (ROOT / part).rglob("*.py")
)


def functions(file: Path) -> list[tuple[int, str]]:
    """(lines, name) of every function of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        ((n.end_lineno or 0) - n.lineno + 1, f"{file.relative_to(ROOT)}:{n.name}")
        for n in ast.walk(tree)
        if isinstance(n, kinds)
    ]


def test_functions_are_taken_in_at_once() -> None:
    sizes = sorted(f for file in FILES for f in functions(file))
    assert len(sizes) > 500
    assert [f for f in sizes if f[0] > 60] == []
    assert sizes[int(0.9 * len(sizes))][0] <= 35


def test_files_are_read_in_one_sitting() -> None:
    sizes = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    assert {f: n for f, n in sizes.items() if n > 400} == {}


def test_the_main_path_fits_a_screen() -> None:
    (size,) = [
        n for n, name in functions(ROOT / "exporter" / "pipeline.py") if name.endswith(":export")
    ]
    assert size <= 40

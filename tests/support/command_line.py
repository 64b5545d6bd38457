"""The command line as tests call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from exporter.cli import app
from tests.support.documents import document_name, problems


def tinyqmoe(*arguments: str | Path, stdin: str | None = None) -> Any:
    """In this process: quick, and the kernels are loaded only once.

    A document on stdout has to be as its schema says.
    """
    words = [str(a) for a in arguments]
    result = CliRunner().invoke(app.app, words, input=stdin)
    if words[-2:] == ["--json", "-"] and result.stdout:
        assert problems(document_name(words), strict_json(result.stdout)) == []
    return result


def strict_json(text: str) -> Any:
    """Fails on NaN and Infinity, which Python's own parser lets through."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def one_error(result: Any, code: int) -> str:
    """The message of a failed command: on stderr only, and no traceback."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error:") == 1
    return str(result.stderr)

"""The command line as tests call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from exporter.cli import app


def tinyqmoe(*arguments: str | Path) -> Any:
    """In this process: quick, and the kernels are loaded only once."""
    return CliRunner().invoke(app.app, [str(a) for a in arguments])


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

"""Text at the edges of the process: ASCII streams, and arguments that are no text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.bundle import Bundle
from tests.support.bundles import copy
from tests.support.paths import ROOT

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PROGRAM = [sys.executable, "-c", "from exporter.cli.start import main; main()"]


def run(*arguments: str | bytes | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([*PROGRAM, *arguments], env=env, capture_output=True, check=False)


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}])
def test_a_terminal_of_ascii_ends_no_run(
    environment: dict[str, str], bundle: Bundle, tmp_path: Path
) -> None:
    copied = copy(bundle, tmp_path / "bündel")
    done = run("inspect", copied.path, **environment)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    prompt = "ein Bär".encode()
    done = run("run", bundle.path, "--prompt", prompt, "--max-new-tokens", "3", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"ein B")


def test_a_prompt_that_is_not_utf_8_is_2(bundle: Bundle) -> None:
    done = run("run", bundle.path, "--prompt", b"ein B\xe4r")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr

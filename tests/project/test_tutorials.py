"""The commands of the tutorials run as they stand there, in order, on the model that ships."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.test_docs import blocks_of
from tests.support.command_line import tinyqmoe
from tests.support.paths import ROOT

TUTORIALS = sorted((ROOT / "docs").glob("tutorial-*.md"))
EXIT_CODE = re.compile(r"# exit code (\d+)$")


def run_command(line: str) -> None:
    """Runs a command of this tool in this process, which has all libraries loaded."""
    expected = EXIT_CODE.search(line)
    result = tinyqmoe(*shlex.split(line, comments=True)[1:])
    assert result.exit_code == (int(expected[1]) if expected else 0), f"{line}\n{result.output}"


def run_shell(block: str) -> None:
    """Runs other commands in a shell, whose `python` is the one of the tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-euc", block], env=environment, check=True)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_commands_of_a_tutorial_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(page, "sh")
    assert sum(block.count("tinyqmoe ") for block in blocks) >= 4
    for block in blocks:
        for line in block.splitlines() if "<<" not in block else []:
            run_command(line) if line.startswith("tinyqmoe ") else run_shell(line)
        if "<<" in block:
            run_shell(block)


def test_there_is_a_tutorial_for_each_use() -> None:
    names = [page.stem.removeprefix("tutorial-") for page in TUTORIALS]
    assert names == ["android", "ci", "iphone", "rate"]

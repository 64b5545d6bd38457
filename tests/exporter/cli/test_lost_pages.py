"""A file that is cut short while it is mapped ends the command with one message and exit code 3."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporter.bundle import Bundle

# The program is open when its file is cut, and read after that.
RUN = """
import os, sys, tinyqmoe
from exporter.cli import lost_pages
lost_pages.end_with_message()
bundle, backend = sys.argv[1:]
runner = tinyqmoe.open_runner(bundle, backend=backend)
os.truncate(runner.file("model.pte"), 4096)
runner.forward([3, 5], 0)
"""
OTHER = """
import os, signal
from exporter.cli import lost_pages
lost_pages.end_with_message()
os.kill(os.getpid(), signal.SIGBUS)
"""
MAIN = """
import mmap, os, sys
from exporter.cli import app
def command():
    with open(sys.argv[1], "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
        file.truncate(0)
        print(mapped[8192])
app.app = command
app.main()
"""


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize("backend", ["native", "executorch"])
def test_a_package_that_is_cut_short(copied: Bundle, backend: str) -> None:
    done = run(RUN, copied.path, backend)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    *_, error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {copied.path / 'model.pte'} was cut short")
    assert hint.startswith("Next step: let nothing write to it, copy it again")


def test_the_command_line_says_it(tmp_path: Path) -> None:
    file = tmp_path / "weights with a space"
    file.write_bytes(bytes(65536))
    done = run(MAIN, file)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {file} was cut short while it was in use")
    assert "Traceback" not in done.stderr


def test_another_sigbus_ends_the_process_as_ever() -> None:
    done = run(OTHER)
    assert (done.returncode, done.stderr) == (-7, "")

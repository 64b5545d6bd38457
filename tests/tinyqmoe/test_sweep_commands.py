"""Sweeps of 24 real cells: the same table from any number of workers, and after any kill."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyqmoe
from tests.support.bundles import write_text_model
from tests.support.sweeps import CELLS, finished, table_bytes, write_plan
from tinyqmoe.own_commands import TINYQMOE

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    return write_plan(folder, write_text_model(folder / "model"))


@pytest.fixture(scope="module")
def expected(plan: Path) -> bytes:
    """The table from one worker."""
    tinyqmoe.sweep(plan, plan.parent / "one", workers=1)
    assert len(finished(plan.parent / "one")) == CELLS
    return table_bytes(plan.parent / "one")


@pytest.mark.parametrize("workers", [2, 4])
def test_the_table_has_the_same_bytes(
    plan: Path, expected: bytes, tmp_path: Path, workers: int
) -> None:
    tinyqmoe.sweep(plan, tmp_path / "out", workers=workers)
    assert table_bytes(tmp_path / "out") == expected


def test_what_is_killed_changes_no_byte(plan: Path, expected: bytes, tmp_path: Path) -> None:
    """The sweep itself by SIGKILL, then one of its commands."""
    out = tmp_path / "out"
    driver = started(plan, out)
    wait_for_cells(out, 4, driver)
    driver.kill()
    driver.wait()
    first = finished(out)
    assert 4 <= len(first) < CELLS
    driver = started(plan, out)
    wait_for_cells(out, len(first) + 3, driver)
    while not (running := [*commands_of(driver.pid)]):
        assert driver.poll() is None
    os.kill(running[0], signal.SIGKILL)
    assert driver.wait() == 1
    table = tinyqmoe.read_sweep(out)
    assert table.failed
    assert all("ended by signal 9" in row.message for row in table.failed)
    second = finished(out)
    assert {name: second[name] for name in first} == first
    assert subprocess.run([*TINYQMOE, "sweep", plan, out], check=False).returncode == 0
    assert {name: finished(out)[name] for name in second} == second
    assert len(finished(out)) == CELLS
    assert table_bytes(out) == expected


def started(plan: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*TINYQMOE, "sweep", str(plan), str(out), "--workers", "2"])


def wait_for_cells(out: Path, n: int, driver: subprocess.Popen[bytes]) -> None:
    while not (out / "cells").is_dir() or len(finished(out)) < n:
        assert driver.poll() is None
        time.sleep(0.05)


def commands_of(driver: int) -> Iterator[int]:
    """The commands that run for a sweep, which any of its threads has started."""
    for children in Path(f"/proc/{driver}/task").glob("*/children"):
        for process in map(int, children.read_text().split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                if b"--json" in words:  # not so what has ended and is listed still
                    yield process

"""The folder of a sweep: finished cells, failures, and locks.

    plan.json               what the plan asked for, with the address of each cell
    cells/ADDRESS/          a finished cell: cell.json, result.json, and the bundle of an export
    cells/.ADDRESS/         the same while its command runs; it takes its name by a rename
    calibrations/           what exports of one model at several rates share; it may be removed
    failed/ADDRESS.json     why the last try of a cell failed
    locks/ADDRESS           held while a cell is made, by its process too
    results.sqlite          the table, made anew from all this

So a cell is finished or it is not, whatever is killed when. Several processes, on several machines
that share the folder, can work on one sweep.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import DataError
from tinyqmoe.sweep_cells import BUNDLE, RESULT

PLAN, CELL, RESULTS = "plan.json", "cell.json", "results.sqlite"
WAIT_SECONDS = 0.2  # between two tries to have a lock


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep."""

    root: Path

    def cell(self, address: str) -> Path:
        """The folder of a finished cell."""
        return self.root / "cells" / address

    def unfinished(self, address: str) -> Path:
        """The folder in which a cell is made."""
        return self.root / "cells" / f".{address}"

    @property
    def calibrations(self) -> Path:
        """The folder of calibrations (exporter.quant.calibration_cache)."""
        return self.root / "calibrations"

    def failure(self, address: str) -> Path:
        """The file that says why a cell failed."""
        return self.root / "failed" / f"{address}.json"

    def begin(self) -> None:
        """Makes the folders that are missing."""
        for name in ("cells", "failed", "locks"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def is_finished(self, address: str) -> bool:
        """Whether a cell has its result."""
        return self.cell(address).is_dir()

    @contextlib.contextmanager
    def lock(self, address: str, stopped: Callable[[], bool]) -> Iterator[int]:
        """Has the lock of a cell, whose descriptor a child may keep; waits while another has it.

        A command that has outlived its sweep holds it until it ends. Raises InterruptedError where
        `stopped` says so.
        """
        descriptor = os.open(self.root / "locks" / address, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not _taken(descriptor):
                if stopped():
                    raise InterruptedError("the sweep was stopped")
                time.sleep(WAIT_SECONDS)
            yield descriptor
        finally:
            os.close(descriptor)

    def publish(self, address: str, facts: dict[str, Any]) -> None:
        """Gives a cell that was made its name, on the disk too; its failure is forgotten."""
        from exporter import real_files

        made = self.unfinished(address)
        (made / CELL).write_text(json.dumps(facts), encoding="utf-8")
        real_files.sync(made)
        real_files.rename(made, self.cell(address))
        self.failure(address).unlink(missing_ok=True)

    def fail(self, address: str, facts: dict[str, Any]) -> None:
        """Notes why a cell failed. What an export has finished stays for the next try."""
        write_json(self.failure(address), facts)

    def read(self, address: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Facts and result of a finished cell; None of one that is not. Raises DataError."""
        if not self.is_finished(address):
            return None
        return _read(self.cell(address) / CELL), _read(self.cell(address) / RESULT)

    def why_failed(self, address: str) -> str | None:
        """The message of a cell that failed; None where there is none. Raises DataError."""
        file = self.failure(address)
        return str(_read(file)["message"]) if file.is_file() else None

    def plan(self) -> dict[str, Any]:
        """What the plan asked for. Raises DataError."""
        return _read(self.root / PLAN)

    def adopt(self, other: SweepFolder) -> None:
        """Copies the finished cells of another folder that are not here, without their bundles.

        A copy takes its name by a rename too.
        """
        from exporter import real_files

        for folder in sorted((other.root / "cells").glob("[!.]*")):
            if self.is_finished(folder.name):
                continue
            copy = self.unfinished(folder.name)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(BUNDLE))
            real_files.rename(copy, self.cell(folder.name))


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes a file that is whole or not there."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(new, file)


def _read(file: Path) -> dict[str, Any]:
    """The object in a file that a sweep wrote. Raises DataError."""
    hint = "give the folder of a sweep; what is damaged in its cells can be removed and made anew"
    if not file.is_file():
        raise DataError(f"there is no {file}", hint=hint)
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise DataError(f"{file} is not what a sweep writes", hint=hint)
    return value

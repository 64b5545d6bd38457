"""Cells that are made here: each by a command in a process of its own."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyqmoe.own_commands import PASSED_OR_FAILED, Processes
from tinyqmoe.sweep_cells import BUNDLE, EXPORT, RESULT, Cell, versions
from tinyqmoe.sweep_folder import SweepFolder

# A thread for each process, whatever runs beside it: sums of floats follow the number of threads,
# and the table must not.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class CellTask:
    """A cell to be made, with all that a process on another machine has to know.

    out: folder of the sweep, absolute. export: address of the cell that makes its bundle. label: as
    a person would say it. memory_bytes: forecast of its command. versions: of what computes, by
    which the cell has its address.
    """

    out: Path
    cell: Cell
    export: str
    label: str
    memory_bytes: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Made:
    """The end of a cell: why it failed, empty where it did not, and how long it took."""

    message: str
    seconds: float


def make(task: CellTask, processes: Processes) -> Made:
    """The end of a cell, which is made and published unless it is finished.

    Where another process is making it, that is waited for. Raises InterruptedError where
    `processes` were stopped.
    """
    folder, begin = SweepFolder(task.out), time.monotonic()
    if reason := _cannot(task, folder):
        return Made(reason, 0.0)
    with folder.lock(task.cell.address, lambda: processes.stopped) as lock:
        if folder.is_finished(task.cell.address):
            return Made("", 0.0)
        message = _run(task, folder, processes, lock)
        return Made(message, time.monotonic() - begin)


def make_on_node(task: CellTask) -> Made:
    """The same on a machine of a cluster. The command ends with this process, where that can be."""
    processes = Processes(ONE_THREAD)
    try:
        return make(task, processes)
    except BaseException:
        processes.stop()
        raise


def _cannot(task: CellTask, folder: SweepFolder) -> str:
    """Why this machine cannot make a cell; empty if it can."""
    if not folder.root.is_dir():
        return f"{platform.node()} has no folder {folder.root}: all machines have to share it"
    own = versions()
    others = [f"{n} {own.get(n)}, not {v}" for n, v in task.versions.items() if own.get(n) != v]
    return f"{platform.node()} has {', '.join(others)}" if others else ""


def _run(task: CellTask, folder: SweepFolder, processes: Processes, lock: int) -> str:
    """Runs the command of a cell and publishes its result, or returns why it failed."""
    cell = task.cell
    place = folder.unfinished(cell.address)
    place.mkdir(exist_ok=True)
    bundle = (place if cell.kind == EXPORT else folder.cell(task.export)) / BUNDLE
    if cell.kind == EXPORT and bundle.exists():  # it was killed between bundle and result
        shutil.rmtree(bundle)
    words = cell.command(bundle, place / RESULT, folder.calibrations)
    ended = processes.run(words, [lock])
    if ended.code not in PASSED_OR_FAILED or not (place / RESULT).is_file():
        if processes.stopped:
            raise InterruptedError("the sweep was stopped")
        return str(ended.error(cell.kind))
    facts: dict[str, Any] = {"kind": cell.kind, "seconds": round(ended.seconds, 1)}
    if cell.kind == EXPORT:
        facts["facts"] = _facts(bundle)
    folder.publish(cell.address, facts)
    return ""


def _facts(bundle: Path) -> dict[str, Any]:
    """The facts of a bundle that the table has, so that it needs no bundle."""
    from exporter.bundle import Bundle
    from tinyqmoe.check_facts import facts_of

    opened = Bundle.open(bundle)
    return facts_of(opened, opened.manifest.artifacts).to_dict()

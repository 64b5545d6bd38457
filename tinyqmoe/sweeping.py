"""A sweep: many bundles, made and measured by our own commands side by side."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyqmoe.own_commands import (
    PASSED_OR_FAILED,
    Processes,
    Room,
    all_cores,
    side_by_side,
)
from tinyqmoe.sweep_cells import BUNDLE, EXPORT, RESULT, BundleCells, Cell, cells_of, chosen
from tinyqmoe.sweep_folder import PLAN, SweepFolder, write_json
from tinyqmoe.sweep_plan import SweepPlan, read_plan
from tinyqmoe.sweep_results import merge, table_of

if TYPE_CHECKING:
    from runtime_ref.sweep_table import SweepTable

# A thread for each process, whatever runs beside it: sums of floats follow the number of threads,
# and the table must not.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class CellEnd:
    """The end of a cell, for those who watch: what it was, and how far the sweep is.

    message: why it failed, empty where it did not. left_seconds: an estimate of what is left.
    """

    label: str
    message: str
    seconds: float
    done: int
    total: int
    left_seconds: float


@dataclass
class _Run:
    """A sweep that runs: its folder, and what its threads share."""

    folder: SweepFolder
    told: Callable[[CellEnd], None]
    room: Room
    total: int
    processes: Processes = field(default_factory=lambda: Processes(ONE_THREAD))
    done: int = 0
    begun: float = field(default_factory=time.monotonic)
    counting: threading.Lock = field(default_factory=threading.Lock)

    def group(self, group: BundleCells) -> None:
        """Makes the cells of a bundle that are not finished, one after another.

        Where there is no bundle, nothing can be measured.
        """
        for cell in group.cells:
            if not self.folder.is_finished(cell.address):
                self.cell(group, cell)
            if not self.folder.is_finished(group.export.address):
                return

    def cell(self, group: BundleCells, cell: Cell) -> None:
        """Makes one cell, unless another process has made it meanwhile."""
        needed = self.room.all_bytes if cell.alone else group.memory_bytes
        with (
            self.room.take(needed),
            self.folder.lock(cell.address, lambda: self.processes.stopped) as lock,
        ):
            if self.folder.is_finished(cell.address):
                return
            begin = time.monotonic()
            message = self.make(group, cell, lock)
            what = f"{cell.kind} of {group.planned.label}"
            what += f" on {cell.device}" if cell.device else ""
            skipped = len(group.measures) if message and cell.kind == EXPORT else 0
            self.tell(what, message, time.monotonic() - begin, 1 + skipped)

    def make(self, group: BundleCells, cell: Cell, lock: int) -> str:
        """Runs the command of a cell and publishes its result, or returns why it failed."""
        place = self.folder.unfinished(cell.address)
        place.mkdir(exist_ok=True)
        made = self.folder.cell(group.export.address)
        bundle = (place if cell.kind == EXPORT else made) / BUNDLE
        if cell.kind == EXPORT and bundle.exists():  # it was killed between bundle and result
            shutil.rmtree(bundle)
        words = cell.command(bundle, place / RESULT, self.folder.calibrations)
        ended = self.processes.run(words, [lock])
        facts: dict[str, Any] = {"kind": cell.kind, "seconds": round(ended.seconds, 1)}
        if ended.code not in PASSED_OR_FAILED or not (place / RESULT).is_file():
            if self.processes.stopped:
                raise InterruptedError("the sweep was stopped")
            message = str(ended.error(cell.kind))
            self.folder.fail(cell.address, {**facts, "code": ended.code, "message": message})
            return message
        if cell.kind == EXPORT:
            facts["facts"] = _facts(bundle)
        self.folder.publish(cell.address, facts)
        return ""

    def tell(self, label: str, message: str, seconds: float, n_cells: int) -> None:
        """Says that a cell has ended, and with it those that need its result."""
        with self.counting:
            self.done += n_cells
            spent, left = time.monotonic() - self.begun, max(0, self.total - self.done)
            rest = spent / self.done * left
            self.told(CellEnd(label, message, seconds, self.done, self.total, rest))


def sweep(
    plan: SweepPlan | str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    only: Sequence[str] = (),
    told: Callable[[CellEnd], None] = lambda end: None,
) -> SweepTable:
    """The table of a plan, whose cells are made in the folder `out`; finished ones are taken.

    Each cell is a command in a process of its own, with one thread. `workers` of them run at once,
    as many as there are cores by default, and as have room in memory by the forecast. `only` are
    the addresses of bundles, to make a part; `merge` then makes the file of results. `told` hears
    of the end of each cell. A cell that fails is a row with its message, and is tried again by the
    next sweep. Raises TinyQMoEError where the plan is wrong, before any work.
    """
    from exporter.memory import available_bytes

    plan = plan if isinstance(plan, SweepPlan) else read_plan(Path(plan))
    groups, folder = cells_of(plan), SweepFolder(Path(out))
    wanted = chosen(groups, only)
    folder.begin()
    write_json(folder.root / PLAN, describe(plan, groups))
    cells = {cell.address for group in wanted for cell in group.cells}
    total = sum(not folder.is_finished(address) for address in cells)
    run = _Run(folder, told, Room(available_bytes()), total)
    jobs = [partial(run.group, group) for group in wanted]
    side_by_side(jobs, run.processes, workers or all_cores(), lambda place, none: None)
    return table_of(folder) if only else merge(out)


def describe(plan: SweepPlan, groups: Sequence[BundleCells]) -> dict[str, Any]:
    """A plan as plain values, with the addresses of its cells: what `merge` reads."""
    bundles = []
    for group in groups:
        cells = [{"kind": c.kind, "address": c.address, "device": c.device} for c in group.cells]
        planned = group.planned
        own = {"model": planned.name, "scheme": planned.scheme, "bits": planned.bits}
        bundles.append({**own, "cells": cells})
    return {
        "bundles": bundles,
        "devices": list(plan.devices),
        "rules": [asdict(rule) for rule in plan.rules],
    }


def _facts(bundle: Path) -> dict[str, Any]:
    """The facts of a bundle that the table has, so that it needs no bundle."""
    from exporter.bundle import Bundle
    from tinyqmoe.check_facts import facts_of

    opened = Bundle.open(bundle)
    return facts_of(opened, opened.manifest.artifacts).to_dict()

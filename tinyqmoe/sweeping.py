"""A sweep: many bundles, made and measured by our own commands side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import UsageError
from tinyqmoe.own_commands import side_by_side
from tinyqmoe.sweep_cells import EXPORT, BundleCells, Cell, cells_of, chosen, versions
from tinyqmoe.sweep_executors import EXECUTORS, Executor, LocalExecutor
from tinyqmoe.sweep_folder import PLAN, SweepFolder, write_json
from tinyqmoe.sweep_plan import SweepPlan, read_plan
from tinyqmoe.sweep_progress import CellEvent, SweepProgress
from tinyqmoe.sweep_results import merge, table_of
from tinyqmoe.sweep_tasks import CellTask

if TYPE_CHECKING:
    from runtime_ref.sweep_table import SweepTable


def sweep(
    plan: SweepPlan | str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    executor: Executor | str = "local",
    only: Sequence[str] = (),
    told: Callable[[CellEvent], None] = lambda event: None,
) -> SweepTable:
    """The table of a plan, whose cells are made in the folder `out`; finished ones are taken.

    Each cell is a command in a process of its own, with one thread. `executor` is where: "local",
    "ray" for tasks of a Ray cluster, or "slurm" for jobs by submitit. `workers` of "local" run at
    once, as many as there are cores by default, and as have room in memory by the forecast. `only`
    are the addresses of bundles, to make a part; `merge` then makes the file of results. `told`
    hears of the begin and end of each cell. A cell that fails is a row with its message, and is
    tried again by the next sweep. Raises TinyQMoEError where the plan is wrong, before any work.
    """
    plan = plan if isinstance(plan, SweepPlan) else read_plan(Path(plan))
    groups, folder = cells_of(plan), SweepFolder(Path(out).resolve())
    wanted = chosen(groups, only)
    where = _executor(executor, workers, folder.root)
    folder.begin()
    write_json(folder.root / PLAN, describe(plan, groups))
    run = _Run(folder, where, _progress(folder, wanted, told))
    jobs = [partial(run.group, group) for group in wanted]
    side_by_side(jobs, where, where.at_once or len(jobs), lambda place, none: None)
    return table_of(folder) if only else merge(out)


def _executor(given: Executor | str, workers: int | None, out: Path) -> Executor:
    """The executor that is given, or has this name. Raises UsageError, MissingComponentError."""
    if given == "local":
        return LocalExecutor(workers)
    if workers is not None:
        what = "workers are those of the executor local: a cluster has its own"
        raise UsageError(what, hint="leave --workers away")
    if not isinstance(given, str):
        return given
    if given not in EXECUTORS:
        known = ", ".join(EXECUTORS)
        raise UsageError(f"there is no executor {given!r}", hint=f"choose one of {known}")
    return EXECUTORS[given](out)


def _progress(
    folder: SweepFolder, groups: Sequence[BundleCells], told: Callable[[CellEvent], None]
) -> SweepProgress:
    """The cells that are left, with the seconds that finished ones took."""
    kinds = {cell.address: cell.kind for group in groups for cell in group.cells}
    seconds: dict[str, list[float]] = {}
    for address in [*kinds]:
        if (found := folder.read(address)) is not None:
            seconds.setdefault(kinds.pop(address), []).append(found[0]["seconds"])
    return SweepProgress(kinds, seconds, told)


@dataclass
class _Run:
    """A sweep that runs."""

    folder: SweepFolder
    executor: Executor
    progress: SweepProgress

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
        """Has one cell made, and notes why it failed, if it did."""
        label = f"{cell.kind} of {group.planned.label}"
        label += f" on {cell.device}" if cell.device else ""
        task = CellTask(
            *(self.folder.root, cell, group.export.address, label),
            *(group.memory_bytes, versions()),
        )
        self.progress.begin(task)
        made = self.executor.make(task)
        skipped = list[str]()
        if made.message:
            facts = {"kind": cell.kind, "seconds": made.seconds, "message": made.message}
            self.folder.fail(cell.address, facts)
            skipped = [c.address for c in group.measures] if cell.kind == EXPORT else []
        self.progress.end(task, made, skipped)


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

"""Jobs of a sweep for machines that others start: a matrix of GitHub, a script of Slurm."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from tinyqmoe.sweep_cells import BundleCells, cells_of
from tinyqmoe.sweep_plan import read_plan

MB = 10**6
SLURM = """#!/bin/sh
# One job for each bundle of {plan}. Then: tinyqmoe sweep {plan} {out} --merge
#SBATCH --job-name=tinyqmoe-sweep
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task=1
#SBATCH --mem={mem}M
set -- {addresses}
shift "$SLURM_ARRAY_TASK_ID"
exec tinyqmoe sweep {plan} {out} --workers 1 --only "$1"
"""


def github_matrix(groups: list[BundleCells], plan: Path, out: Path) -> str:
    """The matrix of a job of GitHub as JSON in one line: a name, and what `--only` gets."""
    jobs = [{"name": g.planned.label, "only": g.export.address} for g in groups]
    return json.dumps({"include": jobs})


def slurm_script(groups: list[BundleCells], plan: Path, out: Path) -> str:
    """A script for sbatch: an array with a job for each bundle, and the memory of the largest."""
    return SLURM.format(
        plan=shlex.quote(str(plan)),
        out=shlex.quote(str(out)),
        last=len(groups) - 1,
        mem=-(-max(g.memory_bytes for g in groups) // MB),
        addresses=" ".join(g.export.address for g in groups),
    )


KINDS: dict[str, Callable[[list[BundleCells], Path, Path], str]] = {
    "github-matrix": github_matrix,
    "slurm": slurm_script,
}


def jobs_text(kind: str, plan: str | Path, out: str | Path) -> str:
    """The jobs of a plan as text. Nothing is run. Raises TinyQMoEError as a sweep does."""
    return KINDS[kind](cells_of(read_plan(Path(plan))), Path(plan), Path(out))

"""Sweeps in clusters: of Ray, whose nodes are raylets here, and jobs that submitit starts here.

The commands are the real ones.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tinyqmoe as library
from exporter.errors import MissingComponentError, UsageError
from tests.support.bundles import write_text_model
from tests.support.command_line import one_error, tinyqmoe
from tests.support.sweeps import CELLS, finished, table_bytes, write_plan
from tinyqmoe import sweep_executors
from tinyqmoe.sweep_cells import cells_of, versions
from tinyqmoe.sweep_executors import RayExecutor, SlurmExecutor
from tinyqmoe.sweep_plan import SPEED, read_plan
from tinyqmoe.sweep_tasks import CellTask, make_on_node

NODE = {"num_cpus": 1, "memory": 3 * 10**9, "object_store_memory": 100 * 10**6}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("cluster") / "model")


def first_task(plan: Path, out: Path) -> CellTask:
    """The export of the first bundle of a plan."""
    group = cells_of(read_plan(plan))[0]
    words = (out, group.export, group.export.address, "an export", group.memory_bytes)
    return CellTask(*words, versions())


# ---- Ray


@contextmanager
def ray_cluster() -> Iterator[tuple[list[Any], Callable[[Any], None]]]:
    """The two nodes of a cluster whose head runs nothing, and what kills one of them."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    try:
        nodes = [cluster.add_node(**NODE) for _ in range(2)]
        ray.init(cluster.address, log_to_driver=False, logging_level="error")
        yield nodes, lambda node: cluster.remove_node(node, allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.long
def test_a_node_of_ray_that_is_killed_loses_nothing(model: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, model)
    library.sweep(plan, tmp_path / "here", workers=2)
    out, at_kill = tmp_path / "out", dict[str, int]()
    begun: set[str] = set()
    with ray_cluster() as ((lost, _), kill):

        def kill_in_the_middle(event: library.CellEvent) -> None:
            said = (event.message or "done") if event.ended else "begun"
            print(f"{event.done} of {event.total}: {event.label} {said}")
            if event.ended and event.done == 6:
                at_kill.update(finished(out))
                begun.update(p.name[1:] for p in (out / "cells").glob(".[a-z]*"))
                threading.Thread(target=kill, args=(lost,)).start()
                print(f"a node is killed; begun and not finished: {sorted(begun)}")

        table = library.sweep(plan, out, executor="ray", told=kill_in_the_middle)
    assert table.failed == []
    assert 6 <= len(at_kill) < CELLS
    assert begun
    assert {name: finished(out)[name] for name in at_kill} == at_kill
    assert len(finished(out)) == CELLS
    assert table_bytes(out) == table_bytes(tmp_path / "here")


def test_ray_that_is_not_there_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    plan = write_plan(tmp_path, model)
    said = one_error(tinyqmoe("sweep", plan, tmp_path / "out", "--executor", "ray"), 5)
    assert "the executor ray needs packages that are not installed: ray" in said
    assert not (tmp_path / "out").exists()


# ---- Slurm


@pytest.mark.long
def test_jobs_of_submitit_make_the_same_table(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    plan, out = write_plan(tmp_path, model, rates=(3,)), tmp_path / "out"
    jobs = SlurmExecutor(out, cluster="local")
    table = library.sweep(plan, out, executor=jobs)
    assert table.failed == []
    assert len(list((out / "slurm").glob("*_result.pkl"))) == len(finished(out)) == 3
    before = finished(out)
    library.sweep(plan, out, workers=1)
    assert finished(out) == before
    assert table_bytes(out)


def test_a_job_that_dies_is_a_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    monkeypatch.setattr(sweep_executors, "make_on_node", die)
    plan, out = write_plan(tmp_path, model, rates=(3,)), tmp_path / "out"
    (row,) = library.sweep(plan, out, executor=SlurmExecutor(out, cluster="local")).failed
    assert "the cluster has given it up" in row.message


def die(task: CellTask) -> None:
    os._exit(9)


def test_a_job_of_slurm_asks_for_its_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the script that submitit hands to a stand-in for sbatch."""
    pytest.importorskip("submitit", reason="needs the extra slurm")
    for name in ("srun", "sbatch", "sacct"):
        (tmp_path / name).write_text("#!/bin/sh\necho Submitted batch job $$\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = SlurmExecutor(tmp_path / "out")
    task = first_task(write_plan(tmp_path, model), tmp_path / "out")
    task = replace(task, memory_bytes=3 * 10**9)
    timed = replace(task, cell=replace(task.cell, kind=SPEED))
    scripts = [jobs._submit(asked).paths.submission_file.read_text() for asked in (timed, task)]
    assert all("#SBATCH --mem=3GB\n" in script for script in scripts)
    assert all("#SBATCH --cpus-per-task=1\n" in script for script in scripts)
    assert ["#SBATCH --exclusive\n" in script for script in scripts] == [True, False]
    assert "exclusive" not in scripts[1]


def test_slurm_that_is_not_there_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path, model)
    words = ("sweep", plan, tmp_path / "out", "--executor", "slurm")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        assert "slurm needs packages that are not installed" in one_error(tinyqmoe(*words), 5)
    pytest.importorskip("submitit", reason="needs the extra slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no srun" in one_error(tinyqmoe(*words), 5)


# ---- both


def test_workers_are_of_this_machine(model: Path, tmp_path: Path) -> None:
    words = ("sweep", write_plan(tmp_path, model), tmp_path / "out", "--workers", "2")
    said = one_error(tinyqmoe(*words, "--executor", "ray"), 2)
    assert "workers are those of the executor local" in said
    with pytest.raises(UsageError, match="there is no executor 'dask'"):
        library.sweep(words[1], tmp_path / "out", executor="dask")


def test_a_node_that_computes_otherwise_makes_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = first_task(write_plan(tmp_path, model), out)
    assert "all machines have to share it" in make_on_node(task).message
    out.mkdir()
    task = replace(task, versions={**task.versions, "torch": "1.0"})
    assert f"has torch {versions()['torch']}, not 1.0" in make_on_node(task).message
    assert list(out.iterdir()) == []


def test_ray_without_a_cluster_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(MissingComponentError, match="there is no Ray cluster"):
        RayExecutor()

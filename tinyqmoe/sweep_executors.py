"""Where the cells of a sweep are made: in processes here, in a Ray cluster, or in jobs of Slurm.

An executor's `make` waits for the end of a cell, and is called by many threads at once. What a
cluster loses is made again there; what it gives up is a row with its message.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from exporter.errors import MissingComponentError, require_extra
from tinyqmoe.own_commands import Processes, Room, all_cores
from tinyqmoe.sweep_tasks import ONE_THREAD, CellTask, Made, make, make_on_node

RETRIES = 3  # of a cell whose node was lost
JOB_MINUTES = 24 * 60  # of a job of Slurm, if SBATCH_TIMELIMIT says nothing else
GB = 10**9


class Executor(Protocol):
    """Makes cells. at_once: how many it is given together, None for all that can be made."""

    at_once: int | None

    def make(self, task: CellTask) -> Made:
        """The end of a cell. Raises InterruptedError after `stop`."""

    def stop(self) -> None:
        """Ends what runs, and lets nothing start."""


class LocalExecutor:
    """Processes of this machine: so many at once, and no more than have room in its memory."""

    def __init__(self, workers: int | None = None) -> None:
        from exporter.memory import available_bytes

        self.at_once: int | None = workers or all_cores()
        self._room, self._processes = Room(available_bytes()), Processes(ONE_THREAD)

    def make(self, task: CellTask) -> Made:
        needed = self._room.all_bytes if task.cell.alone else task.memory_bytes
        with self._room.take(needed):
            return make(task, self._processes)

    def stop(self) -> None:
        self._processes.stop()


class RayExecutor:
    """Tasks of the Ray cluster that RAY_ADDRESS names, or that this machine is a part of.

    A task takes one core and the forecast memory of a node; one that is timed takes all cores of
    the largest node. Tasks are spread, and those of a node that is lost run again elsewhere.
    """

    at_once: int | None = None

    def __init__(self) -> None:
        self._ray = _ray()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._cores = max(node.get("CPU", 0) for node in nodes)
        self._memory_bytes = int(max(node.get("memory", 0) for node in nodes))
        self._started = _Started(self._ray.cancel)

    def make(self, task: CellTask) -> Made:
        from ray import exceptions

        options = {
            "num_cpus": self._cores if task.cell.alone else 1,
            "memory": min(task.memory_bytes, self._memory_bytes),
            "max_retries": RETRIES,
            "scheduling_strategy": "SPREAD",
            "name": task.label,
        }
        remote = self._ray.remote(make_on_node).options(**options)
        job = self._started.add(lambda: remote.remote(task))
        try:
            made: Made = self._ray.get(job)
        except exceptions.RayTaskError:
            raise  # of our own code
        except exceptions.RayError as error:
            return self._started.lost(error)
        return made

    def stop(self) -> None:
        self._started.stop()


class SlurmExecutor:
    """Jobs of Slurm, a cell each, by submitit; what it writes lies in OUT/slurm.

    A job takes one core and the forecast memory; one that is timed takes a node. sbatch's own
    variables have the rest, such as SBATCH_PARTITION. `cluster` is submitit's name of what starts
    jobs: "slurm", or "local" for this machine.
    """

    at_once: int | None = None

    def __init__(self, out: Path, cluster: str = "slurm") -> None:
        require_extra("slurm", ("submitit",), "the executor slurm")
        import submitit

        if cluster == "slurm" and shutil.which("srun") is None:
            hint = "`--emit slurm` prints a script that can be taken to one"
            raise MissingComponentError("there is no srun: no Slurm cluster is here", hint=hint)
        self._new_jobs = partial(submitit.AutoExecutor, out.resolve() / "slurm", cluster)
        self._started = _Started(lambda job: job.cancel())
        self._lost = submitit.core.utils.UncompletedJobError

    def make(self, task: CellTask) -> Made:
        job = self._started.add(lambda: self._submit(task))
        try:
            made: Made = job.result()
        except self._lost as error:
            return self._started.lost(error)
        return made

    def _submit(self, task: CellTask) -> Any:
        """A job for a cell."""
        jobs = self._new_jobs()
        jobs.update_parameters(
            name=task.cell.address,
            cpus_per_task=1,
            mem_gb=task.memory_bytes / GB,
            timeout_min=JOB_MINUTES,
            **({"slurm_exclusive": True} if task.cell.alone else {}),
        )
        return jobs.submit(make_on_node, task)

    def stop(self) -> None:
        self._started.stop()


class _Started:
    """Jobs that a cluster was given, which `cancel` ends."""

    def __init__(self, cancel: Callable[[Any], Any]) -> None:
        self._cancel = cancel
        self._jobs: list[Any] = []
        self._stopped = False
        self._lock = threading.Lock()

    def add(self, start: Callable[[], Any]) -> Any:
        """A job that is started, one at a time, unless all were stopped.

        Raises InterruptedError.
        """
        with self._lock:
            if self._stopped:
                raise InterruptedError("the sweep was stopped")
            self._jobs.append(start())
            return self._jobs[-1]

    def stop(self) -> None:
        """Cancels all jobs, and lets none start; one that has ended stays as it is."""
        with self._lock:
            self._stopped = True
            for job in self._jobs:
                self._cancel(job)

    def lost(self, error: Exception) -> Made:
        """The end of a cell that the cluster has given up. Raises InterruptedError after `stop`."""
        if self._stopped:
            raise InterruptedError("the sweep was stopped") from error
        first, *_ = str(error).strip().splitlines() or [""]
        return Made(f"the cluster has given it up: {type(error).__name__}: {first}", 0.0)


def _ray() -> Any:
    """The module of Ray, connected to a cluster. Raises MissingComponentError."""
    require_extra("ray", ("ray",), "the executor ray")
    import ray

    if not ray.is_initialized():
        try:
            ray.init("auto", log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            hint = "start one by `ray start --head`, or set RAY_ADDRESS"
            raise MissingComponentError("there is no Ray cluster", hint=hint) from error
    return ray


EXECUTORS: dict[str, Callable[[Path], Executor]] = {
    "local": lambda out: LocalExecutor(),
    "ray": lambda out: RayExecutor(),
    "slurm": SlurmExecutor,
}

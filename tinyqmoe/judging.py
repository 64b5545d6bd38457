"""Judging packages: whether they answer like the quantized model they were made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tinyqmoe.devices import Devices, find_devices, plan_packages
from tinyqmoe.own_commands import (
    LIBRARIES_BYTES,
    PASSED_OR_FAILED,
    Processes,
    Room,
    all_cores,
    side_by_side,
)
from tinyqmoe.packages import (
    ALL,
    choose_packages,
    native_packages,
    no_progress,
    open_bundle,
    open_runner,
    option_value,
    prepare,
)
from tinyqmoe.settings import names

if TYPE_CHECKING:
    from exporter.bundle import Artifact, Bundle
    from exporter.progress import Progress
    from runtime_ref.device.run import DevicePlan
    from runtime_ref.generate import Runner
    from runtime_ref.parity import ParityReport
    from runtime_ref.reports.files import Judged
    from runtime_ref.residency import Mode


@dataclass(frozen=True)
class BundleParity:
    """The verdicts on the packages of a bundle.

    There is one for each package, or one for each package on each device.
    """

    packages: list[Judged]

    @property
    def passed(self) -> bool:
        """Whether every check of every package passed, and every package fits its devices."""
        return bool(self.packages) and all(judged.passed for judged in self.packages)

    @property
    def reports(self) -> list[ParityReport]:
        """The checks of each package.

        A run that a limit ended before its verdict has none.
        """
        return [judged.parity for judged in self.packages if judged.parity]

    def to_dict(self) -> dict[str, Any]:
        """The verdict and all checks as plain values, with the runs on devices if there are any."""
        runs = [judged.run.to_dict() for judged in self.packages if judged.run]
        plain = {"passed": self.passed, "packages": [r.to_dict() for r in self.reports]}
        return plain | ({"devices": runs} if runs else {})


def check_parity(
    bundle: Bundle | str | Path,
    *,
    backends: str | Sequence[str] = ALL,
    residency: Mode | None = None,
    devices: Devices = (),
    entitlement: bool = False,
    progress: Progress | None = None,
) -> BundleParity:
    """Verdicts whether packages answer like the quantized model in PyTorch.

    All packages are judged by default, a `.pte` by ExecuTorch and by a session of the core.
    `backends` are backends or formats. On `devices` each
    package runs in a process of its own under the device's limits, and must fit besides;
    `residency` None is "auto" there and else "stream". A failed check is no error: `passed` of the
    result says so. Raises TinyQMoEError.
    """
    from runtime_ref.reports.files import Judged

    profiles = find_devices(devices)
    bundle, progress = open_bundle(bundle), progress or no_progress
    chosen = choose_packages(bundle.manifest, backends)
    if profiles:
        plans = plan_packages(bundle.manifest, chosen, profiles, residency, entitlement)
        return BundleParity(_judge_on_devices(bundle, plans, progress))
    if ALL in names(backends):
        chosen += native_packages(bundle.manifest)
    for artifact in chosen:  # what is missing is told before the first package is run
        prepare(artifact, progress)
    judged = []
    for artifact in chosen:
        runner = open_runner(
            bundle,
            backend=artifact.format,
            residency=residency or "stream",
            progress=progress,
        )
        judged.append(Judged(judge(bundle, runner, progress), None))
    return BundleParity(judged)


def parity_side_by_side(
    bundle: Bundle, backends: str | Sequence[str], progress: Progress
) -> list[ParityReport]:
    """Checks of packages as `check_parity` makes them, each in a process of its own.

    As many run at once as there are cores, and as have room in memory by the forecast. Raises
    TinyQMoEError.
    """
    from exporter.memory import available_bytes
    from runtime_ref.device.sandbox_tasks import parity_report

    chosen = choose_packages(bundle.manifest, backends)
    if ALL in names(backends):
        chosen += native_packages(bundle.manifest)
    for artifact in chosen:
        prepare(artifact, progress)
    room, processes = Room(available_bytes()), Processes()
    reports: dict[int, ParityReport] = {}
    stage = "check parity, package by package"
    progress(stage, 0, len(chosen))

    def judge_apart(artifact: Artifact) -> dict[str, Any]:
        with room.take(_forecast(bundle, artifact)), TemporaryDirectory() as folder:
            file = Path(folder, "parity.json")
            words = ["--backend", option_value(artifact), "--json", str(file)]
            ended = processes.run(["parity", str(bundle.path), *words])
            if ended.code not in PASSED_OR_FAILED:
                raise ended.error(f"parity of {artifact.format}")
            return dict(json.loads(file.read_bytes())["packages"][0])

    def keep(place: int, plain: dict[str, Any]) -> None:
        reports[place] = parity_report(plain)
        progress(stage, len(reports), len(chosen))

    jobs = [partial(judge_apart, artifact) for artifact in chosen]
    side_by_side(jobs, processes, all_cores(), keep)
    return [reports[place] for place in range(len(chosen))]


def _forecast(bundle: Bundle, artifact: Artifact) -> int:
    """The memory that a process takes which runs a package, in bytes: its own and that of files."""
    from runtime_ref.device.prediction import predict
    from runtime_ref.residency import Residency

    predicted = predict(bundle.manifest, artifact, Residency())
    return LIBRARIES_BYTES + predicted.dirty_bytes + predicted.clean_bytes


def judge(bundle: Bundle, runner: Runner, progress: Progress) -> ParityReport:
    """The checks of one package.

    `progress` gets the number of tokens that were run, and of all.
    """
    from runtime_ref import parity

    total, done = parity.work_tokens(bundle, runner.artifact), 0
    stage = f"check parity of {runner.name}"

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(stage, done, total)

    progress(stage, 0, total)
    return parity.check_parity(bundle, runner, advance)


def _judge_on_devices(
    bundle: Bundle, plans: Sequence[DevicePlan], progress: Progress
) -> list[Judged]:
    from runtime_ref.device import run
    from runtime_ref.device.sandbox_tasks import parity_report
    from runtime_ref.reports.files import Judged

    for plan in plans:
        prepare(plan.artifact, progress)
    runs = run.run_each(bundle, plans, "parity", progress)
    return [Judged(parity_report(r.report.result) if r.report.result else None, r) for r in runs]

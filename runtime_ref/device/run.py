"""Plan and run of a package on a simulated phone.

A plan has the memory it is predicted to take, a run what it took under the limit of the phone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from exporter.bundle import Artifact, Bundle, Manifest
from exporter.progress import Progress
from runtime_ref import runners
from runtime_ref.device import prediction as predictions
from runtime_ref.device import sandbox, sandbox_report, sandbox_tasks
from runtime_ref.device.prediction import MemoryPrediction
from runtime_ref.device.profile import DeviceProfile, MemoryBudget, memory_budget
from runtime_ref.device.projection import Measured, Projection, project, token_traffic
from runtime_ref.device.sandbox_report import SandboxReport
from runtime_ref.residency import Mode, Residency

MIN_CONTEXT = 256  # less is of no use to a chat
# What `auto` leaves free beside a prediction: a share of it, and bytes. Predictions are not exact.
RESERVE_SHARE, RESERVE_BYTES = 0.1, 8_000_000


@dataclass(frozen=True)
class DevicePlan:
    """Package on a device, before it runs: its budget, residency and predicted memory."""

    profile: DeviceProfile
    budget: MemoryBudget
    artifact: Artifact
    residency: Residency
    prediction: MemoryPrediction

    @property
    def package(self) -> str:
        """Name of the package, as its runner is called."""
        return runners.module(self.artifact.format).NAME

    @property
    def problems(self) -> list[str]:
        """Reasons why it is predicted not to fit; empty if it fits."""
        return predictions.problems(self.prediction, self.budget)

    @property
    def shortfall_bytes(self) -> int:
        """Size of files that find no room beside dirty memory, in bytes.

        A token has to read them again.
        """
        room = max(0, self.budget.available_bytes - self.prediction.dirty_bytes)
        return max(0, self.prediction.clean_bytes - room)

    def to_dict(self) -> dict[str, Any]:
        """Plan as plain values."""
        return {
            "device": self.profile.name,
            "format": self.artifact.format,
            "fits": not self.problems,
            "problems": self.problems,
            "budget": asdict(self.budget),
            "residency": sandbox_tasks.plain(self.residency),
            "prediction": self.prediction.to_dict(),
            "shortfall_bytes": self.shortfall_bytes,
        }


@dataclass(frozen=True)
class DeviceRun:
    """Package after its run. `problems` says why it does not fit; empty if it fits."""

    plan: DevicePlan
    report: SandboxReport
    problems: list[str]

    @property
    def fits(self) -> bool:
        """Whether the run kept within the limits of the device."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Run as plain values; measured problems take the place of predicted ones."""
        measured = {"fits": self.fits, "problems": self.problems, "report": self.report.to_dict()}
        return self.plan.to_dict() | measured


def plan_run(
    manifest: Manifest,
    artifact: Artifact,
    profile: DeviceProfile,
    *,
    entitlement: bool,
    mode: Mode | None,
) -> DevicePlan:
    """Plan of a package on a device: what is expanded where.

    `mode` None is `auto`, where the package has coded weights. `auto` expands into what the limit
    leaves; where the files do not fit beside that, a part of them is kept in memory. Raises
    UsageError for an ML Program with a mode, and as `memory_budget`.
    """
    budget = memory_budget(profile, entitlement=entitlement)
    if not runners.module(artifact.format).HAS_RESIDENCY:
        if mode is not None:
            raise runners.no_residency(mode)
        return DevicePlan(
            profile,
            budget,
            artifact,
            Residency(),
            predictions.predict(manifest, artifact, Residency()),
        )
    residency = Residency(mode or "auto", budget_bytes=0 if mode in (None, "auto") else None)
    if residency.mode == "auto":
        streamed = predictions.predict(manifest, artifact, Residency()).dirty_bytes
        left = max(0, budget.dirty_bytes - streamed - reserve(streamed))
        most = sum(t.form_bytes for t in predictions.coded_entries(manifest, artifact))
        residency = replace(residency, budget_bytes=min(left, most))
    prediction = predictions.predict(manifest, artifact, residency)
    room = budget.available_bytes - prediction.dirty_bytes - reserve(prediction.dirty_bytes)
    if room < prediction.clean_bytes:
        residency = replace(residency, clean_budget_bytes=max(0, room))
    return DevicePlan(profile, budget, artifact, residency, prediction)


def reserve(dirty_bytes: int) -> int:
    """Memory that is left free beside a prediction, in bytes."""
    return int(RESERVE_SHARE * dirty_bytes) + RESERVE_BYTES


def run(
    bundle: Bundle, plan: DevicePlan, task: str, arguments: dict[str, Any], progress: Progress
) -> DeviceRun:
    """Run of a task of sandbox_tasks under the limits of the device.

    `arguments` are what it needs besides the package.
    """
    artifact, budget, residency = plan.artifact, plan.budget, plan.residency
    common = {
        "bundle": str(bundle.path),
        "format": artifact.format,
        "residency": sandbox_tasks.plain(residency),
    }
    if residency.folder is not None:
        residency.folder.mkdir(parents=True, exist_ok=True)
    report = sandbox.run(
        f"runtime_ref.device.sandbox_tasks:{task}",
        common | arguments,
        budget.available_bytes,
        sandbox_tasks.files_to_drop(bundle, artifact, residency),
        progress,
        dirty_limit_bytes=budget.dirty_bytes
        if budget.dirty_bytes < budget.available_bytes
        else None,
    )
    return DeviceRun(plan, report, _problems(report, plan))


def _problems(report: SandboxReport, plan: DevicePlan) -> list[str]:
    """Reasons why a run does not fit; empty if it fits.

    For one that was killed also who, as predicted, holds most.
    """
    found = sandbox_report.problems(report, plan.budget)
    if report.outcome == "killed":
        largest = (
            f"{h.what} {h.dirty_bytes / 1e6:,.1f} MB" for h in plan.prediction.peak.largest()
        )
        found.append(f"predicted to hold most: {', '.join(largest)}")
    return found


def run_each(
    bundle: Bundle, plans: Sequence[DevicePlan], task: str, progress: Progress, **arguments: Any
) -> list[DeviceRun]:
    """Runs of `task` for each plan, in their order; `arguments` are what it needs besides.

    The tightest device comes first: a run that stayed clear of its limits is that of every device
    with larger ones too.
    """
    done: dict[int, DeviceRun] = {}
    tightest = sorted(range(len(plans)), key=lambda i: _limits(plans[i]))
    for number, i in enumerate(tightest, 1):
        p = plans[i]
        what = f"{number}/{len(plans)} {p.artifact.format} on {p.profile.title}"
        same = next((r.report for r in done.values() if _is_also_of(r, p)), None)
        report = (
            same
            or run(
                bundle,
                p,
                task,
                arguments,
                lambda phase, *n, what=what: progress(f"{what}: {phase}", *n),
            ).report
        )
        done[i] = DeviceRun(p, report, _problems(report, p))
    return [done[i] for i in range(len(plans))]


def _limits(plan: DevicePlan) -> tuple[int, int]:
    """Limits of dirty memory and of all memory that can be had, in bytes."""
    return plan.budget.dirty_bytes, plan.budget.available_bytes


def _is_also_of(done: DeviceRun, plan: DevicePlan) -> bool:
    """Whether a run would be the same on another plan's device."""
    if (done.plan.artifact.format, done.plan.residency) != (plan.artifact.format, plan.residency):
        return False
    if _limits(done.plan) == _limits(plan):
        return True
    pairs = zip(_limits(done.plan), _limits(plan), strict=True)
    return done.fits and not done.report.filled and all(a <= b for a, b in pairs)


def project_speed(bundle: Bundle, done: DeviceRun) -> Projection | None:
    """Projected speed from the tokens a second of a generation.

    None if there was none, too few tokens to tell, or the runner is an interpreter. An
    interpreter's speed says nothing of Core ML's.
    """
    result, is_real = done.report.result, runners.module(done.plan.artifact.format).SPEED_IS_REAL
    if result is None or len(result.get("tokens", [])) < 2 or not is_real:
        return None
    threads = len(os.sched_getaffinity(0))  # ExecuTorch takes them all
    plan = done.plan
    speed = (len(result["tokens"]) - 1) * 1e3 / result["decode_ms"]
    measured = Measured(speed, threads, waits_for_files=done.report.filled)
    filled = len(result["prompt_tokens"]) + len(result["tokens"])
    manifest = bundle.manifest
    traffic = token_traffic(
        manifest, plan.artifact, plan.residency, min(filled, manifest.interface.context)
    )
    return project(plan.profile, plan.budget, traffic, done.report.peak_dirty_bytes, measured)


def advice(manifest: Manifest, plan: DevicePlan) -> list[str]:
    """Changes that would make a package fit that does not, each with what it brings."""
    artifact, profile, budget = plan.artifact, plan.profile, plan.budget
    found: list[str] = []
    if not plan.problems:
        return found
    if plan.residency.budget > 0:
        streamed = predictions.predict(manifest, artifact, Residency())
        found.append(_said("--residency stream", streamed, budget))
    context = manifest.interface.context // 2
    while context >= MIN_CONTEXT:
        prediction = predictions.predict(manifest, artifact, plan.residency, context)
        if not predictions.problems(prediction, budget) or context // 2 < MIN_CONTEXT:
            found.append(_said(f"export with --context {context}", prediction, budget))
            break
        context //= 2
    if profile.limit_with_entitlement_mb is not None and not budget.entitlement:
        more = memory_budget(profile, entitlement=True)
        found.append(_said("--entitlement", plan.prediction, more))
    return found


def _said(what: str, prediction: MemoryPrediction, budget: MemoryBudget) -> str:
    """Line of advice: a change, its predicted memory, and whether it would do."""
    does = "would not do alone" if predictions.problems(prediction, budget) else "fits"
    return (
        f"{what}: {prediction.dirty_bytes / 1e6:,.0f} MB of {budget.dirty_bytes / 1e6:,.0f} "
        f"MB, {does}"
    )

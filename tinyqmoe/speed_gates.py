"""Gates of the projected speed of packages on devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from exporter.progress import Progress
    from runtime_ref.device.run import DevicePlan, DeviceRun
    from runtime_ref.gates import Gate

NEW_TOKENS = 32  # that a speed is measured on


def speed_gates(
    bundle: Bundle, plans: Sequence[DevicePlan], least: float, progress: Progress
) -> list[Gate]:
    """A gate for each plan whose speed can be projected: at least `least` tokens a second.

    Each package decodes under the limits of the devices, one run after another. Raises UsageError
    where all packages are run by interpreters, whose speed says nothing.
    """
    from runtime_ref import runners
    from runtime_ref.device.run import run_each

    real = [plan for plan in plans if runners.module(plan.artifact.format).SPEED_IS_REAL]
    if not real:
        there = ", ".join(dict.fromkeys(plan.artifact.format for plan in plans))
        what = f"min-tokens-per-second-projected: no speed can be projected for {there}"
        hint = "leave it away, or check a package of ExecuTorch"
        raise UsageError(what, hint=hint)
    tokens = min(NEW_TOKENS, bundle.manifest.interface.context - 1)
    runs = run_each(bundle, real, "decode", progress, new_tokens=tokens)
    return [_speed_gate(bundle, run, least) for run in runs]


def _speed_gate(bundle: Bundle, run: DeviceRun, least: float) -> Gate:
    """The gate of one run. The lower end of the projected range counts."""
    from runtime_ref.device.run import project_speed
    from runtime_ref.gates import Gate, share_of

    name = f"speed of {run.plan.artifact.format} on {run.plan.profile.name}"
    limit, seconds = f"at least {least:g} tokens/s", run.report.wall_ms / 1e3
    projection = project_speed(bundle, run)
    if projection is None:
        remedy = "`tinyqmoe run --device` shows the memory over time"
        return Gate(name, limit, "; ".join(run.problems), False, remedy, seconds)
    if projection.tokens_per_second is None:
        measured = f"not projected: {', '.join(projection.missing)} of the device is not known"
        remedy = "leave the device out of this gate, or give its figures in a file of your own"
        return Gate(name, limit, measured, False, remedy, seconds)
    low, high = projection.tokens_per_second
    measured = f"{low:.1f} to {high:.1f} tokens/s projected"
    remedy = "export with less --bits-per-weight, or take a smaller model"
    return Gate(name, limit, measured, low >= least, remedy, seconds, share_of(least, low))

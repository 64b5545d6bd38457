"""Tables of runs under the limits of a device. Memory is in MB, powers of ten."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from runtime_ref.device.profile import DeviceProfile
from runtime_ref.device.projection import BANDWIDTH_SHARES, Projection
from runtime_ref.device.run import DeviceRun
from runtime_ref.device.sandbox_report import SandboxReport
from runtime_ref.reports.tables import (
    columns,
    device_title,
    digits,
    figure_text,
    mb_text,
    verdict_text,
)


def outcome(run: DeviceRun) -> str:
    """Outcome in a few words: fits, does not fit, killed or failed in a phase."""
    report = run.report
    if report.outcome != "ok":
        return f"{report.outcome} in phase {report.phase or 'start'}"
    return "fits" if run.fits else "does not fit"


def run_view(run: DeviceRun, projection: Projection | None) -> RenderableType:
    """View of what was predicted and measured, phase by phase, and of the projected speed."""
    plan, report = run.plan, run.report
    what = f"{plan.package} on {escape(device_title(plan))}, residency {plan.residency.mode}"
    parts: list[RenderableType] = [
        f"{verdict_text(outcome(run))}: {what}",
        *(f"[red]problem:[/] {escape(problem)}" for problem in run.problems),
        _measured_table(run),
        _phases_table(report),
        *_remarks(report),
        f"[dim]Measured on Linux under an enforced limit ({escape(report.mechanism)}), not on "
        "the phone.[/]",
    ]
    return Group(
        *parts, *([] if projection is None else [_projection_table(plan.profile, projection)])
    )


def run_table(runs: Sequence[DeviceRun]) -> Table:
    """Table with a line for each package on a device: what it took, and whether it fits."""
    left, right = (
        ("device", "package", "residency"),
        ("predicted", "dirty", "limit", "share", "clean"),
    )
    table = columns("Under the limits of devices, MB", left, right, ("verdict",))
    table.caption = (
        "dirty: measured, with what the checks take themselves; predicted: of a run "
        "that fills the context"
    )
    for run in runs:
        plan, report = run.plan, run.report
        device = plan.profile.name + (" (entitled)" if plan.budget.entitlement else "")
        dirty, limit = report.peak_dirty_bytes, plan.budget.dirty_bytes
        numbers = map(mb_text, (plan.prediction.dirty_bytes, dirty, limit))
        share = f"{100 * dirty / limit:.0f} %"
        table.add_row(
            escape(device),
            plan.package,
            plan.residency.mode,
            *numbers,
            share,
            mb_text(report.peak_clean_bytes),
            verdict_text(outcome(run)),
        )
    return table


def _measured_table(run: DeviceRun) -> Table:
    """Table of predicted and measured memory, in MB.

    The two compare only after a whole run; clean memory is what there was room for.
    """
    budget, prediction, report = run.plan.budget, run.plan.prediction, run.report
    table = columns(
        "Memory, in MB", ("",), ("predicted", "measured", "difference", "limit"), ("counted",)
    )
    table.caption = "predicted: of a run that fills the context"
    rows = [
        (
            "dirty",
            prediction.dirty_bytes,
            report.peak_dirty_bytes,
            budget.dirty_bytes,
            budget.counted,
        ),
        (
            "clean",
            prediction.clean_bytes,
            report.peak_clean_bytes,
            budget.available_bytes,
            "with what is dirty",
        ),
        (
            "mapped",
            prediction.mapped_bytes,
            report.peak_mapped_bytes,
            budget.mapped_bytes,
            "address space",
        ),
    ]
    for name, predicted, measured, limit, counted in rows:
        comparable = report.outcome == "ok" and name != "clean" and measured
        difference = f"{100 * (predicted / measured - 1):+.0f} %" if comparable else ""
        limit_mb = "-" if limit is None else mb_text(limit)
        table.add_row(name, mb_text(predicted), mb_text(measured), difference, limit_mb, counted)
    return table


def _phases_table(report: SandboxReport) -> Table:
    """Table of the phases, with their peaks in MB.

    Peaks are of the samples in a phase: one that was over before the next look has none.
    """
    table = columns(
        "Phases", ("phase",), ("begins at, s", "dirty MB at its peak", "clean MB at its peak")
    )
    ends = [*(p.start_ms for p in report.phases[1:]), math.inf]
    for phase, end in zip(report.phases, ends, strict=True):
        inside = [s for s in report.samples if phase.start_ms <= s.ms < end]
        dirty = mb_text(max(s.anonymous_bytes for s in inside)) if inside else "-"
        clean = mb_text(max(s.file_bytes for s in inside)) if inside else "-"
        table.add_row(escape(phase.name), f"{phase.start_ms / 1e3:.2f}", dirty, clean)
    return table


def _remarks(report: SandboxReport) -> list[str]:
    """Remarks about a run beside its peaks."""
    known = (
        (
            report.refaulted_bytes if report.filled else 0,
            "of files were read again after they had been evicted",
        ),
        (report.cached_bytes, "of the files stayed in the page cache, and were not charged"),
        (report.locked_bytes, "locked in memory"),
    )
    remarks = [f"{mb_text(n)} MB {what}" for n, what in known if n]
    return remarks + ([f"{report.major_faults:,} major page faults"] if report.major_faults else [])


def _projection_table(profile: DeviceProfile, p: Projection) -> Table:
    """Table of the projected speed and what went in."""
    title = "Speed: a projection, not a measurement"
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    lacking = " and no ".join(name.replace("_", " ") for name in p.missing)
    speed = (
        f"unknown: no {lacking}"
        if p.tokens_per_second is None
        else f"{_span(*p.tokens_per_second)} tokens/s"
    )
    traffic, measured, shares = (
        p.traffic,
        p.measured,
        f"{BANDWIDTH_SHARES[0]:g} to {BANDWIDTH_SHARES[1]:g}",
    )
    rows = [
        (f"decoding on {profile.title}", speed, "the slower of memory and compute, then flash"),
        (
            "memory",
            f"{_span(*reversed(p.memory_ms))} ms",
            f"{mb_text(traffic.weights_bytes)} MB of weights and {mb_text(traffic.kv_bytes)} MB of "
            "cache a token, at "
            f"{shares} of {figure_text(profile.dram_gb_per_s)} GB/s",
        ),
        (
            "compute",
            _ms(p.compute_ms),
            f"{digits(measured.tokens_per_second)} tokens/s measured here with {measured.threads} "
            "threads"
            f"{' and waits for files, so a lower bound' if measured.waits_for_files else ''}, "
            f"{figure_text(profile.performance_cores)} fast cores there",
        ),
        (
            "flash",
            _ms(p.flash_ms),
            f"{mb_text(p.shortfall_bytes)} MB of the weights find no room beside "
            f"{mb_text(p.dirty_bytes)} MB dirty; "
            f"{figure_text(profile.flash_gb_per_s)} GB/s",
        ),
    ]
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _span(low: float, high: float) -> str:
    """Text of a range."""
    return " to ".join(dict.fromkeys(map(digits, (low, high))))


def _ms(value: float | None) -> str:
    """Text of a time in milliseconds."""
    return "unknown" if value is None else f"{digits(value)} ms"

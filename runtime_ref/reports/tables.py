"""Parity reports, devices, predictions and runs as tables on a terminal. Memory is in MB, powers of
ten."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from runtime_ref.device.profile import DeviceProfile, Figure
from runtime_ref.device.projection import BANDWIDTH_SHARES, Projection
from runtime_ref.device.run import DevicePlan, DeviceRun
from runtime_ref.device.sandbox import SandboxReport
from runtime_ref.memory import MB
from runtime_ref.parity import Check, ParityReport, Tolerance

TIGHT = 0.9  # of a limit, predicted: an update of the system, or of the app, may need what is left
_UNITS = {
    "_gb_per_s": "GB/s",
    "_gb": "GB",
    "_mb": "MB",
    "_kib": "KiB",
}  # by the end of a key, the longest first


def parity_table(report: ParityReport) -> Table:
    """One line a check, the gates in the title, the verdict in the caption."""
    verdict, like = (
        ("[bold green]PASS", "like") if report.passed else ("[bold red]FAIL", "NOT like")
    )
    gates = "; ".join(gate_text(*item) for item in report.tolerances.items())
    table = Table(
        title=f"Parity of the {report.backend} package. {gates}",
        caption=f"{verdict}[/] the package answers {like} the quantized model in PyTorch",
        title_justify="left",
        caption_justify="left",
    )
    for name in (
        "verdict",
        "activations",
        "what",
        "KL median",
        "KL worst",
        "dB median",
        "dB worst",
        "top-1",
        "result",
    ):
        table.add_column(
            name,
            justify="left" if name in ("verdict", "activations", "what", "result") else "right",
        )
    for check in report.checks:
        result = "[green]pass" if check.passed else "[red]FAIL"
        table.add_row(check.verdict, check.arithmetic, _what(check), *_figures(check), result)
    return table


def gate_text(arithmetic: str, gate: Tolerance) -> str:
    """What is asked of an arithmetic, KL in nats."""
    worst_kl = f"KL <= {gate.worst_kl:g} and " if math.isfinite(gate.worst_kl) else ""
    return (
        f"{arithmetic} activations: median KL <= {gate.median_kl:g} and SQNR >= "
        f"{gate.median_sqnr_db:g} dB, "
        f"worst {worst_kl}SQNR >= {gate.worst_sqnr_db:g} dB"
    )


def _what(check: Check) -> str:
    return (
        f"{escape(check.what)}\n[dim]{escape(check.detail)}[/]"
        if check.detail
        else escape(check.what)
    )


def _figures(check: Check) -> list[str]:
    kl, sqnr = (check.kl_median, check.kl_worst), (check.sqnr_db_median, check.sqnr_db_worst)
    figures = [(value, ".1e") for value in kl] + [(value, ".1f") for value in sqnr]
    top1 = "" if check.top1 is None else f"{check.top1}/{check.positions}"
    return ["" if value is None else format(value, form) for value, form in figures] + [top1]


def side_by_side(reports: Sequence[ParityReport]) -> Table:
    """One line a check, one column a package: worst SQNR, agreement of the best tokens, result."""
    caption = "\n".join(
        f"{r.backend}: {'; '.join(gate_text(*item) for item in r.tolerances.items())}: "
        + ("[bold green]PASS" if r.passed else "[bold red]FAIL")
        + "[/]"
        for r in reports
    )
    table = Table(
        title="Parity, side by side", caption=caption, title_justify="left", caption_justify="left"
    )
    for name in ("verdict", "judged", "what"):
        table.add_column(name)
    for report in reports:
        table.add_column(report.backend)
    lines = [
        {(*judged_in(check), check.what): check for check in report.checks} for report in reports
    ]
    for verdict, judged, what in dict.fromkeys(key for checks in lines for key in checks):
        cells = [_cell(checks.get((verdict, judged, what))) for checks in lines]
        table.add_row(verdict, judged, escape(what), *cells)
    return table


def judged_in(check: Check) -> tuple[str, str]:
    """Packages compute in different arithmetics: each has its structure judged, and what it
    declares."""
    if check.verdict in ("levels", "context"):
        return check.verdict, "exactly"
    return check.verdict, "in float32" if check.arithmetic == "float32" else "as declared"


def _cell(check: Check | None) -> str:
    if check is None:
        return ""
    parts = ["[green]pass[/]" if check.passed else "[red]FAIL[/]"]
    parts += [] if check.sqnr_db_worst is None else [f"{check.sqnr_db_worst:.1f} dB"]
    parts += [] if check.top1 is None else [f"{check.top1}/{check.positions}"]
    return " ".join(parts)


def mb_text(n_bytes: int) -> str:
    """In MB, with a decimal where there are few."""
    return f"{n_bytes / MB:,.1f}" if abs(n_bytes) < 100 * MB else f"{n_bytes / MB:,.0f}"


def device_title(plan: DevicePlan) -> str:
    """The device, and whether the app has the entitlement there."""
    return plan.profile.title + (", with entitlement" if plan.budget.entitlement else "")


def outcome(run: DeviceRun) -> str:
    """In a few words: fits, does not fit, killed or failed in a phase."""
    report = run.report
    if report.outcome != "ok":
        return f"{report.outcome} in phase {report.phase or 'start'}"
    return "fits" if run.fits else "does not fit"


def _table(
    title: str, left: Sequence[str], right: Sequence[str], last: Sequence[str] = ()
) -> Table:
    """Columns of texts, of numbers, and of texts again."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in (*left, *right, *last):
        table.add_column(name, justify="right" if name in right else "left")
    return table


# ---- devices


def devices_table(profiles: Sequence[DeviceProfile]) -> Table:
    """One line a device. The limit is of an iOS app's footprint, or Android's of anonymous
    memory."""
    right = (
        "RAM\nGB",
        "limit\nMB",
        "entitled\nMB",
        "available\nMB",
        "DRAM\nGB/s",
        "flash\nGB/s",
        "cores",
    )
    table = _table("", ("name", "device"), right)
    table.caption = (
        "limit: footprint at which iOS kills an app, anonymous memory at which Android does; "
        "entitled: that limit\n"
        "with the increased-memory-limit entitlement; available: what an Android app finds free; "
        "cores: fast + small.\n"
        "`tinyqmoe devices NAME` has the source of each number, and how far to trust it."
    )
    for p in profiles:
        limits = (p.limit_mb or p.anonymous_limit_mb, p.limit_with_entitlement_mb, p.available_mb)
        cores = (
            " + ".join(
                _number(figure) for figure in (p.performance_cores, p.efficiency_cores) if figure
            )
            or "-"
        )
        numbers = map(_number, (p.ram_gb, *limits, p.dram_gb_per_s, p.flash_gb_per_s))
        table.add_row(escape(p.name), escape(p.title), *numbers, cores)
    return table


def device_view(profile: DeviceProfile) -> RenderableType:
    """Every figure that is known, with where it is from."""
    table = _table(f"{escape(profile.title)} ({escape(profile.name)}, {profile.platform})",
                   ("figure",), ("value",), ("unit", "confidence", "source"))  # fmt: skip
    for key, figure in profile.figures():
        end = next((end for end in _UNITS if key.endswith(end)), "")
        name = key.removesuffix(end).replace("_", " ")
        name = name.upper() if name in ("ram", "dram") else name
        table.add_row(
            name, _number(figure), _UNITS.get(end, ""), figure.confidence, escape(figure.source)
        )
    return table


def _number(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.value:,.10g}"


# ---- before a run


def fit_table(plans: Sequence[DevicePlan]) -> Table:
    """One line a package on a device: whether it is predicted to fit."""
    left, right = ("device", "package", "residency"), ("dirty MB", "limit MB", "share", "clean MB")
    table = _table("Predicted memory", (*left, "peak"), right, ("verdict",))
    table.caption = (
        "dirty: cannot be dropped, at its peak with the context full; clean: pages of files that "
        "are read;\n"
        "slow: they find no room beside it, and are read again for each token"
    )
    for p in plans:
        dirty, limit = p.prediction.dirty_bytes, p.budget.dirty_bytes
        device = p.profile.name + (" (entitled)" if p.budget.entitlement else "")
        table.add_row(
            escape(device),
            p.package,
            p.residency.mode,
            p.prediction.peak.name,
            mb_text(dirty),
            mb_text(limit),
            f"{100 * dirty / limit:.0f} %",
            mb_text(p.prediction.clean_bytes),
            _verdict(fit_verdict(p)),
        )
    return table


def fit_verdict(plan: DevicePlan) -> str:
    """fits, slow (files are read again for each token), tight or does not fit: as predicted."""
    if plan.problems:
        return "does not fit"
    if plan.shortfall_bytes:
        return "slow"
    return "tight" if plan.prediction.dirty_bytes > TIGHT * plan.budget.dirty_bytes else "fits"


def _verdict(text: str) -> str:
    colour = {"fits": "green", "tight": "yellow", "slow": "yellow"}.get(text, "bold red")
    return f"[{colour}]{escape(text)}[/]"


def fit_view(plan: DevicePlan, advice: Sequence[str]) -> RenderableType:
    """Who holds how much in which phase, what is too much, and what would help."""
    prediction, limit = plan.prediction, plan.budget.dirty_bytes
    largest = [f"{h.what} {mb_text(h.dirty_bytes)} MB" for h in prediction.peak.largest()]
    lines = [
        f"{_verdict(fit_verdict(plan))}: {mb_text(prediction.dirty_bytes)} MB dirty in "
        f"{prediction.peak.name}, "
        f"{100 * prediction.dirty_bytes / limit:.1f} % of {mb_text(limit)} MB "
        f"({escape(plan.budget.counted)})",
        f"most of it: {'; '.join(largest)}",
        *_slow(plan),
        *(f"[red]problem:[/] {escape(problem)}" for problem in plan.problems),
        *(f"what would help: {escape(line)}" for line in advice),
    ]
    return Group(_holders_table(plan), *lines)


def _slow(plan: DevicePlan) -> list[str]:
    """What it means that files do not find room."""
    missing, flash = plan.shortfall_bytes, plan.profile.flash_gb_per_s
    if not missing:
        return []
    seconds = (
        ""
        if flash is None
        else f", {_digits(missing / (flash.value * 1e9))} s at {_number(flash)} GB/s"
    )
    return [
        f"slow: {mb_text(missing)} MB of files find no room and are read again for each "
        f"token{seconds}"
    ]


def _holders_table(plan: DevicePlan) -> Table:
    """Dirty memory of each holder by phase, and the clean memory of the phase that has most of
    it."""
    phases = plan.prediction.phases
    most = max(phases, key=lambda p: p.clean_bytes)
    title = (
        f"Predicted memory of {plan.package} on {escape(device_title(plan))}, "
        f"residency {plan.residency.mode}, in MB"
    )
    table = _table(
        title, ("holder",), [*(f"{p.name}, dirty" for p in phases), f"{most.name}, clean"]
    )
    dirty = [{h.what: h.dirty_bytes for h in p.holders} for p in phases]
    clean = {h.what: h.clean_bytes for h in most.holders}
    for what in dict.fromkeys(name for holders in dirty for name in holders):
        cells = [holders.get(what, 0) for holders in dirty] + [clean.get(what, 0)]
        table.add_row(escape(what), *(mb_text(n) if n else "" for n in cells))
    table.add_section()
    table.add_row(
        "sum", *(mb_text(p.dirty_bytes) for p in phases), mb_text(most.clean_bytes), style="bold"
    )
    return table


# ---- after a run


def run_view(run: DeviceRun, projection: Projection | None) -> RenderableType:
    """What was predicted and measured, phase by phase, and how fast the device might be."""
    plan, report = run.plan, run.report
    what = f"{plan.package} on {escape(device_title(plan))}, residency {plan.residency.mode}"
    parts: list[RenderableType] = [
        f"{_verdict(outcome(run))}: {what}",
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
    """One line a package on a device: what it took, and whether it fits."""
    left, right = (
        ("device", "package", "residency"),
        ("predicted", "dirty", "limit", "share", "clean"),
    )
    table = _table("Under the limits of devices, MB", left, right, ("verdict",))
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
            _verdict(outcome(run)),
        )
    return table


def _measured_table(run: DeviceRun) -> Table:
    """Measured and predicted compare only after a whole run; clean memory is what there was room
    for."""
    budget, prediction, report = run.plan.budget, run.plan.prediction, run.report
    table = _table(
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
    """Peaks are of the samples in a phase: one that was over before the next look has none."""
    table = _table(
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
    """What to know of a run beside its peaks."""
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
        ("memory", f"{_span(*reversed(p.memory_ms))} ms",
         f"{mb_text(traffic.weights_bytes)} MB of weights and {mb_text(traffic.kv_bytes)} MB of "
         "cache a token, at "
         f"{shares} of {_number(profile.dram_gb_per_s)} GB/s"),
        ("compute", _ms(p.compute_ms),
         f"{_digits(measured.tokens_per_second)} tokens/s measured here with {measured.threads} "
         "threads"
         f"{' and waits for files, so a lower bound' if measured.waits_for_files else ''}, "
         f"{_number(profile.performance_cores)} fast cores there"),
        ("flash", _ms(p.flash_ms),
         f"{mb_text(p.shortfall_bytes)} MB of the weights find no room beside "
         f"{mb_text(p.dirty_bytes)} MB dirty; "
         f"{_number(profile.flash_gb_per_s)} GB/s"),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _span(low: float, high: float) -> str:
    return " to ".join(dict.fromkeys(map(_digits, (low, high))))


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{_digits(value)} ms"


def _digits(value: float) -> str:
    """Three that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

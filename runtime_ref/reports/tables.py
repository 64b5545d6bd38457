"""Tables of devices and predictions on a terminal. Memory is in MB, powers of ten."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from runtime_ref.device.profile import DeviceProfile, Figure
from runtime_ref.device.run import DevicePlan
from runtime_ref.memory import MB

TIGHT = 0.9  # of a limit, predicted: an update of the system, or of the app, may need what is left
# By the end of a key, the longest first.
_UNITS = {
    "_gb_per_s": "GB/s",
    "_gb": "GB",
    "_mb": "MB",
    "_kib": "KiB",
}


def mb_text(n_bytes: int) -> str:
    """Text of a size in MB, with a decimal where there are few."""
    return f"{n_bytes / MB:,.1f}" if abs(n_bytes) < 100 * MB else f"{n_bytes / MB:,.0f}"


def device_title(plan: DevicePlan) -> str:
    """Name of the device, and whether the app has the entitlement there."""
    return plan.profile.title + (", with entitlement" if plan.budget.entitlement else "")


def columns(
    title: str, left: Sequence[str], right: Sequence[str], last: Sequence[str] = ()
) -> Table:
    """Empty table with columns of texts, of numbers, and of texts again."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in (*left, *right, *last):
        table.add_column(name, justify="right" if name in right else "left")
    return table


# ---- devices


def devices_table(profiles: Sequence[DeviceProfile]) -> Table:
    """Table with a line for each device.

    The limit is of an iOS app's footprint, or Android's of anonymous memory.
    """
    right = (
        "RAM\nGB",
        "limit\nMB",
        "entitled\nMB",
        "available\nMB",
        "DRAM\nGB/s",
        "flash\nGB/s",
        "cores",
    )
    table = columns("", ("name", "device"), right)
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
                figure_text(figure)
                for figure in (p.performance_cores, p.efficiency_cores)
                if figure
            )
            or "-"
        )
        numbers = map(figure_text, (p.ram_gb, *limits, p.dram_gb_per_s, p.flash_gb_per_s))
        table.add_row(escape(p.name), escape(p.title), *numbers, cores)
    return table


def device_view(profile: DeviceProfile) -> RenderableType:
    """Table of every figure that is known of a device, with where it is from."""
    title = f"{escape(profile.title)} ({escape(profile.name)}, {profile.platform})"
    table = columns(title, ("figure",), ("value",), ("unit", "confidence", "source"))
    for key, figure in profile.figures():
        end = next((end for end in _UNITS if key.endswith(end)), "")
        name = key.removesuffix(end).replace("_", " ")
        name = name.upper() if name in ("ram", "dram") else name
        table.add_row(
            name, figure_text(figure), _UNITS.get(end, ""), figure.confidence, escape(figure.source)
        )
    return table


def figure_text(figure: Figure | None) -> str:
    """Text of a figure; "-" if it is not known."""
    return "-" if figure is None else f"{figure.value:,.10g}"


# ---- before a run


def fit_table(plans: Sequence[DevicePlan]) -> Table:
    """Table with a line for each package on a device: whether it is predicted to fit."""
    left, right = ("device", "package", "residency"), ("dirty MB", "limit MB", "share", "clean MB")
    table = columns("Predicted memory", (*left, "peak"), right, ("verdict",))
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
            verdict_text(fit_verdict(p)),
        )
    return table


def fit_verdict(plan: DevicePlan) -> str:
    """Predicted verdict: fits, slow, tight or does not fit.

    Slow means that files are read again for each token.
    """
    if plan.problems:
        return "does not fit"
    if plan.shortfall_bytes:
        return "slow"
    return "tight" if plan.prediction.dirty_bytes > TIGHT * plan.budget.dirty_bytes else "fits"


def verdict_text(text: str) -> str:
    """Verdict in its colour."""
    colour = {"fits": "green", "tight": "yellow", "slow": "yellow"}.get(text, "bold red")
    return f"[{colour}]{escape(text)}[/]"


def fit_view(plan: DevicePlan, advice: Sequence[str]) -> RenderableType:
    """View of who holds how much in which phase, what is too much, and what would help."""
    prediction, limit = plan.prediction, plan.budget.dirty_bytes
    largest = [f"{h.what} {mb_text(h.dirty_bytes)} MB" for h in prediction.peak.largest()]
    lines = [
        f"{verdict_text(fit_verdict(plan))}: {mb_text(prediction.dirty_bytes)} MB dirty in "
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
    """Line that says what it means if files do not find room; none if they do."""
    missing, flash = plan.shortfall_bytes, plan.profile.flash_gb_per_s
    if not missing:
        return []
    seconds = (
        ""
        if flash is None
        else f", {digits(missing / (flash.value * 1e9))} s at {figure_text(flash)} GB/s"
    )
    return [
        f"slow: {mb_text(missing)} MB of files find no room and are read again for each "
        f"token{seconds}"
    ]


def _holders_table(plan: DevicePlan) -> Table:
    """Table of the dirty memory of each holder by phase, in MB.

    Clean memory is of the phase that has most of it.
    """
    phases = plan.prediction.phases
    most = max(phases, key=lambda p: p.clean_bytes)
    title = (
        f"Predicted memory of {plan.package} on {escape(device_title(plan))}, "
        f"residency {plan.residency.mode}, in MB"
    )
    table = columns(
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


def digits(value: float) -> str:
    """Text of a number with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

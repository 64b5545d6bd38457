"""Verdicts and runs for tests, made up: a phone with 1,000 MB, a package that takes 400, and what
was seen of it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

from rich.console import Console, RenderableType

from runtime_ref.device.memory_limits import Counters
from runtime_ref.device.prediction import MemoryPrediction, PhasePrediction
from runtime_ref.device.profile import DeviceProfile, Figure, memory_budget
from runtime_ref.device.run import DevicePlan, DeviceRun
from runtime_ref.device.sandbox_report import PhaseStart, Sample, SandboxReport, problems
from runtime_ref.memory import Holder
from runtime_ref.parity import TOLERANCES, Check, ParityReport
from runtime_ref.residency import Residency
from tests.support.bundles import small_manifest

MB = 10**6
WIDTH = 120  # of a terminal, in characters
# for HTML, Markdown, XML, terminals
HOSTILE = "<script>alert(1)</script> | a [link](x) \x07\x1b[31m\nand `more`"


def figure(value: float) -> Figure:
    return Figure(value, "a test", "low")


PHONE = DeviceProfile(
    name="phone",
    title="A phone",
    platform="ios",
    ram_gb=figure(4),
    dram_gb_per_s=figure(20),
    page_kib=figure(16),
    limit_mb=figure(1000),
    limit_with_entitlement_mb=figure(2000),
    flash_gb_per_s=figure(2),
    performance_cores=figure(4),
)


def device_plan(
    dirty_mb: int = 400,
    profile: DeviceProfile = PHONE,
    *,
    entitlement: bool = False,
    clean_mb: int = 300,
) -> DevicePlan:
    """A package that streams; it is predicted to take `dirty_mb` while it decodes, and to read
    `clean_mb`."""
    cache, package = Holder("KV cache", 100 * MB), Holder("package", 0, clean_mb * MB)
    activations = Holder("activations", (dirty_mb - 100) * MB)
    phases = (
        PhasePrediction("load", (cache,)),
        PhasePrediction("decode", (cache, package, activations)),
    )
    prediction = MemoryPrediction("pte", "stream", phases, (dirty_mb + 330) * MB)
    artifact = small_manifest().artifacts[0]
    return DevicePlan(
        profile, memory_budget(profile, entitlement=entitlement), artifact, Residency(), prediction
    )


def sample(ms: float, dirty_mb: int, clean_mb: int) -> Sample:
    return Sample(ms, dirty_mb * MB, clean_mb * MB, clean_mb * MB)


def device_run(where: DevicePlan | None = None, **changes: Any) -> DeviceRun:
    """It loaded for a second and decoded for one, at 380 MB; the last look came after the end.
    Else, `changes`."""
    at = where or device_plan()
    counters = Counters(0, 0, 0, 0, 0, 0, 0, 0, 0)
    report = SandboxReport(
        mechanism="cgroup v9 memory",
        limit_bytes=at.budget.available_bytes,
        outcome="ok",
        phase="decode",
        detail="",
        peak_group_bytes=None,
        peak_dirty_bytes=380 * MB,
        peak_clean_bytes=250 * MB,
        peak_resident_bytes=0,
        peak_mapped_bytes=700 * MB,
        major_faults=0,
        refaulted_bytes=0,
        cached_bytes=0,
        locked_bytes=0,
        wall_ms=2000.0,
        phases=[
            PhaseStart("load", 0.0, counters),
            PhaseStart("decode", 1000.0, counters),
        ],
        samples=[
            sample(0, 0, 0),
            sample(500, 90, 50),
            sample(1500, 380, 250),
            sample(1990, 380, 250),
            sample(3000, 0, 0),
        ],
        result={},
    )
    report = replace(report, **changes)
    return DeviceRun(at, report, problems(report, at.budget))


def killed_run(detail: str = "1,000 bytes were not enough") -> DeviceRun:
    return device_run(device_plan(1400), outcome="killed", detail=detail, result=None)


def parity(*changed: Check) -> ParityReport:
    """A package with int16 activations that passes, but for what `changed` adds."""
    figures = {
        "kl_median": 1e-9,
        "kl_worst": 2e-9,
        "sqnr_db_median": 70.0,
        "sqnr_db_worst": 65.0,
        "delta_max": 0.1,
    }
    checks = [
        Check("levels", "9 matrices", True, 9),
        Check("logits", "7 + 3 tokens, prefill", True, 4, **figures, top1=4),
        Check(
            "logits",
            "8 + 3 tokens, prefill",
            True,
            4,
            **figures | {"sqnr_db_worst": 61.5},
            top1=4,
        ),
        Check(
            "greedy",
            "7 tokens, then its own",
            True,
            4,
            top1=3,
            detail="token 3 is 1, not 2: a near tie",
        ),
        *changed,
    ]
    return ParityReport("executorch", "int16", "float16", TOLERANCES["int16", "float16"], checks)


FAILED = Check(
    "logits",
    "7 + 3 tokens, prefill, again",
    False,
    4,
    1.0,
    2.0,
    3.0,
    float("-inf"),
    9.0,
    1,
    HOSTILE,
)


def shown(what: RenderableType) -> str:
    console = Console(width=WIDTH, file=io.StringIO(), emoji=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(line: str) -> list[str]:
    """Of a row of a table, on a terminal or in Markdown."""
    return [cell.strip() for cell in re.split(r"[│┃]|(?<!\\)\|", line)[1:-1]]


def row(text: str, first: str) -> list[str]:
    return next(cells(line) for line in text.splitlines() if cells(line)[:1] == [first])

"""Report of a run in a sandbox: memory by phase and over time, and why it does not fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from runtime_ref.device.memory_limits import Counters
from runtime_ref.device.profile import MemoryBudget

# What a task may come to touch of the interpreter and its libraries, which are in memory already.
LIBRARIES_BYTES = 64 << 20


@dataclass(frozen=True)
class PhaseStart:
    """Start of a phase of the task, in milliseconds since the child joined the limit."""

    name: str
    start_ms: float
    counters: Counters


@dataclass(frozen=True)
class Sample:
    """Memory counted against the limit at one moment, in bytes; anonymous is what kills."""

    ms: float
    anonymous_bytes: int
    file_bytes: int
    mapped_file_bytes: int


@dataclass(frozen=True)
class SandboxReport:
    """Report of a run in a sandbox.

    Peaks are of samples, taken every 1 to 10 ms, except `peak_group_bytes`, which is exact.
    outcome: ok; killed, for its memory; or failed, of something else. phase: the last one the child
    reported. peak_group_bytes: everything charged, None where the kernel does not count it.
    peak_dirty_bytes: anonymous memory, by the group or by the process, whichever is more.
    peak_clean_bytes: file pages charged. peak_resident_bytes and peak_mapped_bytes: growth of the
    process's resident set and address space. refaulted_bytes: file pages that were evicted and read
    again. cached_bytes: of the bundle's files, what could not be dropped from the page cache and
    was therefore free. locked_bytes: pages the task made unevictable. wall_ms: under the limit.
    """

    mechanism: str
    limit_bytes: int
    outcome: Literal["ok", "killed", "failed"]
    phase: str
    detail: str
    peak_group_bytes: int | None
    peak_dirty_bytes: int
    peak_clean_bytes: int
    peak_resident_bytes: int
    peak_mapped_bytes: int
    major_faults: int
    refaulted_bytes: int | None
    cached_bytes: int
    locked_bytes: int
    wall_ms: float
    phases: list[PhaseStart]
    samples: list[Sample]
    result: dict[str, Any] | None

    @property
    def filled(self) -> bool:
        """Whether the limit was nearly reached, and so may have evicted pages of files."""
        return self.peak_group_bytes is not None and self.peak_group_bytes > 0.95 * self.limit_bytes

    def to_dict(self) -> dict[str, Any]:
        """Report as plain values, with all of its parts."""
        return asdict(self)


def problems(report: SandboxReport, budget: MemoryBudget) -> list[str]:
    """Reasons why a run does not fit a device; empty if it fits."""
    found = []
    if report.outcome != "ok":
        found.append(f"{report.outcome} in phase {report.phase!r}: {report.detail}")
    if report.peak_dirty_bytes > budget.dirty_bytes:
        found.append(
            f"{report.peak_dirty_bytes:,} bytes dirty, {budget.dirty_bytes:,} allowed "
            f"({budget.counted})"
        )
    if report.peak_resident_bytes > budget.available_bytes + LIBRARIES_BYTES:
        found.append(
            f"{report.peak_resident_bytes:,} bytes resident, {budget.available_bytes:,} "
            "available: pages of files that "
            "were in memory before were used free of charge"
        )
    if budget.mapped_bytes is not None and report.peak_mapped_bytes > budget.mapped_bytes:
        found.append(
            f"{report.peak_mapped_bytes:,} bytes of address space, {budget.mapped_bytes:,} allowed"
        )
    return found

"""Runs a task in a child process under a memory limit that the kernel enforces, and says what the
task used.

What is enforced: everything the task touches first after it has come under the limit. Anonymous
memory that does not fit gets the child killed, as an app is; clean pages of files are evicted and
read again, and never kill.

What is not: a phone has more room for clean pages than its limit (iOS does not count them), so
speed under the limit is a lower bound. Freed memory of the interpreter that the task reuses is not
charged; the child returns what it can before it joins, and the report has the process's own growth
beside what the group was charged.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from exporter import errors
from exporter.errors import MissingComponentError, TinyQMoEError
from exporter.progress import Progress
from runtime_ref.device import memory_limits
from runtime_ref.device.memory_limits import Counters, Limit, Usage, counters, open_limit
from runtime_ref.device.profile import MemoryBudget

# As allocators of phones: what is large is mapped by itself, and goes back when it is freed. One
# heap for the first thread and one for all others: each of its own would take address space.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
    "MALLOC_ARENA_MAX": "2",
}
TERMINATED = 143  # 128 + SIGTERM
LIBRARIES_BYTES = (
    64 << 20
)  # of the interpreter and its libraries, in memory already, that a task may come to touch
MAX_SAMPLES = 2000
SHORTEST_INTERVAL_S, LOOKS = (
    0.001,
    200,
)  # between two looks at a child: the time it has had, in so many parts
LAST_WORDS_BYTES = 4000  # of the stderr of a child that failed


@dataclass(frozen=True)
class PhaseStart:
    """Start of a phase of the task, in milliseconds since the child joined the limit."""

    name: str
    start_ms: float
    counters: Counters


@dataclass(frozen=True)
class Sample:
    """What was counted against the limit at one moment, in bytes; anonymous is what kills."""

    ms: float
    anonymous_bytes: int
    file_bytes: int
    mapped_file_bytes: int


@dataclass(frozen=True)
class SandboxReport:
    """What became of a run. Peaks are of samples, taken every 1 to 10 ms, except
    `peak_group_bytes`, which is exact.

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
        """All of it as plain values."""
        return asdict(self)


def run(
    task: str,
    arguments: dict[str, Any],
    limit_bytes: int,
    files_to_drop: Sequence[Path],
    progress: Progress,
    *,
    dirty_limit_bytes: int | None = None,
) -> SandboxReport:
    """Calls `task`, "module:function", in a child process under a limit.

    The function takes (arguments, report_phase) and returns a dict for JSON; its module may have a
    `prepare(arguments)`, which is called before the limit holds, for imports. `files_to_drop` leave
    the page cache first, so that the task pays for what it reads. `progress` is told the phases
    and, in them, what is done of how much. `dirty_limit_bytes`: a lower limit of anonymous memory
    alone, as Android 17 has it; no control group counts that apart, so the parent looks and kills.
    Raises the TinyQMoEError the task raised; MissingComponentError where there is no Linux.
    """
    if not sys.platform.startswith("linux"):
        raise MissingComponentError(
            "memory limits are enforced by the Linux kernel only", do="run this on Linux"
        )
    progress("start the sandbox", 0, 0)
    with _sigterm_unwinds(), open_limit(limit_bytes) as limit, tempfile.TemporaryFile() as output:
        request = {
            "task": task,
            "arguments": arguments,
            "files": [str(file.resolve()) for file in files_to_drop],
            "join": limit.join(),
            "parent": os.getpid(),
        }
        with _child(request, output) as (process, messages):
            watch = _Watch(process.pid, limit, limit_bytes, dirty_limit_bytes, progress)
            watch.follow(messages)
            return_code = process.wait()
        last_words = _last_words(output)
        report = watch.report(return_code, last_words)
    if watch.error is not None:
        sys.stderr.write(last_words)  # what native code logged belongs to the message
        raise watch.error
    return report


def problems(report: SandboxReport, budget: MemoryBudget) -> list[str]:
    """Why a run does not fit a device; empty if it does."""
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


@contextlib.contextmanager
def _child(
    request: dict[str, Any], output: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A child that has its request, and where its messages come from. It does not outlive the
    block, nor do its temporary files; those of a run that was killed itself go with the next.
    """
    for left in memory_limits.stale(Path(tempfile.gettempdir())):
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=f"{memory_limits.mark()}-")
        )
        read_end, write_end = os.pipe()
        messages = stack.enter_context(open(read_end, "rb", buffering=0))
        with open(write_end, "wb"):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runtime_ref.device.sandbox_child", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[write_end],
                env={**os.environ, **ALLOCATOR, "TMPDIR": temporary},
                start_new_session=True,  # Ctrl-C is for the parent, which ends the child
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        assert process.stdin is not None
        with (
            contextlib.suppress(BrokenPipeError),
            process.stdin,
        ):  # where it died at once, its return code says of what
            process.stdin.write(json.dumps(request).encode())
        yield process, messages


class _Watch:
    """What is known of a child while it runs."""

    def __init__(
        self,
        pid: int,
        limit: Limit,
        limit_bytes: int,
        dirty_limit_bytes: int | None,
        progress: Progress,
    ) -> None:
        self.error: TinyQMoEError | None = None
        self._pid, self._limit, self._progress = pid, limit, progress
        self._limit_bytes, self._dirty_limit_bytes = limit_bytes, dirty_limit_bytes
        self._not_enough = f"{limit_bytes:,} bytes were not enough"
        self._at_join: Counters | None = None
        self._begin = self._end = 0.0
        self._cached_bytes = 0
        self._phases: list[PhaseStart] = []
        self._peaks = _Peaks()
        self._result: dict[str, Any] | None = None
        self._failure = ""
        self._killed = False

    def follow(self, messages: IO[bytes]) -> None:
        """Hears what the child says and looks at it in between, until it says no more."""
        heard = b""
        while True:
            ready, _, _ = select.select([messages], [], [], self._interval_s())
            if ready:
                received = messages.read(1 << 16)
                if not received:
                    break
                *lines, heard = (heard + received).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
            self._look()
        self._end = time.perf_counter()

    def _interval_s(self) -> float:
        """Short at first: what a small model needs comes and goes within a millisecond or two."""
        return min(self._limit.interval_s, max(SHORTEST_INTERVAL_S, self._ms() / 1e3 / LOOKS))

    def _hear(self, message: dict[str, Any]) -> None:
        if "joined" in message:
            self._at_join = Counters(**message["joined"])
            self._cached_bytes = message["cached_bytes"]
            self._begin = time.perf_counter()
        elif "phase" in message:
            self._enter(message["phase"], Counters(**message["counters"]))
            self._progress(message["phase"], message["done"], message["total"])
        elif "result" in message:
            self._result = message["result"]
            self._see(Counters(**message["counters"]))
        elif "error" in message:
            self.error = _rebuilt(message)
        else:
            self._failure, self._killed = message["failure"], message["out_of_memory"]

    def _enter(self, name: str, now: Counters) -> None:
        self._see(now)
        if not self._phases or self._phases[-1].name != name:
            self._phases.append(PhaseStart(name, self._ms(), now))

    def _ms(self) -> float:
        return (time.perf_counter() - self._begin) * 1e3

    def _see(self, now: Counters) -> None:
        assert self._at_join is not None
        self._peaks.see_process(self._at_join, now)

    def _look(self) -> None:
        """Before the child has joined there is nothing to see."""
        if self._at_join is None:
            return
        if now := counters(self._pid):
            self._see(now)
        usage = self._limit.usage(self._pid, self._at_join)
        if usage is None:
            return
        self._peaks.see_usage(self._ms(), usage)
        if self._dirty_limit_bytes is not None and usage.anonymous_bytes > self._dirty_limit_bytes:
            self._not_enough = (
                f"{self._dirty_limit_bytes:,} bytes of anonymous memory were not enough"
            )
            self._kill()
        elif self._limit.must_kill(usage):
            self._kill()

    def _kill(self) -> None:
        self._killed = True
        os.kill(
            self._pid, signal.SIGKILL
        )  # it is not reaped before the end, so the number is still its own

    def report(self, return_code: int, last_words: str) -> SandboxReport:
        """After the end of the child."""
        self._look()
        killed = self._result is None and (self._killed or self._limit.killed())
        outcome: Literal["ok", "killed", "failed"] = "ok" if self._result is not None else "failed"
        detail = (
            ""
            if self._result is not None
            else self._failure or f"{_ending(return_code)}\n{last_words}".strip()
        )
        peaks = self._peaks
        return SandboxReport(
            mechanism=self._limit.mechanism,
            limit_bytes=self._limit_bytes,
            outcome="killed" if killed else outcome,
            phase=self._phases[-1].name if self._phases else "",
            detail=self._not_enough if killed else detail,
            peak_group_bytes=self._limit.peak_bytes(),
            peak_dirty_bytes=peaks.dirty_bytes,
            peak_clean_bytes=peaks.clean_bytes,
            peak_resident_bytes=peaks.resident_bytes,
            peak_mapped_bytes=peaks.mapped_bytes,
            major_faults=peaks.major_faults,
            refaulted_bytes=peaks.refaulted_bytes,
            cached_bytes=self._cached_bytes,
            locked_bytes=peaks.locked_bytes,
            wall_ms=(self._end - self._begin) * 1e3 if self._at_join else 0.0,
            phases=self._phases,
            samples=peaks.samples,
            result=self._result,
        )


@dataclass
class _Peaks:
    """The most that was seen of each, in bytes, and the samples: every one at first, thinned out in
    a long run."""

    dirty_bytes: int = 0
    clean_bytes: int = 0
    resident_bytes: int = 0
    mapped_bytes: int = 0
    locked_bytes: int = 0
    major_faults: int = 0
    refaulted_bytes: int | None = None
    samples: list[Sample] = field(default_factory=list)
    _stride: int = 1
    _looks: int = 0

    def see_process(self, at_join: Counters, now: Counters) -> None:
        grown = now.mapped_bytes - at_join.mapped_bytes
        if now.mapped_peak_bytes > at_join.mapped_peak_bytes:  # this mark cannot be reset
            grown = now.mapped_peak_bytes - at_join.mapped_bytes
        self.mapped_bytes = max(self.mapped_bytes, grown)
        self.dirty_bytes = max(self.dirty_bytes, now.anonymous_bytes - at_join.anonymous_bytes)
        self.resident_bytes = max(self.resident_bytes, now.hwm_bytes - at_join.resident_bytes)
        self.locked_bytes = max(self.locked_bytes, now.locked_bytes)

    def see_usage(self, ms: float, usage: Usage) -> None:
        self.dirty_bytes = max(self.dirty_bytes, usage.anonymous_bytes)
        self.clean_bytes = max(self.clean_bytes, usage.file_bytes)
        self.major_faults = max(self.major_faults, usage.major_faults)
        self.refaulted_bytes = usage.refaulted_bytes
        if self._looks % self._stride == 0:
            self.samples.append(
                Sample(ms, usage.anonymous_bytes, usage.file_bytes, usage.mapped_file_bytes)
            )
        self._looks += 1
        if len(self.samples) == MAX_SAMPLES:
            self.samples = self.samples[::2]
            self._stride *= 2


def _rebuilt(message: dict[str, Any]) -> TinyQMoEError:
    """The error as the child raised it: class, message and parts."""
    kind = getattr(errors, message["error"])
    error = kind.__new__(kind, message["message"])
    vars(error).update(message["attributes"])
    return error


def _ending(return_code: int) -> str:
    if return_code >= 0:
        return f"the child ended with exit code {return_code} and without a result"
    return (
        f"the child was ended by {signal.Signals(-return_code).name}, and not for the memory limit"
    )


def _last_words(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
    return output.read().decode(errors="replace").strip()


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit, so that nothing is left behind; a handler that is there
    stays."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

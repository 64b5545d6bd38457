"""Watch over a child of the sandbox: its messages, its memory, and its end at the limit."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from exporter import errors
from exporter.errors import TinyQMoEError
from exporter.progress import Progress
from runtime_ref.device.memory_limits import Counters, Limit, Usage, counters
from runtime_ref.device.sandbox_report import PhaseStart, Sample, SandboxReport

MAX_SAMPLES = 2000
STEP_SECONDS = 1800  # between two messages of a child, which ends itself then by SIGALRM


# Between two looks at a child there is the time it has had, divided by LOOKS, or the shortest.
SHORTEST_INTERVAL_S, LOOKS = 0.001, 200


class Watch:
    """State of a child while it runs, as far as it is known."""

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
        self._peaks = Peaks()
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
        """Time between two looks, in seconds.

        It is short at first: what a small model needs comes and goes within a millisecond or two.
        """
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
        """Time since the child joined the limit, in milliseconds."""
        return (time.perf_counter() - self._begin) * 1e3

    def _see(self, now: Counters) -> None:
        assert self._at_join is not None
        self._peaks.see_process(self._at_join, now)

    def _look(self) -> None:
        """Counts the memory of the child, and kills it above a limit, once it has joined."""
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
        # The child is not reaped before the end, so the number is still its own.
        os.kill(self._pid, signal.SIGKILL)

    def report(self, return_code: int, last_words: str) -> SandboxReport:
        """Report of the run, after the end of the child."""
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
class Peaks:
    """Peaks of what was seen, in bytes, and the samples.

    There is every sample at first; they are thinned out in a long run.
    """

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
    """Error as the child raised it: class, message and parts."""
    kind = getattr(errors, message["error"])
    error: TinyQMoEError = kind.__new__(kind, message["message"])
    vars(error).update(message["attributes"])
    return error


def _ending(return_code: int) -> str:
    """How a child ended, from its return code."""
    if return_code >= 0:
        return f"the child ended with exit code {return_code} and without a result"
    if return_code == -signal.SIGALRM:
        return f"the child was at one step for longer than {STEP_SECONDS:,} seconds, and was ended"
    return (
        f"the child was ended by {signal.Signals(-return_code).name}, and not for the memory limit"
    )

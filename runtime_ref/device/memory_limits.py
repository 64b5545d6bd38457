"""Memory limits that the kernel enforces on a process, and counters of its memory.

They are Linux control groups, or resource limits. Both kinds of phone kill for memory that cannot
be dropped (anonymous pages) and take clean file pages back instead. So does a control group: its
limit holds for both, an anonymous page that does not fit kills, a file page is evicted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PREFIX = "tinyqmoe"
RLIMIT_SLACK_BYTES = 64 << 20  # above the watchdog's limit: it acts first unless it is starved
# More than a group is ever charged at once: it is full when less than that is left.
CHARGE_BYTES = 1 << 20
REMOVE_SECONDS = 5.0  # the kernel needs a moment to empty the group of a process that was killed
_MARKED = re.compile(rf"{PREFIX}-(\d+)-(\d+)-\w+")
_numbers = itertools.count()


@dataclass(frozen=True)
class Counters:
    """Memory of a process from /proc/PID/status, in bytes, and its major page faults.

    `hwm`: the largest resident set since the mark was last reset.
    """

    anonymous_bytes: int  # and shared memory, and what of both is swapped out
    file_bytes: int
    resident_bytes: int
    hwm_bytes: int
    mapped_bytes: int
    mapped_peak_bytes: int
    data_bytes: int
    locked_bytes: int
    major_faults: int


@dataclass(frozen=True)
class Usage:
    """Memory that is counted against a limit, in bytes.

    `refaulted`: file pages that were evicted and read again.
    """

    anonymous_bytes: int
    file_bytes: int
    mapped_file_bytes: int
    major_faults: int
    refaulted_bytes: int | None


class Limit(Protocol):
    """Limit that a child puts itself under (`join`), and that its parent watches and removes."""

    mechanism: str
    interval_s: float  # how often the parent looks

    def join(self) -> str | int:
        """How `sandbox_child` comes under the limit.

        A text is the file that takes its process id; a number, the bytes its RLIMIT_DATA may grow.
        """

    def usage(self, pid: int, at_join: Counters) -> Usage | None:
        """Memory that is counted now; None when the process is gone."""

    def must_kill(self, usage: Usage) -> bool:
        """Whether the parent has to kill, as the kernel does elsewhere."""

    def peak_bytes(self) -> int | None:
        """Most that was ever counted, exactly, in bytes; None where the kernel does not say."""

    def killed(self) -> bool:
        """Whether the kernel killed a process for this limit."""

    def remove(self) -> None:
        """Removes the limit, whose processes have ended."""


def counters(pid: int | str = "self") -> Counters | None:
    """Counters of a running process; None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    lines = dict(line.split(":", 1) for line in status.splitlines())
    if "VmSize" not in lines:  # it has ended and nobody has asked how
        return None
    kib = {
        name: int(lines[name].split()[0]) << 10 for name in lines if name.startswith(("Vm", "Rss"))
    }
    return Counters(
        anonymous_bytes=kib["RssAnon"] + kib["RssShmem"] + kib["VmSwap"],
        file_bytes=kib["RssFile"],
        resident_bytes=kib["VmRSS"],
        hwm_bytes=kib["VmHWM"],
        mapped_bytes=kib["VmSize"],
        mapped_peak_bytes=kib["VmPeak"],
        data_bytes=kib["VmData"],
        locked_bytes=kib["VmLck"],
        # The name in parentheses may hold spaces.
        major_faults=int(stat.rpartition(")")[2].split()[9]),
    )


@dataclass(frozen=True)
class _Files:
    """Names of files and counts in a version of control groups.

    Counts are in files of lines "name value".
    """

    mechanism: str
    limit: str
    swap: str
    swap_too: bool  # the swap file limits memory and swap together
    peak: str
    events: str
    anonymous: str
    file: str
    mapped_file: str


_V1 = _Files(
    "cgroup v1 memory",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    True,
    "memory.max_usage_in_bytes",
    "memory.oom_control",
    "rss",
    "cache",
    "mapped_file",
)
_V2 = _Files(
    "cgroup v2 memory",
    "memory.max",
    "memory.swap.max",
    False,
    "memory.peak",
    "memory.events",
    "anon",
    "file",
    "file_mapped",
)


class Cgroup:
    """Control group of one run, with a limit.

    The first to touch a page pays for it: what was cached before is not counted.
    """

    interval_s = 0.01

    def __init__(self, folder: Path, files: _Files, limit_bytes: int) -> None:
        self.mechanism = files.mechanism
        self._folder, self._files, self._limit_bytes = folder, files, limit_bytes
        (folder / files.limit).write_text(str(limit_bytes))
        if (folder / files.swap).exists():
            (folder / files.swap).write_text(str(limit_bytes if files.swap_too else 0))

    def join(self) -> str | int:
        return str(self._folder / "cgroup.procs")

    def usage(self, pid: int, at_join: Counters) -> Usage | None:
        stat = _numbers_of(self._folder / "memory.stat")
        shared = stat["shmem"]  # counted as file, but no file holds it
        refaults = stat.get("workingset_refault_file")
        return Usage(
            anonymous_bytes=stat[self._files.anonymous] + shared,
            file_bytes=stat[self._files.file] - shared,
            mapped_file_bytes=stat[self._files.mapped_file],
            major_faults=stat["pgmajfault"],
            refaulted_bytes=None if refaults is None else refaults * resource.getpagesize(),
        )

    def must_kill(self, usage: Usage) -> bool:
        return False

    def peak_bytes(self) -> int | None:
        peak = self._folder / self._files.peak
        return int(peak.read_text()) if peak.exists() else None

    def killed(self) -> bool:
        """Whether the kernel killed for this limit.

        Not for one of a group above, nor because the machine had no more. Version 2 counts how
        often this very limit left no way out. Version 1 does not: there, a limit that was never
        reached did not kill; one that file pages had reached before is taken for the cause.
        """
        events = _numbers_of(self._folder / self._files.events)
        if not events["oom_kill"]:
            return False
        if "oom" in events:
            return events["oom"] > 0
        peak = self.peak_bytes()
        return peak is None or peak >= self._limit_bytes - CHARGE_BYTES

    def remove(self) -> None:
        """Removes the group, or leaves it to `remove_stale`.

        The kernel may not let go of it in time.
        """
        deadline = time.monotonic() + REMOVE_SECONDS
        while not _removed(self._folder) and time.monotonic() < deadline:
            time.sleep(0.01)


class Watchdog:
    """Limit without control groups: the parent reads the counters of the process and kills it.

    RLIMIT_DATA stands behind. Only anonymous memory is limited. RLIMIT_DATA counts what was
    allocated and not yet touched, and refuses it.
    """

    mechanism = "RLIMIT_DATA and a watchdog"
    interval_s = 0.005

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes

    def join(self) -> str | int:
        return self._limit_bytes + RLIMIT_SLACK_BYTES

    def usage(self, pid: int, at_join: Counters) -> Usage | None:
        now = counters(pid)
        if now is None:
            return None
        file_bytes = max(0, now.file_bytes - at_join.file_bytes)
        return Usage(
            anonymous_bytes=max(0, now.anonymous_bytes - at_join.anonymous_bytes),
            file_bytes=file_bytes,
            mapped_file_bytes=file_bytes,
            major_faults=now.major_faults - at_join.major_faults,
            refaulted_bytes=None,
        )

    def must_kill(self, usage: Usage) -> bool:
        return usage.anonymous_bytes > self._limit_bytes

    def peak_bytes(self) -> int | None:
        return None

    def killed(self) -> bool:
        return False

    def remove(self) -> None:
        """Removes nothing: the limit ended with the process."""


def v2_limit(limit_bytes: int) -> Limit | None:
    """Limit in control groups of version 2; None if there is none.

    It is a group below the nearest of ours whose memory controller is handed down to us.
    """
    own = _own_group("cgroup2", "", "0")
    if own is None:
        return None
    mount, folder = own
    for parent in [folder, *folder.parents]:
        if not parent.is_relative_to(mount):
            break
        if "memory" in (parent / "cgroup.subtree_control").read_text().split() and (
            limit := _new_group(parent, _V2, limit_bytes)
        ):
            return limit
    return None


def v1_limit(limit_bytes: int) -> Limit | None:
    """Limit in control groups of version 1; None if we may not make a group.

    It is below our own group, so that limits we are under hold too.
    """
    own = _own_group("cgroup", "memory", "memory")
    return _new_group(own[1], _V1, limit_bytes) if own else None


# The first that works is used.
MECHANISMS: tuple[Callable[[int], Limit | None], ...] = (
    v2_limit,
    v1_limit,
    Watchdog,
)


@contextlib.contextmanager
def open_limit(limit_bytes: int) -> Iterator[Limit]:
    """Context of the best limit this machine has, which is removed when the block ends."""
    limit = next(found for make in MECHANISMS if (found := make(limit_bytes)) is not None)
    try:
        yield limit
    finally:
        limit.remove()


def _own_group(fs_type: str, option: str, controller: str) -> tuple[Path, Path] | None:
    """Mount point and folder of the group this process is in; None if there is none.

    `controller` as /proc/self/cgroup has it, 0 is version 2.
    """
    found = _mount(fs_type, option)
    if found is None:
        return None
    mount, root = found
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if controller == number or controller in controllers.split(","):
            inside = os.path.relpath(path, root)
            folder = mount if inside.startswith("..") else mount / inside
            return (mount, folder) if folder.is_dir() else None
    return None


def _mount(fs_type: str, option: str) -> tuple[Path, str] | None:
    """Mount point of a file system of this type, and which folder of it; None if there is none."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        found, _, options = tail.split(" ", 2)
        if found == fs_type and (not option or option in options.split(",")):
            return Path(fields.split()[4]), fields.split()[3]
    return None


def _new_group(parent: Path, files: _Files, limit_bytes: int) -> Limit | None:
    """New control group with a limit; None if it cannot be made.

    It is named by process, its start and a number, so that several live side by side and stale ones
    are known.
    """
    remove_stale(parent)
    folder = parent / f"{mark()}-{next(_numbers)}"
    try:
        folder.mkdir()
    except OSError:  # not ours to change, or read-only
        return None
    try:
        return Cgroup(folder, files, limit_bytes)
    except OSError:
        _removed(folder)
        return None


def mark() -> str:
    """First part of the names of all that this process makes: itself, by number and start."""
    return f"{PREFIX}-{os.getpid()}-{_start_time(os.getpid())}"


def stale(parent: Path) -> list[Path]:
    """Paths in a folder whose process was killed before it could remove them."""
    named = [(path, _MARKED.fullmatch(path.name)) for path in parent.glob(f"{PREFIX}-*")]
    return [path for path, name in named if name and _start_time(int(name[1])) != name[2]]


def remove_stale(parent: Path) -> None:
    """Removes stale groups; one with processes in it stays."""
    for folder in stale(parent):
        _removed(folder)


def _start_time(pid: int) -> str:
    """Start of a process, in clock ticks of the machine; "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _removed(folder: Path) -> bool:
    """Whether a folder is gone now."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # busy
        return False
    return True


def _numbers_of(file: Path) -> dict[str, int]:
    """Counts of a file with lines "name value", by name."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {name: int(value) for name, value in lines}

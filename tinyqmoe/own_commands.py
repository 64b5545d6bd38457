"""Our own commands in processes of their own, side by side as far as memory has room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from exporter.errors import MissingComponentError, OutOfSpaceError, TinyQMoEError, UsageError

T = TypeVar("T")
TINYQMOE = (sys.executable, "-P", "-m", "exporter.cli")  # as the console script, found anywhere
# What an interpreter with its libraries takes beside a model, in bytes: 0.62 GB were the most seen,
# of a parity check of an ML Program.
LIBRARIES_BYTES = 700_000_000
LAST_WORDS_BYTES = 4000  # of the stderr of a command
PASSED_OR_FAILED = (0, 1)  # exit codes of a command that has a result
_ERRORS = {kind.exit_code: kind for kind in (UsageError, OutOfSpaceError, MissingComponentError)}


@dataclass(frozen=True)
class Ended:
    """The end of a command: its exit code, negative for a signal, and its last words on stderr."""

    code: int
    said: str
    seconds: float

    def error(self, what: str) -> TinyQMoEError:
        """The error that the command ended with, of the kind that its exit code names."""
        if self.code < 0:
            said = f"it was ended by signal {-self.code}, perhaps for want of memory"
            return OutOfSpaceError(f"{what}: {said}", hint="try again with less beside it")
        return _ERRORS.get(self.code, TinyQMoEError)(f"{what}: {self.said}")


class Room:
    """The memory that commands share, in bytes. What needs more than all of it runs alone."""

    def __init__(self, n_bytes: int) -> None:
        self.all_bytes = self._free = n_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, n_bytes: int) -> Iterator[None]:
        """Waits until so much is free, and has it inside the block."""
        taken = min(n_bytes, self.all_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()


@dataclass
class Processes:
    """The processes of commands that run, so that none outlives the block of `side_by_side`."""

    environment: Mapping[str, str] = field(default_factory=dict)
    stopped: bool = False
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, words: Sequence[str], kept: Sequence[int] = ()) -> Ended:
        """Runs `tinyqmoe` with these words; what it shows is not kept, but for its last words.

        `kept` are descriptors that stay open in it, such as that of a lock.
        """
        begin = time.monotonic()
        with tempfile.TemporaryFile() as said:
            with self._lock:
                if self.stopped:
                    raise InterruptedError("the commands were stopped")
                process = subprocess.Popen(
                    [*TINYQMOE, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    pass_fds=kept,
                    env={**os.environ, **self.environment, "COLUMNS": "1000"},
                )
                self._running.add(process)
            code = process.wait()
            self._running.discard(process)
            said.seek(max(0, said.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
            text = said.read().decode(errors="replace").strip()
        return Ended(code, text.rpartition("error: ")[2], time.monotonic() - begin)

    def stop(self) -> None:
        """Ends what runs, and lets nothing start."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.terminate()


class Stoppable(Protocol):
    """Something that runs what jobs wait for."""

    def stop(self) -> None:
        """Ends what runs, and lets nothing start."""


def side_by_side(
    jobs: Sequence[Callable[[], T]],
    running: Stoppable,
    workers: int,
    ended: Callable[[int, T], None],
) -> None:
    """Runs jobs, which have commands run by `running`; `ended` gets the place and result of each.

    It is called in this thread, in the order in which they end. An exception of any of them, or one
    that comes to this thread, ends all.
    """
    with ThreadPoolExecutor(max(1, workers)) as threads:
        futures: dict[Future[T], int] = {threads.submit(job): i for i, job in enumerate(jobs)}
        try:
            left = set(futures)
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=futures.__getitem__):
                    ended(futures[future], future.result())
        except BaseException:
            running.stop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def all_cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Work on a stranger's text in a child process, with limits of time and memory.

A tokenizer is parsed by native code, and a chat template is a program: they may hang, take all
memory or end the process. In a child that is one error.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

SECONDS = 60.0  # of the processor
WAIT = 5  # seconds of the wall clock for each of them: a busy machine gives fewer
MEMORY_BYTES = 3 << 30  # that the child may map besides what the parent has
MAX_RESULT_BYTES = 64 << 20
MEMORY_STATUS = "/proc/self/statm"  # absent where there is no Linux: no limit of memory there


def nothing() -> None:
    """Does nothing."""


def guarded(
    work: Callable[[], Any],
    seconds: float = SECONDS,
    memory_bytes: int | None = MEMORY_BYTES,
    meanwhile: Callable[[], None] = nothing,
) -> Any:
    """The result of a function in a forked child, a value of JSON.

    `seconds` are of the processor, and WAIT times as many of the wall clock. `memory_bytes` may be
    mapped besides what the parent has; None: as much as there is. `meanwhile` is called in the
    parent, once the child is at work: no thread that it starts was there when the child was forked.

    Raises ValueError with the reason where the function raises anything, does not end in time,
    takes too much memory or ends the process.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _run(work, write, seconds, memory_bytes)
    os.close(write)
    try:
        meanwhile()
        answer = _read(read, time.monotonic() + WAIT * seconds)
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
    if answer is None:
        raise ValueError(f"it takes more than {WAIT * seconds:.0f} seconds")
    if not answer and used.ru_utime + used.ru_stime > seconds:
        raise ValueError(f"it takes more than {seconds:.0f} seconds of the processor")
    return _result(answer, status)


def _run(work: Callable[[], Any], write: int, seconds: float, memory_bytes: int | None) -> NoReturn:
    """Does the work in the child, and ends it: nothing of the parent's is tidied up here."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the parent decides, and kills
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native code has last words
        faulthandler.disable()
        _limit(seconds, memory_bytes)
        answer = {"result": work()}
    except MemoryError:
        answer = {"error": f"it takes more than {(memory_bytes or 0) / 1e9:.1f} GB of memory"}
    except BaseException as error:  # a panic of Rust is no Exception
        answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
    try:
        _write(write, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _limit(seconds: float, memory_bytes: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is None:
        return
    _lower(resource.RLIMIT_CPU, int(seconds) + 1)
    if os.path.exists(MEMORY_STATUS):
        with open(MEMORY_STATUS) as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, mapped + memory_bytes)


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read(descriptor: int, deadline: float) -> bytes | None:
    """All that the child writes; None if it has not ended by then."""
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            return None
        part = os.read(descriptor, 1 << 16)
        if not part or sum(map(len, parts)) > MAX_RESULT_BYTES:
            return b"".join(parts)
        parts.append(part)
    return None


def _result(answer: bytes, status: int) -> Any:
    """The result in the words of a child that ended with a status. Raises ValueError."""
    try:
        said = json.loads(answer)
        if "result" in said:
            return said["result"]
        reason = str(said["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        ended = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-ended).name if ended < 0 else f"the code {ended}"
        reason = f"it ends the process with {name}, or takes more than the memory allowed"
    raise ValueError(reason)

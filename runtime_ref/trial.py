"""Trials: what native code does with a stranger's file, found out in a child process first.

A trial that went well is noted in the user's cache folder, and is not made again on this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

import platformdirs

from exporter.guarded import MEMORY_BYTES, SECONDS, guarded


def try_once(
    key: str,
    work: Callable[[], object],
    *,
    seconds: float = SECONDS,
    memory_bytes: int | None = MEMORY_BYTES,
) -> None:
    """Does the work in a child process, unless that went well before.

    `key` names all that the work depends on: contents and versions. Raises ValueError with the
    reason where it does not end well.
    """
    name = hashlib.sha256(key.encode()).hexdigest()
    mark = platformdirs.user_cache_path("tiny-qmoe") / "tried" / name
    if mark.exists():
        return

    def done() -> bool:
        work()
        return True

    guarded(done, seconds, memory_bytes)
    with contextlib.suppress(OSError):  # then it is tried again
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()

"""Trials: what native code does with a stranger's file, found out in a child process first.

A trial that went well is noted, and is not made again on this machine.
"""

from __future__ import annotations

from collections.abc import Callable

from exporter.guarded import MEMORY_BYTES, SECONDS, guarded
from runtime_ref.notes import Notes


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
    notes = Notes("tried")
    if notes.has(key):
        return

    def done() -> bool:
        work()
        return True

    guarded(done, seconds, memory_bytes)
    notes.add(key)

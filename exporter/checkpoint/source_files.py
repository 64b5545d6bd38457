"""The files that a model is made from: their SHA-256, and whether they are what they were."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from exporter.errors import CheckpointError

PIECE_BYTES = 4 << 20


def file_states(files: Mapping[str, Path]) -> dict[str, str]:
    """The size and the time of the last change of each file, in words."""
    stats = {name: file.stat() for name, file in files.items()}
    return {name: f"{s.st_size} bytes of {s.st_mtime_ns} ns" for name, s in stats.items()}


def hash_files(files: Mapping[str, Path], stop: threading.Event) -> dict[str, str]:
    """SHA-256 of each file in hex digits, read in pieces. After `stop` no more is read.

    Whatever reads them next finds them in the page cache.
    """
    found = {}
    for name, file in files.items():
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while not stop.is_set() and (piece := stream.read(PIECE_BYTES)):
                digest.update(piece)
        found[name] = digest.hexdigest()
    return found


class Hashing:
    """What `hash_files` gives, computed in a thread that `begin` starts."""

    def __init__(self, thread: ThreadPoolExecutor, stop: threading.Event) -> None:
        self._thread, self._stop = thread, stop

    def begin(self, files: Mapping[str, Path]) -> None:
        """Starts to read the files."""
        self._files, self._states = files, file_states(files)
        self._digests = self._thread.submit(hash_files, files, self._stop)

    def result(self) -> dict[str, str]:
        """The digests. Raises CheckpointError with the files that have changed since `begin`."""
        digests = self._digests.result()
        check_unchanged(self._files, self._states)
        return digests


@contextlib.contextmanager
def hashed_beside() -> Iterator[Hashing]:
    """A hashing of files that goes on beside the block, and no longer than that."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        try:
            yield Hashing(thread, stop)
        finally:
            stop.set()


def check_unchanged(files: Mapping[str, Path], states: Mapping[str, str]) -> None:
    """Raises CheckpointError with the files that are not as in earlier `file_states`."""
    now = file_states(files)
    if changed := [
        f"{name}: {states[name]} then, {now[name]} now" for name in now if now[name] != states[name]
    ]:
        raise CheckpointError(
            "files of the checkpoint changed while it was exported",
            problems=changed,
            hint="export again when nothing writes to them",
        )

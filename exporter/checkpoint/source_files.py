"""The files that a model is made from: their SHA-256, and whether they are what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from exporter.errors import CheckpointError
from exporter.progress import Progress

PIECE_BYTES = 4 << 20


def file_states(files: Mapping[str, Path]) -> dict[str, str]:
    """The size and the time of the last change of each file, in words."""
    stats = {name: file.stat() for name, file in files.items()}
    return {name: f"{s.st_size} bytes of {s.st_mtime_ns} ns" for name, s in stats.items()}


def hash_files(files: Mapping[str, Path], progress: Progress) -> dict[str, str]:
    """SHA-256 of each file in hex digits, read in pieces.

    Whatever reads them next finds them in the page cache.
    """
    total, done = sum(file.stat().st_size for file in files.values()), 0
    found = {}
    for name, file in files.items():
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
                done += len(piece)
                progress("hash the weights", done, total)
        found[name] = digest.hexdigest()
    return found


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

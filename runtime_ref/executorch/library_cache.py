"""A cache folder of compiled code, from which a process loads what it runs.

Whoever can write there can run code as the user. So the folder belongs to the user alone, what is
made in it is made under a lock, and a library is loaded only with the SHA-256 that it was made
with.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from exporter.errors import MissingComponentError

LONGEST_SECONDS = 1800.0  # that another process may compile


def make_private(folder: Path) -> None:
    """Makes a folder of mode 0700, and the one around it, or checks those that are there.

    Raises MissingComponentError where somebody else could write into one of them.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check(folder.parent, others_may=0o055)
    _check(folder, others_may=0)


def _check(folder: Path, *, others_may: int) -> None:
    """Checks that a folder is the user's own, and that others may do no more than these bits."""
    found = folder.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        wrong, hint = "is no folder, or a link to one", f"remove {folder}"
    elif found.st_uid != os.geteuid():
        wrong = f"belongs to the user with the number {found.st_uid}"
        hint = f"remove {folder}, or set XDG_CACHE_HOME to a folder of your own"
    elif mode & 0o077 & ~others_may:
        wrong = f"is open to other users (mode {mode:04o})"
        hint = f"look whether they left something there, and `chmod 700 {folder}`"
    else:
        return
    raise MissingComponentError(
        f"compiled code is not loaded from {folder}, which {wrong}", hint=hint
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; only one process makes something there at a time.

    Raises MissingComponentError if another one has held it for longer than a compiler takes.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        deadline = time.monotonic() + LONGEST_SECONDS
        while not _lock(descriptor):
            if time.monotonic() > deadline:
                what = f"another process compiles in {folder}, and does not end"
                raise MissingComponentError(what, hint="end it, and try again")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def put(built: Path, target: Path) -> None:
    """Puts a library in its place, after its SHA-256."""
    noted = built.with_name("sha256")
    noted.write_text(_sha256(built))
    os.replace(noted, _note(target))
    os.replace(built, target)


def check_unchanged(library: Path) -> None:
    """Checks that a library is the one that was put there. Raises MissingComponentError."""
    note = _note(library)
    expected = note.read_text() if note.is_file() and not note.is_symlink() else "absent"
    if library.is_symlink() or _sha256(library) != expected:
        what = f"{library} is not the library that was compiled: its SHA-256 is another"
        raise MissingComponentError(what, hint=f"delete {library.parent} and try again")


def _note(library: Path) -> Path:
    """The file with the SHA-256 of a library."""
    return library.with_name(f"{library.name}.sha256")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

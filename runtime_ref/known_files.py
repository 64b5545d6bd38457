"""Files of bundles that were hashed on this machine before, and have not been touched since.

A file counts as untouched while its device, inode, size and times are the same. The time of its
last change (ctime) is set by the system whenever its bytes change, and no program can set it back.
What is known is noted in a folder of the user's cache that nobody else may write to; files are
hashed again where there is no such folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Collection
from pathlib import Path

import platformdirs

from exporter.bundle import Bundle

# A file that changed later than this before it is hashed is not noted: clocks of file systems are
# coarse, and another change at the same tick would not be seen.
SETTLED_SECONDS = 2.0


def verify(bundle: Bundle, names: Collection[str]) -> None:
    """Compares all files with their sizes, and those of `names` that are not known with SHA-256.

    Raises BundleError as `Bundle.verify`.
    """
    folder = platformdirs.user_cache_path("tiny-qmoe") / "hashed"
    expected = {e.path: e.sha256 for e in [*bundle.manifest.files, *bundle.manifest.expanded]}
    marks = {name: _mark(folder, bundle.path / name, expected[name]) for name in names}
    known = {name for name, mark in marks.items() if mark and mark.exists()}
    bundle.verify(set(names) - (known if _is_private(folder) else set()))
    with contextlib.suppress(OSError):  # then they are hashed again
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for mark in marks.values():
            if mark and not mark.exists():
                mark.touch()


def _mark(folder: Path, file: Path, sha256: str) -> Path | None:
    """The place of the note about a file as it is now; None if it is absent or changed just now."""
    try:
        found = file.stat()
    except OSError:
        return None
    if found.st_ctime > time.time() - SETTLED_SECONDS:
        return None
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return folder / hashlib.sha256(f"{sha256} {parts}".encode()).hexdigest()


def _is_private(folder: Path) -> bool:
    """Whether a folder is there, and nobody but its owner, this user, may write to it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    )

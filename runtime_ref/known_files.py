"""Files of bundles that were hashed on this machine before, and have not been touched since.

A file counts as untouched while its device, inode, size and times are the same. The time of its
last change (ctime) is set by the system when its bytes are written, and no program can set it back.
Writes through a mapping are the exception: of those the system notes the first to a page, or none
(tmpfs). So a file is known only while it belongs to this user or root, and nobody else may write to
it.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from exporter import real_files
from exporter.bundle import Bundle
from runtime_ref.notes import Notes

# A file that changed later than this before it is hashed is not noted: clocks of file systems are
# coarse, and another change at the same tick would not be seen.
SETTLED_SECONDS = 2.0


def verify(bundle: Bundle, names: Collection[str]) -> None:
    """Compares all files with their sizes, and those of `names` that are not known with SHA-256.

    Raises BundleError as `Bundle.verify`.
    """
    notes = Notes("hashed")
    expected = {e.path: e.sha256 for e in [*bundle.manifest.files, *bundle.manifest.expanded]}
    keys = {name: _key(bundle.path / name, expected[name]) for name in names}
    bundle.verify({name for name, key in keys.items() if key is None or not notes.has(key)})
    for name, key in keys.items():
        # What changed while it was hashed is not noted.
        if key is not None and key == _key(bundle.path / name, expected[name]):
            notes.add(key)


def _key(file: Path, sha256: str) -> str | None:
    """The key of the note that a file as it is now has a digest.

    None if it is absent, changed just now, or others may write to it.
    """
    try:
        found = file.stat()
    except OSError:
        return None
    if found.st_ctime > time.time() - SETTLED_SECONDS or not real_files.is_private(found):
        return None
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return f"{sha256} {parts}"

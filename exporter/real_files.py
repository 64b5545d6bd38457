"""Files and folders that are what they look like: no links, no devices, no second names.

A bundle may come from a stranger. A link in it makes the tool read a file of the user's into a
package, or write through it. So folders are walked, and trusted, by what `lstat` says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Paths below a folder, relative and sorted, and whether each is a regular file.

    Real directories are entered and not named; what is neither, a link above all, is named and not
    entered. Nothing is there below a folder that is absent.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            for below, regular in walk(Path(entry.path)):
                yield f"{entry.name}/{below}", regular
        else:
            yield entry.name, entry.is_file(follow_symlinks=False)


def regular_files(folder: Path) -> list[str]:
    """Paths of all regular files below a folder, relative to it, as `walk` names them."""
    return [name for name, regular in walk(folder) if regular]


def links(folder: Path) -> list[str]:
    """Paths of all that is neither a regular file nor a real directory below a folder."""
    return [name for name, regular in walk(folder) if not regular]


def unsafe_to_write(folder: Path) -> list[str]:
    """Paths through which a write below a folder would reach another place.

    They are links, devices, and files that have a second name somewhere. The folder itself is named
    "." if it is there and no real directory.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return ["."]
    return [name for name, regular in walk(folder) if not regular or _names(folder / name) > 1]


def _names(file: Path) -> int:
    """Number of names that a file has in its file system."""
    return file.lstat().st_nlink


def is_private(found: os.stat_result) -> bool:
    """Whether only this user, and root, may write to a file or into a folder."""
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & 0o022


def is_private_folder(folder: Path) -> bool:
    """Whether there is a real folder, into which only this user, and root, may write."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and is_private(found)


def sync(folder: Path) -> None:
    """Writes a folder to the disk with all that it holds, so that a power cut cannot undo it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def rename(source: Path, target: Path) -> None:
    """Renames a folder whose content is on the disk, and writes the new name to the disk."""
    os.rename(source, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

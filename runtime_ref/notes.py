"""Notes of what was found out on this machine: empty files in the user's cache folder.

They are believed only where nobody else may write: another user could note that a hostile file is
fine.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import platformdirs

from exporter import real_files


class Notes:
    """The notes of a kind. A note is named by the digest of all that it depends on, its key."""

    def __init__(self, kind: str) -> None:
        self.folder = platformdirs.user_cache_path("tiny-qmoe") / kind

    def has(self, key: str) -> bool:
        """Whether this user has noted something."""
        return real_files.is_private_folder(self.folder) and self._file(key).exists()

    def add(self, key: str) -> None:
        """Notes something, if the folder can be written to."""
        with contextlib.suppress(OSError):  # then it is found out again
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file(key).touch()

    def _file(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()

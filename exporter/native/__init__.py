"""C++ sources, and the library that is compiled from them."""

from __future__ import annotations

import shutil
from pathlib import Path


def library_file() -> Path | None:
    """The file of the compiled core, or None where it was not compiled."""
    found = sorted(Path(__file__).resolve().parent.glob("_tinyqmoe*.so"))
    return found[0] if found else None


def native_dir() -> Path:
    """The folder of the C++ sources, as `tinyqmoe native-dir` prints it."""
    return Path(__file__).resolve().parent


def copy_sources(target: Path) -> None:
    """Copies to `target`, which must not exist, what an app builds: all but tests and what is
    compiled.

    Raises OSError.
    """
    unwanted = ("*.so", "*.o", "__pycache__", "*.py", "tests", "fuzz", "command_line")
    shutil.copytree(native_dir(), target, ignore=shutil.ignore_patterns(*unwanted))

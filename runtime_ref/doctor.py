"""Check-up of the machine: is everything here that an export and a run need?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from exporter.errors import TinyQMoEError

DISTRIBUTION = "tiny-qmoe"
MIN_FREE_BYTES = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `do` is the next step where it is not well."""

    what: str
    ok: bool
    found: str
    do: str = ""


def examine() -> list[Finding]:
    """Findings about everything that an export and a run need, in this order.

    Python, package versions, the C++ core, the compiler, the ExecuTorch kernels and the disk.
    """
    again = f"install {DISTRIBUTION} again in a fresh virtual environment"
    return [
        _python(),
        *_versions(),
        attempt("C++ core", _core, again),
        attempt("C++ compiler", _compiler, "install g++ or clang++, or set CXX"),
        attempt("ExecuTorch kernels", _kernels, again),
        attempt("disk", _disk, f"make {_cache()} writable, or set XDG_CACHE_HOME"),
    ]


def attempt(what: str, probe: Callable[[], Finding | str], do: str) -> Finding:
    """Finding of a probe; where it fails, the reason.

    `do` is for failures that do not name the next step themselves.
    """
    try:
        found = probe()
    except TinyQMoEError as error:
        return Finding(what, False, "\n".join([error.what, *error.problems]), error.hint or do)
    except (ImportError, OSError, RuntimeError) as error:
        # Packages that are missing, broken or of another version.
        return Finding(what, False, f"{type(error).__name__}: {error}", do)
    return found if isinstance(found, Finding) else Finding(what, True, found)


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", sys.version_info >= (3, 11), found, "use Python 3.11 or later")


def _versions() -> list[Finding]:
    """Findings for each requirement of this package, against what is installed."""
    from packaging.requirements import Requirement

    try:
        own = importlib.metadata.version(DISTRIBUTION)
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [
            Finding(
                DISTRIBUTION, False, "not installed: this is a bare source tree", "pip install ."
            )
        ]
    requirements = [Requirement(line) for line in lines]
    wanted = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [
        Finding(DISTRIBUTION, True, own),
        *(_version(str(r.name), str(r.specifier)) for r in wanted),
    ]


def _version(name: str, specifier: str) -> Finding:
    """Finding for one requirement."""
    from packaging.specifiers import SpecifierSet

    do = f"pip install '{name}{specifier}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", do)
    fits = SpecifierSet(specifier).contains(found, prereleases=True)
    return Finding(name, fits, f"{found} (wanted: {specifier})" if specifier else found, do)


def _core() -> str:
    from exporter.codec.native import available_isas, library

    return f"{', '.join(available_isas())}; {library()._name}"


def _compiler() -> str:
    from runtime_ref.executorch import kernels

    if kernels.is_prebuilt():
        return "not needed: this installation brings the ExecuTorch kernels"
    command = kernels.compiler()
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(
            f"`{shlex.join(command)} --version` ended with {done.returncode}: {done.stderr.strip()}"
        )
    return (
        f"{done.stdout.splitlines()[0] if done.stdout else 'of unknown version'}; "
        f"{shlex.join(command)}"
    )


def _kernels() -> str:
    from runtime_ref.executorch import kernels

    kernels.load()
    return f"{', '.join(kernels.OPERATORS)}; {kernels.library_path()}"


def _cache() -> Path:
    return platformdirs.user_cache_path(DISTRIBUTION)


def _disk() -> Finding:
    """Finding about the disk of the cache, into which kernels are compiled.

    Bundles go where the user says.
    """
    folder = _cache()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable")
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free; {folder}"
    return Finding("disk", free >= MIN_FREE_BYTES, found, f"free {MIN_FREE_BYTES / 1e9:.0f} GB")

"""Is everything here that an export and a run need?"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import platformdirs

from exporter.errors import TinyQMoEError

MIN_FREE_BYTES = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `do` is the next step where it is not well."""

    what: str
    ok: bool
    found: str
    do: str = ""


def examine() -> list[Finding]:
    """Python, package versions, the C++ core, the compiler, the ExecuTorch kernels and the disk, in this order."""
    findings = [_python(), *_versions()]
    findings += [_try(what, probe) for what, probe in (
        ("C++ core", _core), ("C++ compiler", _compiler), ("ExecuTorch kernels", _kernels),
    )]  # fmt: skip
    return [*findings, _disk()]


def _python() -> Finding:
    found = sys.version.split()[0]
    return Finding("Python", sys.version_info >= (3, 11), found, "use Python 3.11 or later")


def _versions() -> list[Finding]:
    from packaging.requirements import Requirement

    findings = []
    for line in importlib.metadata.requires("tiny-qmoe") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(requirement.name, False, "not installed", f"pip install '{requirement}'"))
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        wanted = f"{found} (wanted: {requirement.specifier})" if str(requirement.specifier) else found
        findings.append(Finding(requirement.name, fits, wanted, f"pip install '{requirement}'"))
    return findings


def _core() -> str:
    from exporter.codec.native import library_path

    return str(library_path())


def _compiler() -> str:
    from runtime_ref import kernels

    return kernels.compiler()


def _kernels() -> str:
    from runtime_ref import kernels

    kernels.load()
    return f"{', '.join(kernels.OPERATORS)} in {kernels.library_path()}"


def _try(what: str, probe: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, probe())
    except TinyQMoEError as error:
        return Finding(what, False, "; ".join([error.what, *error.problems]), error.do)


def _disk() -> Finding:
    folder = platformdirs.user_cache_path("tiny-qmoe", ensure_exists=True)
    free = shutil.disk_usage(folder).free
    return Finding("disk", free >= MIN_FREE_BYTES, f"{free / 1e9:.1f} GB free at {folder}", "free some space")

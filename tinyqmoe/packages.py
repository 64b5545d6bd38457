"""Bundles and their packages: opening them, and choosing among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.bundle import Bundle
from exporter.errors import UsageError
from tinyqmoe.settings import names

if TYPE_CHECKING:
    from exporter.bundle import Artifact, Manifest
    from exporter.progress import Progress
    from runtime_ref.generate import Runner
    from runtime_ref.residency import Mode, Residency

ALL = "all"


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress of what nobody watches."""


def open_bundle(bundle: Bundle | str | Path) -> Bundle:
    """A bundle whose files have the SHA-256 of its manifest; one that is open is taken as it is.

    Raises BundleError.
    """
    if isinstance(bundle, Bundle):
        return bundle
    opened = Bundle.open(Path(bundle))
    opened.verify()
    return opened


def choose_packages(manifest: Manifest, wanted: str | Sequence[str] = ALL) -> list[Artifact]:
    """All packages of these backends or formats. Raises UsageError for one that the bundle has none
    of."""
    wanted = names(wanted)
    there = [
        a for a in manifest.artifacts if ALL in wanted or a.format in wanted or a.backend in wanted
    ]
    known = {ALL, *(name for a in there for name in (a.format, a.backend))}
    if missing := [name for name in wanted if name not in known]:
        formats = ", ".join(f"{a.format} ({a.backend})" for a in manifest.artifacts)
        what = f"there is no package for {', '.join(missing)}: it has {formats}"
        raise UsageError(what, hint="export it with --target")
    return there


def choose_package(bundle: Bundle, backend: str | None) -> Artifact:
    """The package of a format, the first one of a backend, or the first of all. Raises
    UsageError."""
    return bundle.manifest.artifacts[0] if backend is None else bundle.artifact(backend)


def open_runner(
    bundle: Bundle | str | Path,
    *,
    backend: str | None = None,
    residency: Mode | Residency | None = None,
    progress: Progress | None = None,
) -> Runner:
    """A package loaded in its runtime, to be given to several calls of `generate`.

    `backend` is a backend or a format; by default it is the first package. `residency` is where
    weights lie, as codes ("stream") by default; it is that of all packages of a kind in this
    process. Raises TinyQMoEError.
    """
    from runtime_ref import runners

    bundle = open_bundle(bundle)
    artifact, progress = choose_package(bundle, backend), progress or no_progress
    prepare(artifact, progress)
    return runners.open_runner(bundle, artifact, as_residency(residency), progress)


def prepare(artifact: Artifact, progress: Progress) -> None:
    """Compiles the kernels that a package needs, the first time: here and not in a sandbox."""
    from runtime_ref import runners

    runners.module(artifact.format).build(progress)


def as_residency(given: Mode | Residency | None) -> Residency:
    """A residency of which perhaps only the mode is given."""
    from runtime_ref.residency import Residency

    return given if isinstance(given, Residency) else Residency(given or "stream")

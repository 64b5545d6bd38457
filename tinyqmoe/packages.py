"""Bundles and their packages: opening them, and choosing among them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.bundle import BACKENDS, Bundle
from tinyqmoe.hub import bundle_place
from tinyqmoe.settings import names

if TYPE_CHECKING:
    from exporter.bundle import Artifact, Manifest
    from exporter.progress import Progress
    from runtime_ref.generate import Runner
    from runtime_ref.residency import Mode, Residency

ALL = "all"


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress function of what nobody watches."""


def open_bundle(bundle: Bundle | str | Path) -> Bundle:
    """A bundle whose files all have the SHA-256 of its manifest.

    One that is open is taken as it is; a path may be a hub id too, `owner/name[@revision]`. Raises
    BundleError.
    """
    if isinstance(bundle, Bundle):
        return bundle
    opened = Bundle.open(bundle_place(bundle))
    opened.verify()
    return opened


class PackageInUse:
    """A bundle of which one package is used, whose files are verified while libraries are loaded.

    The files that all packages share are as the manifest says from the start; those of the package
    when `wait` has returned, before which nothing may read them. Of the others only the sizes are
    compared. A file of the package that was hashed before and is untouched is not hashed again. A
    bundle that was open is taken as it is. Raises BundleError, UsageError, MissingComponentError.
    """

    def __init__(self, given: Bundle | str | Path, backend: str | None) -> None:
        from runtime_ref import known_files

        self.bundle = given if isinstance(given, Bundle) else Bundle.open(bundle_place(given))
        self.artifact = choose_package(self.bundle, backend)
        self._verified: Future[None] | None = None
        if not isinstance(given, Bundle):
            self.bundle.verify(self.bundle.shared_files)
            thread = ThreadPoolExecutor(1)
            hashed = self.bundle.files_of(self.artifact)
            self._verified = thread.submit(known_files.verify, self.bundle, hashed)
            thread.shutdown(wait=False)

    def wait(self) -> None:
        """Waits until the files of the package are verified. Raises BundleError."""
        if self._verified is not None:
            self._verified.result()

    def open(
        self, residency: Mode | Residency | None, threads: int | None, progress: Progress
    ) -> Runner:
        """The package loaded in its runtime, once its libraries are loaded and it is verified.

        Raises TinyQMoEError.
        """
        from exporter.quiet import quiet
        from runtime_ref import runners

        placed = residency_for(self.artifact, residency)
        runners.check_residency(self.artifact, placed)
        runners.check_threads(self.artifact, threads)
        prepare(self.artifact, progress)
        with quiet():  # libraries tell what they lack
            runners.module(self.artifact.format).prepare()
        self.wait()
        runners.try_out(self.bundle, self.artifact)
        return runners.open_runner(self.bundle, self.artifact, placed, progress, threads)


def choose_packages(manifest: Manifest, wanted: str | Sequence[str] = ALL) -> list[Artifact]:
    """All packages of these backends or formats; "all" are those that ship.

    Raises UsageError for one that the bundle has none of.
    """
    from runtime_ref import runners

    wanted = names(wanted)
    there = [
        a for a in manifest.artifacts if ALL in wanted or a.format in wanted or a.backend in wanted
    ]
    known = {ALL, *(name for a in there for name in (a.format, a.backend))}
    return there + [runners.package(manifest, name) for name in wanted if name not in known]


def option_value(artifact: Artifact) -> str:
    """The value of `--backend` that means one package: its backend, or its format of several."""
    several = list(BACKENDS.values()).count(artifact.backend) > 1
    return artifact.format if several else artifact.backend


def native_packages(manifest: Manifest) -> list[Artifact]:
    """The packages that a session of the core runs: one, or none."""
    from runtime_ref.native import package

    return [package.native_package(manifest)] if package.find(manifest) else []


def choose_package(bundle: Bundle, backend: str | None) -> Artifact:
    """The package of a format, the first one of a backend, or the one that a run takes by default.

    Raises UsageError, MissingComponentError.
    """
    from runtime_ref import runners

    if backend is None:
        return runners.default_package(bundle.manifest)
    return runners.package(bundle.manifest, backend)


def open_runner(
    bundle: Bundle | str | Path,
    *,
    backend: str | None = None,
    residency: Mode | Residency | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Runner:
    """A package loaded in its runtime, to be given to several calls of `generate`.

    `backend` is a backend or a format. By default it is "native", a session of the C++ core, where
    the bundle has a `.pte` with int16 activations, and else the first package. `residency` is where
    weights lie, by default "auto": expanded in memory as far as half of what is available holds
    them, else as codes. It is that of all packages of a kind in this process. `threads` are those
    of a session, by default as many as this process may use. Raises
    TinyQMoEError.
    """
    chosen = PackageInUse(bundle, backend)
    return chosen.open(residency, threads, progress or no_progress)


def prepare(artifact: Artifact, progress: Progress) -> None:
    """Compiles the kernels that a package needs, the first time.

    It is done here and not in a sandbox.
    """
    from runtime_ref import runners

    runners.module(artifact.format).build(progress)


def residency_for(artifact: Artifact, given: Mode | Residency | None) -> Residency:
    """A residency of which perhaps only the mode is given, or nothing.

    "auto", the default of packages that have one, is that of this machine.
    """
    from runtime_ref import runners
    from runtime_ref.residency import Residency

    if isinstance(given, Residency):
        return given
    if given == "auto" or (given is None and runners.module(artifact.format).HAS_RESIDENCY):
        return Residency.of_this_machine()
    return Residency(given or "stream")


def expanded_bytes(runner: Runner) -> int:
    """Memory that expanded weights take now, in bytes, of all open packages of a runner's kind."""
    from runtime_ref import residency, runners

    core = runners.module(runner.artifact.format).core()
    return residency.stats(core).dirty_bytes if core else 0

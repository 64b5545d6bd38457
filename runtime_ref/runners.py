"""Runners of the package formats, each in a module that is imported when it is needed.

A format is one module, named in MODULES and nowhere else: what is known of a format when it runs
(how it is opened, which libraries it needs, what it takes in memory) stands there. Two of them
ship no files of their own: "native" is a `.pte` as a session of the core reads it, and
"coreml-real" an ML Program as Core ML runs it.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Protocol, cast

from exporter.bundle import COREML_REAL, NATIVE, Artifact, Bundle, Manifest
from exporter.errors import UsageError
from exporter.progress import Progress
from runtime_ref import residency as residencies
from runtime_ref.coreml.real_package import real_package
from runtime_ref.generate import Runner
from runtime_ref.memory import ModelShape, RuntimeMemory
from runtime_ref.native import package as native
from runtime_ref.residency import Residency

MODULES = {
    "pte": "runtime_ref.executorch.runner",
    NATIVE: "runtime_ref.native.runner",
    "custom-op": "runtime_ref.coreml.custom_op_runner",
    "mlprogram": "runtime_ref.coreml.mlprogram_runner",
    COREML_REAL: "runtime_ref.coreml.real_runner",
}


class RunnerModule(Protocol):
    """Interface of a module in MODULES.

    NAME: how its runner is called in reports. HAS_RESIDENCY: whether its products read coded
    weights, which can be streamed or expanded. HAS_THREADS: whether it takes a number of threads.
    SPEED_IS_REAL: whether it is the runtime that ships, so that a device's speed can be projected
    from its own; an interpreter's says nothing.
    """

    NAME: str
    HAS_RESIDENCY: bool
    HAS_THREADS: bool
    SPEED_IS_REAL: bool

    def build(self, progress: Progress) -> None:
        """Compiles what the format needs on this machine, if it is not there yet.

        Raises MissingComponentError.
        """

    def prepare(self) -> None:
        """Imports and loads what a runner needs and an app has not, before memory is counted."""

    def core(self) -> ctypes.CDLL | None:
        """Handle of the library whose products the runner uses, with its residency manager.

        None for a format that needs none.
        """

    def open(
        self, bundle: Bundle, artifact: Artifact, threads: int | None, progress: Progress
    ) -> Runner:
        """Runner of a loaded package.

        `threads` share its products; None is as many as this process may use, and the only choice
        without HAS_THREADS. Raises BundleError, MissingComponentError, OutOfSpaceError.
        """

    def default_threads(self) -> int | None:
        """Number of threads that share a product where none is asked for; None if not known.

        Raises MissingComponentError.
        """

    def memory(self, artifact: Artifact, shape: ModelShape) -> RuntimeMemory:
        """Predicted memory of the runtime itself, in bytes, without the weights."""


def module(package_format: str) -> RunnerModule:
    """Runner module of a package format, a key of MODULES."""
    return cast(RunnerModule, importlib.import_module(MODULES[package_format]))


def package(manifest: Manifest, wanted: str) -> Artifact:
    """Package of a format, or the first one of a backend.

    Raises UsageError if the bundle has none.
    """
    if wanted == NATIVE:
        return native.native_package(manifest)
    if wanted == COREML_REAL:
        return real_package(manifest)
    for artifact in manifest.artifacts:
        if wanted in (artifact.format, artifact.backend):
            return artifact
    there = ", ".join(f"{a.format} ({a.backend})" for a in manifest.artifacts)
    what = f"the bundle has no package for {wanted}: it has {there}"
    raise UsageError(what, hint="export it with --target")


def default_package(manifest: Manifest) -> Artifact:
    """Package that a run takes unless told otherwise: native where it can be, else the first."""
    can_be_native = native.find(manifest) is not None
    return native.native_package(manifest) if can_be_native else manifest.artifacts[0]


def open_runner(
    bundle: Bundle,
    artifact: Artifact,
    residency: Residency,
    progress: Progress,
    threads: int | None = None,
) -> Runner:
    """Runner of a loaded package with its weights where they are wanted.

    The residency is that of all packages of its kind in this process, until set anew. Raises
    UsageError for a residency or a number of threads that the format does not know; BundleError,
    MissingComponentError, OutOfSpaceError.
    """
    check_residency(artifact, residency)
    check_threads(artifact, threads)
    runner = module(artifact.format)
    if core := runner.core():
        residency, filed = residency.of(bundle), residency.folder is not None
        tensors = residencies.coded_tensors(bundle, artifact) if filed else ()
        residencies.apply(core, residency, tensors)
    return runner.open(bundle, artifact, threads, progress)


def try_out(bundle: Bundle, artifact: Artifact) -> None:
    """Finds out in a child process whether a package ends the process that runs it.

    Only a format whose runtime executes what is in the file has anything to try. Raises
    BundleError.
    """
    if trial := getattr(module(artifact.format), "try_out", None):
        trial(bundle, artifact)


def check_residency(artifact: Artifact, residency: Residency) -> None:
    """Checks that a package knows a residency.

    Raises UsageError for a package without coded weights: nothing of it can be expanded.
    """
    if residency != Residency() and not module(artifact.format).HAS_RESIDENCY:
        raise no_residency(residency.mode)


def check_threads(artifact: Artifact, threads: int | None) -> None:
    """Checks that a package runs with a number of threads. Raises UsageError."""
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"threads must be a positive number, got {threads}")
    if not module(artifact.format).HAS_THREADS:
        what = f"{module(artifact.format).NAME} takes no number of threads"
        raise UsageError(what, hint=f"choose --backend {NATIVE}, or leave --threads away")


def no_residency(mode: residencies.Mode) -> UsageError:
    """Error of a residency `mode` for a package that has no coded weights when it runs."""
    what = f"an ML Program has no coded weights when it runs, so there is no residency {mode}"
    return UsageError(what, hint="choose another --backend, or leave --residency away")

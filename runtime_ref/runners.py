"""Runners of the package formats, each in a module that is imported when it is needed.

A format is one module, named in MODULES and nowhere else: what is known of a format when it runs
(how it is opened, which libraries it needs, what it takes in memory) stands there.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Protocol, cast

from exporter.bundle import Artifact, Bundle
from exporter.errors import UsageError
from exporter.progress import Progress
from runtime_ref import residency as residencies
from runtime_ref.generate import Runner
from runtime_ref.memory import ModelShape, RuntimeMemory
from runtime_ref.residency import Residency

MODULES = {
    "pte": "runtime_ref.executorch.runner",
    "custom-op": "runtime_ref.coreml.custom_op_runner",
    "mlprogram": "runtime_ref.coreml.mlprogram_runner",
}


class RunnerModule(Protocol):
    """Interface of a module in MODULES.

    NAME: how its runner is called in reports. HAS_RESIDENCY: whether its products read coded
    weights, which can be streamed or expanded. SPEED_IS_REAL: whether it is the runtime that ships,
    so that a device's speed can be projected from its own; an interpreter's says nothing.
    """

    NAME: str
    HAS_RESIDENCY: bool
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

    def open(self, bundle: Bundle, artifact: Artifact, progress: Progress) -> Runner:
        """Runner of a loaded package.

        Raises BundleError, MissingComponentError, OutOfSpaceError.
        """

    def memory(self, artifact: Artifact, shape: ModelShape) -> RuntimeMemory:
        """Predicted memory of the runtime itself, in bytes, without the weights."""


def module(package_format: str) -> RunnerModule:
    """Runner module of a package format, a key of MODULES."""
    return cast(RunnerModule, importlib.import_module(MODULES[package_format]))


def open_runner(
    bundle: Bundle, artifact: Artifact, residency: Residency, progress: Progress
) -> Runner:
    """Runner of a loaded package with its weights where they are wanted.

    The residency is that of all packages of its kind in this process, until set anew. Raises
    UsageError for a residency the format does not know; BundleError, MissingComponentError,
    OutOfSpaceError.
    """
    check_residency(artifact, residency)
    runner = module(artifact.format)
    if core := runner.core():
        residencies.apply(core, residency, residencies.coded_tensors(bundle, artifact.format))
    return runner.open(bundle, artifact, progress)


def check_residency(artifact: Artifact, residency: Residency) -> None:
    """Checks that a package knows a residency.

    Raises UsageError for a package without coded weights: nothing of it can be expanded.
    """
    if residency != Residency() and not module(artifact.format).HAS_RESIDENCY:
        raise no_residency(residency.mode)


def no_residency(mode: residencies.Mode) -> UsageError:
    """Error of a residency `mode` for a package that has no coded weights when it runs."""
    what = f"an ML Program has no coded weights when it runs, so there is no residency {mode}"
    return UsageError(what, hint="choose another --backend, or leave --residency away")

"""Opens a package of a bundle in its runtime, with its weights where they are wanted."""

from __future__ import annotations

import ctypes

from exporter.bundle import Artifact, Bundle
from exporter.errors import UsageError
from exporter.progress import Progress
from runtime_ref import residency as residencies
from runtime_ref.generate import Runner
from runtime_ref.residency import Residency


def open_runner(
    bundle: Bundle, artifact: Artifact, residency: Residency, progress: Progress
) -> Runner:
    """A loaded package. The residency is that of all packages of its kind in this process, until
    set anew.

    Raises UsageError for a residency the format does not know; BundleError, MissingComponentError,
    OutOfSpaceError.
    """
    check_residency(artifact, residency)
    if core := core_of(artifact):
        residencies.apply(core, residency, residencies.coded_tensors(bundle, artifact.format))
    if artifact.format == "pte":
        from runtime_ref.executorch.runner import ExecuTorchRunner

        return ExecuTorchRunner(bundle)
    from runtime_ref.coreml.runner import CustomOpRunner, MLProgramRunner

    if artifact.format == "custom-op":
        return CustomOpRunner(bundle, artifact)
    return MLProgramRunner(
        bundle, artifact, lambda done, total: progress("expand the weights", done, total)
    )


def core_of(artifact: Artifact) -> ctypes.CDLL | None:
    """The library whose products the package uses, with a residency manager of its own; None for an
    ML Program."""
    if artifact.format == "mlprogram":
        return None
    if artifact.format == "custom-op":
        from exporter.codec import native

        return native.library()
    from runtime_ref.executorch import kernels

    return kernels.load()


def check_residency(artifact: Artifact, residency: Residency) -> None:
    """Raises UsageError for an ML Program: its weights are expanded at install, and Core ML places
    them."""
    if artifact.format == "mlprogram" and residency != Residency():
        what = (
            "an ML Program has no coded weights when it runs, so there is no residency "
            f"{residency.mode}"
        )
        raise UsageError(what, do="choose another --backend, or leave --residency away")

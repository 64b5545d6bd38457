"""The ML Program of a bundle as Core ML itself runs it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from exporter.bundle import COREML_REAL, Artifact, Manifest
from exporter.errors import UsageError

SOURCE = "mlprogram"


@dataclass(frozen=True)
class RealPackage(Artifact):
    """An ML Program that is run by Core ML, and not by the interpreter."""

    @property
    def backend(self) -> str:
        """Name of the backend, which has this one format."""
        return COREML_REAL


def real_package(manifest: Manifest) -> RealPackage:
    """The package that Core ML runs. Raises UsageError for a bundle without an ML Program.

    A network with custom layers needs an app that has them.
    """
    for artifact in manifest.artifacts:
        if artifact.format == SOURCE:
            kept = {f.name: getattr(artifact, f.name) for f in fields(artifact)}
            return RealPackage(**kept | {"format": COREML_REAL})
    there = ", ".join(a.format for a in manifest.artifacts)
    what = f"{COREML_REAL} needs an {SOURCE}: the bundle has {there}"
    raise UsageError(what, hint="export it with --target ios")

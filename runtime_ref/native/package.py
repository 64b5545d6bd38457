"""The `.pte` package of a bundle as a session of the core reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from exporter.bundle import NATIVE, Artifact, Manifest, Network
from exporter.errors import UsageError

SOURCE = "pte"  # whose matrices and vectors a session reads
ARITHMETIC = "int16"  # of the products of a session


@dataclass(frozen=True)
class NativePackage(Artifact):
    """The weights of a `.pte` without its program, with the sizes of the network."""

    network: Network

    @property
    def backend(self) -> str:
        """Name of the backend, which has this one format."""
        return NATIVE


def find(manifest: Manifest) -> Artifact | None:
    """The `.pte` of a bundle, if a session computes as it does."""
    there = (a for a in manifest.artifacts if a.format == SOURCE)
    return next((a for a in there if a.activations == ARITHMETIC), None)


def native_package(manifest: Manifest) -> NativePackage:
    """The package that a session runs.

    Raises UsageError for a bundle without a `.pte`, or with one of another arithmetic.
    """
    source = find(manifest)
    if source is None:
        there = ", ".join(f"{a.format} ({a.activations})" for a in manifest.artifacts)
        what = f"{NATIVE} needs a {SOURCE} with {ARITHMETIC} activations: the bundle has {there}"
        hint = "choose another --backend, or export with --target android --activations int16"
        raise UsageError(what, hint=hint)
    own = {
        "format": NATIVE,
        "operators": {},
        "details": {},
    }
    kept = {f.name: getattr(source, f.name) for f in fields(source)}
    return NativePackage(**kept | own, network=manifest.network)

"""Which bundles have a shape that peers know, and how files of that shape are called."""

from __future__ import annotations

from exporter.bundle import Manifest
from exporter.bundle.entries import Network
from exporter.errors import UsageError


def check_family(manifest: Manifest) -> None:
    """Checks that a network is one that every peer knows. Raises UsageError."""
    family = manifest.model.config["model_type"]
    if family != "llama":
        what = f"{manifest.model.name} is of the family {family}"
        raise UsageError(what, hint="measure a bundle of the family llama beside peers")


def file_stem(network: Network) -> str:
    """The sizes of a network as the beginning of a file's name."""
    n = network
    return f"{n.layers}x{n.hidden}x{n.inner}-{n.heads}-{n.kv_heads}x{n.head_dim}-{n.vocab}"

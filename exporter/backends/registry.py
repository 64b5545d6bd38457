"""The package formats by name.

A format's module is imported when it is used.

Adding one: its module, with the members of `package.PackageFormat`, and its lines here, in
`exporter.bundle.BACKENDS` and in `runtime_ref.runners`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from exporter.bundle import BACKENDS
from exporter.errors import UsageError, require

if TYPE_CHECKING:
    from exporter.backends.package import Emitted, PackageFormat, PackageInput
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig
    from exporter.progress import Progress

MODULES = {
    "pte": "exporter.backends.executorch.package",
    "mlprogram": "exporter.backends.coreml.mlprogram",
    "custom-op": "exporter.backends.coreml.custom_op",
}
FORMATS = tuple(MODULES)
GET_TOOLS = "run `tinyqmoe doctor`; coremltools is for macOS and for Linux on x86-64 only"
TARGETS = {"android": ("executorch",), "ios": ("coreml",)}  # the backends that suit a platform

BOTH = "both"  # of the targets, and of the Core ML formats


def formats_of(target: str, coreml_format: str) -> tuple[str, ...]:
    """The package formats for a target; of several Core ML ones those that are asked for."""
    backends = [b for name, bs in TARGETS.items() if target in (name, BOTH) for b in bs]
    return tuple(
        name
        for name, backend in BACKENDS.items()
        if backend in backends and (backend != "coreml" or coreml_format in (name, BOTH))
    )


def load(name: str) -> PackageFormat:
    """The module of a format."""
    return cast("PackageFormat", importlib.import_module(MODULES[name]))


def emit(name: str, source: PackageInput, progress: Progress) -> Emitted:
    """Writes one package into the bundle.

    Raises ExportError if it is not what was asked for.
    """
    return load(name).emit(source, progress)


def check(config: ExportConfig, checkpoint: Checkpoint) -> None:
    """Refuses, before any work, what a format cannot hold, and formats whose tool is missing.

    Raises UsageError, MissingComponentError.
    """
    require([load(name).TOOL for name in config.formats], "this export", GET_TOOLS)
    family = str(checkpoint.config_dict["model_type"])
    reasons = {name: load(name).supports(family) for name in config.formats}
    if problems := [f"{name}: {reason}" for name, reason in reasons.items() if reason]:
        what = f"models of the family {family} cannot be packed as asked"
        raise UsageError(what, problems=problems, hint="choose another --target")
    for name in config.formats:
        load(name).check(config, checkpoint)


def tools(formats: Sequence[str]) -> list[str]:
    """Names of the distributions whose versions go into the manifest."""
    return ["tiny-qmoe", "torch", *sorted({load(name).TOOL for name in formats})]

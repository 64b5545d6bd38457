"""Model families, one file each, named as the `model_type` of a Hugging Face config.

Adding a family is adding a file with `read_config`, `tensor_shapes` and `Model`; nothing is
registered anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from exporter.errors import CheckpointError

SHARED = ("config", "layers", "rope")  # files here that are no family


def supported() -> list[str]:
    """The `model_type`s that have a file here, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def load(model_type: object) -> ModuleType:
    """The module of a family.

    Raises CheckpointError, naming the supported ones, for any other `model_type`.
    """
    names = supported()
    if model_type not in names:
        raise CheckpointError(
            f"config.json says model_type {model_type!r}, which is not supported",
            hint=f"use a checkpoint of one of: {', '.join(names)}",
        )
    return importlib.import_module(f"{__name__}.{model_type}")

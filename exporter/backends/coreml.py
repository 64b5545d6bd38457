"""What the two Core ML formats share: the `.mlpackage` folder around a model, and the metadata Xcode shows."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exporter.models.llama import LlamaConfig, rope_frequencies

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Metadata

DATA = "Data/com.apple.CoreML"
MODEL_FILE = f"{DATA}/model.mlmodel"
WEIGHTS_DIR = f"{DATA}/weights"
AUTHOR = "com.apple.CoreML"  # of the items of a package, as coremltools writes it


def write_package_manifest(package: Path, *, weights: bool) -> None:
    """Writes `Manifest.json` of an `.mlpackage`, which lists the model and, if there are any, the weights.

    coremltools draws random identifiers; ours follow from the names, so that equal exports are equal bytes.
    """
    items = {"model.mlmodel": "CoreML Model Specification"} | ({"weights": "CoreML Model Weights"} if weights else {})
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, name)).upper() for name in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {"author": AUTHOR, "description": what, "name": name, "path": f"{AUTHOR}/{name}"}
            for name, what in items.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


def fill_metadata(metadata: Metadata, values: dict[str, str]) -> None:
    """Fills the fields Xcode shows by name (author, license, versionString, shortDescription); the rest as a table."""
    for key, value in values.items():
        if key in ("author", "license", "versionString", "shortDescription"):
            setattr(metadata, key, value)
        else:
            metadata.userDefined[key] = value


def rope_tables(model: LlamaConfig, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and pair, float32 [C, D/2].

    The angle is a float32 product, as in transformers and in our reference; from there on it is exact.
    """
    angles = (torch.arange(context, dtype=torch.float32)[:, None] * rope_frequencies(model)).double()
    return angles.cos().float(), angles.sin().float()

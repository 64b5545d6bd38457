"""What the two Core ML formats share: the `.mlpackage` folder around a model, and the metadata
Xcode shows."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exporter.models.config import ModelConfig, rope_frequencies

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Metadata, Model

DATA = "Data/com.apple.CoreML"
MODEL_FILE = f"{DATA}/model.mlmodel"
WEIGHTS_DIR = f"{DATA}/weights"
AUTHOR = "com.apple.CoreML"  # of the items of a package, as coremltools writes it
# Xcode maps these; it has a table for the rest.
SHOWN_BY_NAME = ("author", "license", "versionString", "shortDescription")


def write_package_manifest(package: Path, *, weights: bool) -> None:
    """Writes `Manifest.json` of an `.mlpackage`, which lists the model and, if there are any, the
    weights.

    coremltools draws random identifiers; ours follow from the names, so that equal exports are
    equal bytes.
    """
    items = {"model.mlmodel": "CoreML Model Specification"} | (
        {"weights": "CoreML Model Weights"} if weights else {}
    )
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, name)).upper() for name in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {
                "author": AUTHOR,
                "description": what,
                "name": name,
                "path": f"{AUTHOR}/{name}",
            }
            for name, what in items.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


def fill_metadata(metadata: Metadata, values: dict[str, str]) -> None:
    """Fills the fields Xcode shows by name; the rest as a table."""
    for key, value in values.items():
        if key in SHOWN_BY_NAME:
            setattr(metadata, key, value)
        else:
            metadata.userDefined[key] = value


def declared(description: Any) -> dict[str, str]:
    """What a model, or one function of it, declares: such as "input positions": "int32
    [1..512]"."""
    return {
        f"{kind} {feature.name}": array_text(feature.type)
        for kind in ("input", "output", "state")
        for feature in getattr(description, kind)
    }


def array_text(feature_type: Any) -> str:
    """The array of an input, output or state, such as "int32 [1..512]"; a size that may vary as its
    limits."""
    is_state = feature_type.WhichOneof("Type") == "stateType"
    array = feature_type.stateType.arrayType if is_state else feature_type.multiArrayType
    ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges] or [
        (n, n) for n in array.shape
    ]
    sizes = [str(low) if low == high else f"{low}..{high}" for low, high in ranges]
    return f"{array.ArrayDataType.Name(array.dataType).lower()} [{', '.join(sizes)}]"


def description_problems(spec: Model, version: int, metadata: dict[str, str]) -> list[str]:
    """Where specification version or metadata are not what was asked for. The version sets the
    oldest iOS."""
    written = spec.description.metadata
    found = {key: getattr(written, key) for key in SHOWN_BY_NAME} | dict(written.userDefined)
    problems = differences("metadata ", found, dict.fromkeys(SHOWN_BY_NAME, "") | metadata)
    if spec.specificationVersion != version:
        problems.append(f"specification version is {spec.specificationVersion}, expected {version}")
    return problems


def differences(what: str, found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """One text for each name whose values differ."""
    return [
        f"{what}{name} is {found.get(name, 'absent')}, expected {expected.get(name, 'none')}"
        for name in expected | found
        if found.get(name) != expected.get(name)
    ]


def rope_tables(model: ModelConfig, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and pair, float32 [C, D/2].

    The angle is a float32 product, as in transformers and in our reference; from there on it is
    exact.
    """
    angles = (
        torch.arange(context, dtype=torch.float32)[:, None] * rope_frequencies(model)
    ).double()
    return angles.cos().float(), angles.sin().float()

"""The quantized model of a bundle in PyTorch, read from the package that holds its matrices.

It computes in the arithmetic that the package ships with, by the code that gave the bundle its
reference answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from exporter import models
from exporter.bundle import HEAD, Artifact, Bundle, Location, TensorEntry
from exporter.checkpoint.names import untied
from exporter.codec.scale_types import ScaleType
from exporter.codec.scales import STORED_AS, StoredScales
from exporter.errors import UsageError
from exporter.evaluation.language_model import ModelFacts
from exporter.evaluation.network import NetworkModel, PackedQuantizedLayers


@dataclass(frozen=True)
class PlacedMatrix:
    """A coded matrix inside a file of a package."""

    file: Path
    place: Location
    rows: int
    cols: int
    group_size: int
    scale_type: ScaleType

    def blob(self) -> NDArray[np.uint8]:
        """TQLZ blob, uint8 [blob_bytes], memory-mapped."""
        place = self.place
        return np.memmap(self.file, np.uint8, "r", place.offset, (place.n_bytes,))

    def scales(self) -> StoredScales:
        """Scales as they are stored, [rows, n_groups], memory-mapped."""
        dtype, shape = STORED_AS[self.scale_type], (self.rows, -(-self.cols // self.group_size))
        return np.memmap(self.file, dtype, "r", self.place.scales_offset, shape)


@dataclass(frozen=True)
class PlacedModel:
    """The matrices of a package, and its vectors in float32."""

    matrices: dict[str, PlacedMatrix]
    vectors: dict[str, torch.Tensor]


def quantized(bundle: Bundle, facts: ModelFacts) -> NetworkModel:
    """The quantized model of a bundle. Raises UsageError without a package that holds all of it."""
    artifact = _readable(bundle)
    raw = bundle.manifest.model.config
    family = models.load(raw["model_type"])
    config = family.read_config(raw)
    if HEAD in artifact.places:
        config = untied(config)
    layers = PackedQuantizedLayers(_placed(bundle, artifact), artifact.arithmetic)
    network = family.Model(config, facts.context, layers)
    return NetworkModel(network, layers, facts)


def _readable(bundle: Bundle) -> Artifact:
    """The package whose matrices and vectors lie where they can be read."""
    for artifact in bundle.manifest.artifacts:
        if artifact.vectors:
            return artifact
    there = ", ".join(a.format for a in bundle.manifest.artifacts)
    what = f"the quantized model is read from a pte, and {bundle.path} has {there}"
    raise UsageError(what, hint="choose another --backend, or export with --target both")


def _placed(bundle: Bundle, artifact: Artifact) -> PlacedModel:
    def matrix(entry: TensorEntry) -> PlacedMatrix:
        place = artifact.places[entry.name]
        file = bundle.file(place.file)
        scale_type = cast(ScaleType, entry.scale_type)
        return PlacedMatrix(file, place, entry.rows, entry.cols, entry.group_size, scale_type)

    vectors = {
        name: torch.from_numpy(np.fromfile(bundle.file(v.file), np.float32, v.n, offset=v.offset))
        for name, v in artifact.vectors.items()
    }
    return PlacedModel({t.name: matrix(t) for t in bundle.manifest.tensors}, vectors)

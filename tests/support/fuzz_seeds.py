"""Good inputs of fuzz targets, written anew by `python -m tests.support.fuzz_seeds`.

tests/fuzz/bundle has what a session reads, and nothing else: weights in every codec, scales of
every type. Its manifests differ in what is optional. tests/fuzz/good/encode has an input for each
codec.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.bundle import HEAD, NETWORK_VERSION, Network
from exporter.bundle.network_shapes import matrix_shapes, optional_vector_sizes, vector_sizes
from exporter.codec import scales
from exporter.codec.encoder import Codec, encode
from exporter.codec.growth import grow, with_codewords
from tests.support.golden.numbers import draw_levels
from tests.support.golden.slow_encoder import count_entries
from tests.support.paths import ROOT

CORPUS = ROOT / "tests" / "fuzz"
BUNDLE, ENCODE = CORPUS / "bundle", CORPUS / "good" / "encode"
WEIGHTS = "weights.bin"
NETWORK = Network(NETWORK_VERSION, 8, 12, 1, 2, 1, 4, 10, 64, 1e-6)
GROUP = 8  # two groups in a row of 12
# Codec, type of scales, and the alphabet of levels: its lowest and their number.
CODED: tuple[tuple[Codec, str, tuple[int, int]], ...] = (
    ("raw", "ue6m10", (-127, 255)),
    ("lzw", "float32", (-8, 17)),
    ("base3", "ue6m10", (-1, 3)),
)


class Weights:
    """The bytes of a file that grows: what lies in it begins on multiples of 64."""

    def __init__(self) -> None:
        self.content = bytearray()

    def add(self, data: bytes) -> int:
        """Appends bytes; returns where they begin."""
        self.content += bytes(-len(self.content) % 64)
        self.content += data
        return len(self.content) - len(data)

    def vector(self, n: int) -> dict[str, Any]:
        """The place of a new vector of `n` values."""
        values = np.linspace(0.5, 1.5, n, dtype="<f4")
        return {"file": WEIGHTS, "offset": self.add(values.tobytes()), "n": n}

    def matrix(self, shape: tuple[int, int], kind: int) -> tuple[dict[str, Any], str]:
        """The place of a new matrix that is coded as `CODED` says, and the type of its scales."""
        codec, scale_type, alphabet = CODED[kind]
        levels = draw_levels(kind, shape, *alphabet, "bell")
        values: npt.NDArray[np.float32] = np.full(
            (shape[0], -(-shape[1] // GROUP)), 1 / 64, dtype=np.float32
        )
        kept = scales.stored(values) if scale_type == "ue6m10" else values
        blob = encode(levels, *alphabet, codec).blob.tobytes()
        place = {
            "file": WEIGHTS,
            "form": "tqlz",
            "scales_offset": self.add(kept.tobytes()),
            "offset": self.add(blob),
            "n_bytes": len(blob),
        }
        return place, scale_type


def write_bundle(folder: Path) -> None:
    """Writes the weights, and two manifests of them, into an empty folder.

    That of optional.json has a head of its own, biases, norms of queries and keys, and an int8
    cache.
    """
    weights, kinds = Weights(), cycle(range(len(CODED)))
    optional = {HEAD, *optional_vector_sizes(NETWORK)}
    matrices = {
        n: weights.matrix(shape, next(kinds)) for n, shape in matrix_shapes(NETWORK).items()
    }
    sizes = vector_sizes(NETWORK) | optional_vector_sizes(NETWORK)
    vectors = {name: weights.vector(n) for name, n in sizes.items()}
    (folder / WEIGHTS).write_bytes(weights.content)
    for name, left_out, kv_type in (
        ("manifest.json", optional, "float16"),
        ("optional.json", set[str](), "int8"),
    ):
        content = _manifest(
            {n: matrix for n, matrix in matrices.items() if n not in left_out},
            {n: place for n, place in vectors.items() if n not in left_out},
            kv_type,
            bytes(weights.content),
        )
        (folder / name).write_text(json.dumps(content, separators=(",", ":")))


def _manifest(
    matrices: dict[str, tuple[dict[str, Any], str]],
    vectors: dict[str, dict[str, Any]],
    kv_type: str,
    weights: bytes,
) -> dict[str, Any]:
    """The content of a manifest; matrices are places with types of scales, by name."""
    artifact = {
        "format": "pte",
        "path": WEIGHTS,
        "files": [WEIGHTS],
        "activations": "int16",
        "kv_type": kv_type,
        "kv_cache_bytes": 0,
        "places": {name: place for name, (place, _) in matrices.items()},
        "vectors": vectors,
    }
    tensors = [
        {"name": name, "group_size": GROUP, "scale_type": scale_type}
        for name, (_, scale_type) in matrices.items()
    ]
    digest = hashlib.sha256(weights).hexdigest()
    files = [{"path": WEIGHTS, "n_bytes": len(weights), "sha256": digest}]
    network = asdict(NETWORK)
    return {"network": network, "tensors": tensors, "artifacts": [artifact], "files": files}


def write_encode(folder: Path) -> None:
    """Writes inputs of the target "encode" into an empty folder: parameters, then levels.

    What the bytes mean is in exporter/native/fuzz/fuzz_encode.cc.
    """
    low, n_levels, shape = -2, 5, (33, 21)
    levels = draw_levels(1, shape, low, n_levels, "bell")
    counts = np.bincount((levels - low).ravel(), minlength=n_levels)
    tree = grow(counts, low, (0, n_levels), 3, 64).dictionary
    dictionary = with_codewords(tree, count_entries(levels, tree))
    section = dictionary.to_bytes()
    of_lzw = (*shape, n_levels - 1, dictionary.n_entries - 1, 0, len(section), *section)
    values = bytes((levels - low).ravel().astype(np.uint8))
    (folder / "lzw").write_bytes(bytes((1, 0, 3, low % 256, n_levels - 1, *of_lzw)) + values)
    (folder / "raw").write_bytes(bytes((0, 8, 0, 128, 255, *shape, 255, 0, 0, 0)) + values)
    (folder / "base3").write_bytes(bytes((2, 0, 0, 255, 2, *shape, 2, 0, 0, 0)) + values)


def main() -> None:
    for folder, write in ((BUNDLE, write_bundle), (ENCODE, write_encode)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)


if __name__ == "__main__":
    main()

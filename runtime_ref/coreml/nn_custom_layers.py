"""Custom layers of our networks: LZWLinear and LZWEmbedding, computed by the C++ core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.codec.native_tensor import NativeTensor
from exporter.codec.scale_types import SCALE_BYTES
from exporter.codec.scales import STORED_AS, StoredScales, type_of
from runtime_ref.coreml.nn_layer import UnsupportedLayerError, whole_numbers
from runtime_ref.coreml.nn_wire_format import WEIGHT_FLOATS, WEIGHT_RAW, WeightFields

if TYPE_CHECKING:
    from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer


LINEAR, EMBEDDING = "LZWLinear", "LZWEmbedding"


CONTRACT_VERSION = 3  # of the custom layers, see exporter/backends/coreml/custom_op.py


THREADS = 2


_PARAMETERS = {
    "version": "intValue",
    "rows": "intValue",
    "cols": "intValue",
    "group_size": "intValue",
    "name": "stringValue",
    "scale_type": "stringValue",
}


_LINEAR_PARAMETERS = {"int16_activations": "boolValue"}


_SHARED_PARAMETERS = {"weights_of": "stringValue"}


_FILE_PARAMETERS = {
    "file": "stringValue",
    "blob_offset": "longValue",
    "blob_bytes": "longValue",
    "scales_offset": "longValue",
    "scales_bytes": "longValue",
}


def mapped(path: Path) -> NDArray[np.uint8]:
    """Bytes of a file, uint8 [n_bytes], memory-mapped. Raises OSError; ValueError if empty."""
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def _side_bytes(side_dir: Path, name: str, offset: int, n_bytes: int) -> NDArray[np.uint8]:
    """Part of a file beside the package, uint8 [n_bytes], memory-mapped.

    Raises UnsupportedLayerError for a place outside the bundle or the file.
    """
    relative, path = PurePosixPath(name), side_dir / name
    outside = (
        relative.is_absolute()
        or ".." in relative.parts
        or "\\" in name
        or "\0" in name
        or not relative.parts
    )
    if outside or not Path(realpath(path)).is_relative_to(realpath(side_dir)):
        raise UnsupportedLayerError(f"its weights are in {name!r}, which points outside the bundle")
    if not path.is_file():
        raise UnsupportedLayerError(f"its weights are in {name}, which is absent")
    n_file = path.stat().st_size
    if offset < 0 or n_bytes <= 0 or offset + n_bytes > n_file:
        raise UnsupportedLayerError(
            f"its weights are {n_bytes:,} bytes at {offset:,} of {name}, which has {n_file:,}"
        )
    return mapped(path)[offset : offset + n_bytes]


def _parameters(layer: NeuralNetworkLayer) -> dict[str, Any]:
    """Parameters of a custom layer by name.

    Raises UnsupportedLayerError unless they are those of its class.
    """
    if layer.custom.className not in (LINEAR, EMBEDDING):
        raise UnsupportedLayerError(
            f"this class of custom layer is not known here, only {LINEAR} and {EMBEDDING}"
        )
    given = {name: value.WhichOneof("value") for name, value in layer.custom.parameters.items()}
    expected = _PARAMETERS | (_LINEAR_PARAMETERS if layer.custom.className == LINEAR else {})
    for more in (_SHARED_PARAMETERS, _FILE_PARAMETERS):
        expected |= more if given.keys() & more.keys() else {}
    if wrong := sorted({name for name, _ in given.items() ^ expected.items()}):
        raise UnsupportedLayerError(
            f"parameters that are missing, unknown or of another type: {', '.join(wrong)}"
        )
    values = {name: getattr(layer.custom.parameters[name], kind) for name, kind in expected.items()}
    if values["version"] != CONTRACT_VERSION:
        raise UnsupportedLayerError(
            f"version is {values['version']}, this computes {CONTRACT_VERSION}"
        )
    if values["group_size"] < 1:
        raise UnsupportedLayerError(f"group_size is {values['group_size']}")
    if values["scale_type"] not in SCALE_BYTES:
        raise UnsupportedLayerError(f"scale_type is {values['scale_type']!r}, which is unknown")
    return values


@dataclass(frozen=True)
class _Matrix:
    """Opened blob of a matrix, and its scales [rows, n_groups] as they are stored."""

    tensor: NativeTensor
    scales: StoredScales
    group_size: int

    @property
    def form(self) -> tuple[int, int, int, str]:
        """Rows, columns, group size, and type of the scales."""
        info = self.tensor.info
        return info.rows, info.cols, self.group_size, type_of(self.scales)

    def linear(self, x: NDArray[np.float32], int16_activations: bool) -> NDArray[np.float32]:
        """Product of x float32 [.., cols] and the matrix -> float32 [.., rows]."""
        multiply = self.tensor.linear_x16 if int16_activations else self.tensor.linear_f32
        y = multiply(x.reshape(-1, x.shape[-1]), self.scales, self.group_size, THREADS)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def embedding(self, ids: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of the matrix for ids, whole numbers [..] -> float32 [.., cols]."""
        return self.tensor.embedding(whole_numbers(ids), self.scales, self.group_size)


@dataclass(frozen=True)
class CustomLayer:
    """Matrix of a custom layer, and for a product whether it quantizes activations."""

    matrix: _Matrix
    int16_activations: bool


class CustomLayers:
    """Custom layers of a network, opened in its order."""

    def __init__(self, side_dir: Path) -> None:
        self._side_dir = side_dir
        self._matrices: dict[str, _Matrix] = {}

    def open(self, layer: NeuralNetworkLayer, fields: Sequence[WeightFields]) -> CustomLayer:
        """Custom layer that is opened and checked.

        Raises UnsupportedLayerError if it contradicts itself or our contract, CodecError if its
        blob is damaged.
        """
        parameters = _parameters(layer)
        if "weights_of" in parameters:
            matrix = self._shared(parameters["weights_of"], fields)
        else:
            matrix = self._matrices[layer.name] = self._own(parameters, fields)
        stated = tuple(parameters[name] for name in ("rows", "cols", "group_size", "scale_type"))
        if matrix.form != stated:
            what = (
                "its blob has {} rows and {} columns, groups of {}, scales in {}, its parameters "
                "say {}, {}, {} and {}"
            )
            raise UnsupportedLayerError(what.format(*matrix.form, *stated))
        return CustomLayer(matrix, parameters.get("int16_activations", False))

    def _shared(self, name: str, fields: Sequence[WeightFields]) -> _Matrix:
        if fields:
            raise UnsupportedLayerError(f"it has weights of its own and uses those of {name!r}")
        if name not in self._matrices:
            raise UnsupportedLayerError(
                f"it uses the weights of {name!r}, but no layer before it of that name has any"
            )
        return self._matrices[name]

    def _own(self, parameters: dict[str, Any], fields: Sequence[WeightFields]) -> _Matrix:
        blob, scales = (
            self._from_file(parameters, fields)
            if "file" in parameters
            else _from_model(parameters, fields)
        )
        tensor = NativeTensor(blob, verify=True)
        group_size = parameters["group_size"]
        scale_type, n_groups = parameters["scale_type"], -(-tensor.info.cols // group_size)
        for what, data, expected in (
            ("blob", blob, tensor.info.total_bytes),
            ("scales", scales, SCALE_BYTES[scale_type] * tensor.info.rows * n_groups),
        ):
            if data.size != expected:
                raise UnsupportedLayerError(
                    f"its {what} has {data.size:,} bytes, expected {expected:,}"
                )
        typed: StoredScales = scales.view(STORED_AS[scale_type]).reshape(-1, n_groups)
        return _Matrix(tensor, typed, group_size)

    def _from_file(
        self, parameters: dict[str, Any], fields: Sequence[WeightFields]
    ) -> list[NDArray[np.uint8]]:
        if fields:
            raise UnsupportedLayerError(
                f"it has weights of its own and others in {parameters['file']!r}"
            )
        places = [
            (parameters[f"{kind}_offset"], parameters[f"{kind}_bytes"])
            for kind in ("blob", "scales")
        ]
        return [_side_bytes(self._side_dir, parameters["file"], *place) for place in places]


def _from_model(
    parameters: dict[str, Any], fields: Sequence[WeightFields]
) -> list[NDArray[np.uint8]]:
    """Blob and scales of a layer that has them itself. Raises UnsupportedLayerError."""
    scales = WEIGHT_FLOATS if parameters["scale_type"] == "float32" else WEIGHT_RAW
    kinds, expected = [sorted(one) for one in fields], [[WEIGHT_RAW], [scales]]
    if kinds != expected:
        raise UnsupportedLayerError(
            f"its weights are in the fields {kinds} of WeightParams, expected {expected}"
        )
    return [fields[0][WEIGHT_RAW], fields[1][scales]]

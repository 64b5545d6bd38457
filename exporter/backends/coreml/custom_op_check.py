"""Checks of a package with custom layers: whether what was written is what was asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from exporter.backends.coreml import mlpackage, protobuf_stream
from exporter.backends.coreml.custom_op_graph import (
    EMBEDDING_CLASS,
    LINEAR_CLASS,
    CustomOpConfig,
)
from exporter.bundle import Location
from exporter.encoded import EncodedMatrix, EncodedModel
from exporter.errors import ExportError
from exporter.models.config import ModelConfig
from exporter.quiet import quiet

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model
    from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer

SPECIFICATION_VERSION = 4  # iOS 13: tensors of any rank and all layers used here
PROTOBUF_LIMIT_BYTES = (1 << 31) - (64 << 20)  # a protobuf message ends at 2 GiB; with a margin
ENDS_BYTES = 64  # of each end of blob and scales that are compared
DENSE_LAYERS = ("innerProduct", "convolution", "embedding", "embeddingND")

# Field numbers of Model.proto and NeuralNetwork.proto, down to the weights of a layer.
MODEL_NETWORK, NETWORK_LAYERS, LAYER_CUSTOM, CUSTOM_WEIGHTS = 500, 1, 500, 20
PATH_TO_WEIGHTS = (MODEL_NETWORK, NETWORK_LAYERS, LAYER_CUSTOM, CUSTOM_WEIGHTS)


@dataclass(frozen=True)
class EmittedCustomOp:
    """A package that was written.

    Places and files are relative to the folder of the package. `layers` counts layer types, custom
    layers by their class; `inputs` and `outputs` say dtype and sizes.
    """

    files: list[Path]
    places: dict[str, Location]
    layers: dict[str, int]
    constants_bytes: int  # of norms, rope tables and scalars
    specification_version: int
    inputs: dict[str, str]
    outputs: dict[str, str]


def census(layers: Sequence[NeuralNetworkLayer]) -> dict[str, int]:
    """Number of layers of each type; custom layers are counted by their class."""
    counts = Counter(
        layer.custom.className or layer.WhichOneof("layer") or "no type" for layer in layers
    )
    return dict(sorted(counts.items()))


def check_package(
    emitted: EmittedCustomOp,
    encoded: EncodedModel,
    model: ModelConfig,
    config: CustomOpConfig,
    package: Path,
    metadata: dict[str, str],
) -> None:
    """Reads back what was written and checks it.

    Raises ExportError with all that is wrong. What must hold:

    - coremltools parses the model, and it is small enough for a protobuf (see `_reload`);
    - version, metadata, inputs and outputs are those of the contract (see custom_op.py);
    - its layers are those that were written, products as many as the model asks, none of them
      dense;
    - every value is made once and before it is used, and every output is made;
    - every matrix lies where its place says, by the bytes at both ends of blob and scales;
    - what is neither blobs, scales nor constants is small.
    """
    spec = _reload(package / mlpackage.MODEL_FILE)
    layers = spec.neuralNetwork.layers
    problems = mlpackage.description_problems(spec, SPECIFICATION_VERSION, metadata)
    problems += mlpackage.differences(
        "", mlpackage.declared(spec.description), _contract(model, config)
    )
    problems += (
        [] if census(layers) == emitted.layers else ["its layers are not those that were written"]
    )
    problems += _graph_problems(spec)
    n = model.num_hidden_layers
    expected = {
        LINEAR_CLASS: 7 * n + 1,
        EMBEDDING_CLASS: 1,
        "batchedMatmul": 4 * n,
    } | dict.fromkeys(DENSE_LAYERS, 0)
    for kind, count in expected.items():
        if emitted.layers.get(kind, 0) != count:
            problems.append(
                f"{kind} is there {emitted.layers.get(kind, 0)} times, expected {count}"
            )
    problems += [
        p
        for m in encoded.matrices.values()
        if (p := _misplaced(m, emitted.places.get(m.name), package))
    ]
    coded_bytes = sum(m.blob_bytes + m.scales_bytes for m in encoded.matrices.values())
    rest_bytes = (
        sum((package.parent / f).stat().st_size for f in emitted.files)
        - coded_bytes
        - emitted.constants_bytes
    )
    if rest_bytes > (64 << 10) + n * (64 << 10):
        problems.append(f"{rest_bytes:,} bytes are neither blobs, scales nor constants")
    if problems:
        what = f"{package.name} is not the package that was asked for"
        raise ExportError(what, problems=problems, hint="report this as a bug")


def _contract(model: ModelConfig, config: CustomOpConfig) -> dict[str, str]:
    """Inputs and outputs of the contract (see custom_op.py), as `mlpackage.declared` reads them."""
    row = f"{model.num_hidden_layers}, 2, {model.num_key_value_heads}, {model.head_dim}"
    tokens = f"1..{config.max_tokens}" if config.max_tokens > 1 else "1"
    return {
        "input input_ids": f"int32 [{tokens}]",
        "input positions": f"int32 [{tokens}]",
        "input kv_cache": f"float32 [{config.context}, {row}]",
        "output logits": f"float32 [{model.vocab_size}]",
        "output kv_new": f"float32 [{tokens}, {row}]",
    }


def _reload(model_file: Path) -> Model:
    """The model as coremltools parses it, with stand-ins for the weights of custom layers.

    Lengths around the stand-ins are new, so the file's own are checked on the way: every field down
    to the weights must end inside its message. What lies within the weights means nothing to a
    parser.
    """
    with quiet():
        from coremltools.proto.Model_pb2 import Model
    try:
        if (n := model_file.stat().st_size) > PROTOBUF_LIMIT_BYTES:
            raise ValueError(f"it has {n:,} bytes, the limit is {PROTOBUF_LIMIT_BYTES:,}")
        return Model.FromString(protobuf_stream.shortened(model_file, PATH_TO_WEIGHTS))
    except Exception as error:  # protobuf's own is no ValueError
        what = f"coremltools cannot read the model it was given: {error}"
        raise ExportError(what, hint="report this as a bug") from error


def _graph_problems(spec: Model) -> list[str]:
    """Problems that Core ML's own validator refuses a model for.

    They are values that nobody made or two layers made, and outputs that are absent.
    """
    made = {feature.name for feature in spec.description.input}
    problems = []
    for layer in spec.neuralNetwork.layers:
        problems += [
            f"{layer.name} takes {n}, which no layer before it makes"
            for n in layer.input
            if n not in made
        ]
        problems += [f"{layer.name} makes {n} again" for n in layer.output if n in made]
        made.update(layer.output)
        data = layer.loadConstantND
        if layer.WhichOneof("layer") == "loadConstantND" and math.prod(data.shape) != len(
            data.data.floatValue
        ):
            problems.append(
                f"{layer.name} has {len(data.data.floatValue)} values for {list(data.shape)}"
            )
    return problems + [
        f"no layer makes {f.name}" for f in spec.description.output if f.name not in made
    ]


def _misplaced(matrix: EncodedMatrix, place: Location | None, package: Path) -> str:
    """The problem of a matrix that does not lie where its place says, or an empty text.

    Both ends of blob and scales are compared with what lies in the package.
    """
    if place is None:
        return f"{matrix.name} is not in the package"
    with (package.parent / place.file).open("rb") as file:
        for offset, path in (
            (place.offset, matrix.blob_path),
            (place.scales_offset, matrix.scales_path),
        ):
            with path.open("rb") as source:
                if _ends(file, offset, path.stat().st_size) != _ends(
                    source, 0, path.stat().st_size
                ):
                    return f"{matrix.name} is not at byte {offset} of {place.file}"
    return ""


def _ends(file: BinaryIO, begin: int, n_bytes: int) -> bytes:
    """The first and the last bytes of a part of a file."""
    file.seek(begin)
    first = file.read(min(n_bytes, ENDS_BYTES))
    file.seek(begin + n_bytes - len(first))
    return first + file.read(len(first))

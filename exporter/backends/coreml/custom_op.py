"""Core ML packages with an operator of our own: a NeuralNetwork of custom layers over TQLZ blobs.

ML Programs take no custom operator on a device; NeuralNetworks do, by an `MLCustomLayer` class in
the app. The network is for the CPU (`MLModelConfiguration.computeUnits = .cpuOnly`): the Neural
Engine takes no custom layers, and the GPU keeps values in half precision, which holds token ids and
positions exactly up to 2048 only.

Letters in shapes: S tokens in a call, H query heads, KV key/value heads, G = H / KV, D head_dim, C
context (cache slots), L layers, V vocabulary.

Inputs: `input_ids` int32 [S]; `positions` int32 [S], which are p, p + 1, ..; `kv_cache` float32 [C,
L, 2, KV, D] with the keys (0) and values (1) of earlier tokens in slots below p. Slots from p on
are unused. Outputs: `logits` float32 [V] of the last token; `kv_new` float32 [S, L, 2, KV, D], for
slots p to p + S of the cache. Those are one piece of memory, so an app can let Core ML write there
(`MLPredictionOptions.outputBackings`). S is 1 to `max_tokens`, and p + S at most C: one network
reads the prompt and generates.

Custom layers, version 3 of their contract:
- `LZWLinear`: x [S, cols] -> x W^T [S, rows]. `LZWEmbedding`: ids [S] -> rows of W [S, cols].
- Weights: [0] `rawValue`, the TQLZ blob; [1] the scales [rows, ceil(cols / group_size)]:
  `floatValue`, or `rawValue` where they have 16 bits.
- Parameters: `version`, `rows`, `cols`, `group_size` (int), `name` (string, of the tensor in the
  checkpoint), `scale_type` (string, of exporter/codec/scale_types.py); for LZWLinear
  `int16_activations` (bool): whether activations are quantized per token as `tinyqmoe_linear_x16`
  does.
- A tied head has no weights but `weights_of` (string): the name of the layer before it that has
  them.
- Where a protobuf would be too large for all weights, no layer has any, but: `file` (string,
  relative to the folder of the package), `blob_offset`, `blob_bytes`, `scales_offset`,
  `scales_bytes` (long), for the same bytes in that file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.backends.coreml import mlpackage, protobuf_stream
from exporter.backends.coreml.custom_op_check import (
    CUSTOM_WEIGHTS,
    LAYER_CUSTOM,
    MODEL_NETWORK,
    NETWORK_LAYERS,
    PROTOBUF_LIMIT_BYTES,
    SPECIFICATION_VERSION,
    EmittedCustomOp,
    census,
    check_package,
)
from exporter.backends.coreml.custom_op_graph import (
    CustomOpConfig,
    NetworkBuilder,
)
from exporter.backends.coreml.protobuf_stream import Fragment
from exporter.backends.package import (
    Emitted,
    ExportMemory,
    Growth,
    PackageInput,
    PlannedModel,
    kv_cache_values,
    matrix_rows,
    metadata,
    rows_of,
)
from exporter.bundle import Artifact, Location
from exporter.encoded import EncodedMatrix, EncodedModel
from exporter.models.config import ModelConfig
from exporter.progress import Progress
from exporter.quiet import quiet

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model
    from coremltools.proto.NeuralNetwork_pb2 import CustomLayerParams, NeuralNetworkLayer

    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig

NAME, TOOL = "custom-op", "coremltools"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # whose networks the graph draws
MEMORY = ExportMemory("making the package with custom layers", Growth(295, 0.3), Growth(295, 0.3))
PACKAGE = "model-custom-op.mlpackage"
MAX_TOKENS = 128  # of the longest call: scores of attention are kept for so many
CALLS_A_LAYER, OTHER_CALLS = 76, 48  # of layers
REST = {".mlmodel": "custom layers: graph, package", ".json": "package", ".weights": "alignment"}
ALIGNMENT = 64  # of what lies in the side file
WEIGHT_FLOATS, WEIGHT_RAW = 1, 30  # field numbers of a layer's weights


def supports(family: str) -> str | None:
    """The reason why models of a family cannot be packed, or None."""
    if family in FAMILIES:
        return None
    return f"the graph is drawn by hand, and draws only {', '.join(FAMILIES)}"


def check(config: ExportConfig, checkpoint: Checkpoint) -> None:
    """Refuses nothing: the layers take any group size."""


def write(
    encoded: EncodedModel,
    model: ModelConfig,
    config: CustomOpConfig,
    package: Path,
    metadata: dict[str, str],
) -> EmittedCustomOp:
    """Writes the `.mlpackage` and checks what was written.

    Weights that a protobuf cannot hold lie in a file beside it. Weights are copied from file to
    file, and the check parses stand-ins of them: memory does not follow their size. Raises
    ExportError if it is not what it should be.
    """
    with quiet():
        layers = NetworkBuilder(encoded, model, config).layers
        spec = _interface(model, config)
    mlpackage.fill_metadata(spec.description.metadata, metadata)
    (package / mlpackage.DATA).mkdir(parents=True)
    mlpackage.write_package_manifest(package, weights=False)
    model_file = package / mlpackage.MODEL_FILE
    weights_file, offsets = _write(
        spec, layers, encoded, model_file, package.with_suffix(".weights")
    )
    files = dict.fromkeys([package / "Manifest.json", model_file, weights_file])
    emitted = EmittedCustomOp(
        files=[file.relative_to(package.parent) for file in files],
        places=_places(encoded, weights_file.relative_to(package.parent), offsets),
        layers=census(layers),
        constants_bytes=sum(4 * len(layer.loadConstantND.data.floatValue) for layer in layers),
        specification_version=spec.specificationVersion,
        inputs={
            feature.name: mlpackage.array_text(feature.type) for feature in spec.description.input
        },
        outputs={
            feature.name: mlpackage.array_text(feature.type) for feature in spec.description.output
        },
    )
    check_package(emitted, encoded, model, config, package, metadata)
    return emitted


def _interface(model: ModelConfig, config: CustomOpConfig) -> Model:
    """The model without its layers: version, inputs and outputs."""
    from coremltools.proto.Model_pb2 import Model
    from coremltools.proto.NeuralNetwork_pb2 import EXACT_ARRAY_MAPPING

    spec = Model(specificationVersion=SPECIFICATION_VERSION)
    spec.neuralNetwork.arrayInputShapeMapping = EXACT_ARRAY_MAPPING
    n = config.max_tokens
    kv = [model.num_hidden_layers, 2, model.num_key_value_heads, model.head_dim]
    inputs, outputs = spec.description.input, spec.description.output
    _add_feature(inputs, "input_ids", "INT32", [1], n, "token ids [S]")
    _add_feature(inputs, "positions", "INT32", [1], n, "their positions [S]: p, p + 1, ..")
    _add_feature(
        inputs,
        "kv_cache",
        "FLOAT32",
        [config.context, *kv],
        None,
        "[C, L, 2, KV, D], slots below p are used",
    )
    _add_feature(outputs, "logits", "FLOAT32", [model.vocab_size], None, "of the last token [V]")
    _add_feature(
        outputs,
        "kv_new",
        "FLOAT32",
        [1, *kv],
        n,
        "[S, L, 2, KV, D], for slots p to p + S of the cache",
    )
    return spec


def _add_feature(
    features: Any, name: str, dtype: str, shape: list[int], max_tokens: int | None, what: str
) -> None:
    """Adds an array to the inputs or outputs of a model.

    With `max_tokens` its first size is 1 to that many.
    """
    feature = features.add(name=name, shortDescription=what)
    array = feature.type.multiArrayType
    array.dataType = array.ArrayDataType.Value(dtype)
    array.shape.extend(shape)
    if max_tokens:
        for lower, upper in [(1, max_tokens), *((size, size) for size in shape[1:])]:
            array.shapeRange.sizeRanges.add(lowerBound=lower, upperBound=upper)


def _write(
    spec: Model,
    layers: Sequence[NeuralNetworkLayer],
    encoded: EncodedModel,
    model_file: Path,
    side_file: Path,
) -> tuple[Path, dict[Path, int]]:
    """Writes the model with the weights in it, or, if that is too large, beside it.

    Returns the file that has the weights and where each blob and each scale tensor lies in it.
    """
    fragments = _model_fragments(spec, layers, encoded.matrices)
    if protobuf_stream.length(fragments) <= PROTOBUF_LIMIT_BYTES:
        return model_file, protobuf_stream.write(fragments, model_file)
    offsets = protobuf_stream.write(_side_fragments(encoded), side_file)
    for layer in layers:
        if matrix := encoded.matrices.get(layer.name):
            _refer(layer.custom, matrix, side_file.name, offsets)
    protobuf_stream.write(_model_fragments(spec, layers, {}), model_file)
    return side_file, offsets


def _model_fragments(
    spec: Model, layers: Sequence[NeuralNetworkLayer], weights: dict[str, EncodedMatrix]
) -> list[Fragment]:
    """The fragments of the whole message.

    A layer of the name of a matrix in `weights` gets its blob and scales.
    """
    network: list[Fragment] = []
    for layer in layers:
        network += protobuf_stream.field(
            NETWORK_LAYERS, _layer_fragments(layer, weights.get(layer.name))
        )
    head = type(spec)()
    head.CopyFrom(spec)
    head.ClearField("neuralNetwork")
    network.append(spec.neuralNetwork.SerializeToString(deterministic=True))
    return [
        head.SerializeToString(deterministic=True),
        *protobuf_stream.field(MODEL_NETWORK, network),
    ]


def _layer_fragments(layer: NeuralNetworkLayer, matrix: EncodedMatrix | None) -> list[Fragment]:
    if matrix is None:
        return [layer.SerializeToString(deterministic=True)]
    head, first, last = type(layer)(), type(layer.custom)(), type(layer.custom)()
    head.CopyFrom(layer)
    head.ClearField("custom")
    last.CopyFrom(layer.custom)
    last.ClearField("className")
    first.className = layer.custom.className
    custom = [first.SerializeToString()]
    scales = WEIGHT_FLOATS if matrix.scale_type == "float32" else WEIGHT_RAW
    for number, path in ((WEIGHT_RAW, matrix.blob_path), (scales, matrix.scales_path)):
        custom += protobuf_stream.field(CUSTOM_WEIGHTS, protobuf_stream.field(number, [path]))
    custom.append(last.SerializeToString(deterministic=True))
    return [
        head.SerializeToString(deterministic=True),
        *protobuf_stream.field(LAYER_CUSTOM, custom),
    ]


def _side_fragments(encoded: EncodedModel) -> list[Fragment]:
    """Fragments of all blobs and scales, each filled up to a multiple of ALIGNMENT bytes."""
    fragments: list[Fragment] = []
    for matrix in encoded.matrices.values():
        for path in (matrix.blob_path, matrix.scales_path):
            fragments += [path, bytes(-protobuf_stream.length([path]) % ALIGNMENT)]
    return fragments


def _refer(
    custom: CustomLayerParams, matrix: EncodedMatrix, file: str, offsets: dict[Path, int]
) -> None:
    """Writes into a custom layer's parameters where its weights lie."""
    custom.parameters["file"].stringValue = file
    custom.parameters["blob_offset"].longValue = offsets[matrix.blob_path]
    custom.parameters["blob_bytes"].longValue = matrix.blob_bytes
    custom.parameters["scales_offset"].longValue = offsets[matrix.scales_path]
    custom.parameters["scales_bytes"].longValue = matrix.scales_bytes


def _places(encoded: EncodedModel, file: Path, offsets: dict[Path, int]) -> dict[str, Location]:
    return {
        m.name: Location(
            file.as_posix(),
            "tqlz",
            offsets[m.blob_path],
            m.blob_bytes,
            offsets[m.scales_path],
            m.scales_bytes,
            m.scales_crc32,
        )
        for m in encoded.matrices.values()
        if {m.blob_path, m.scales_path} <= offsets.keys()
    }


def emit(source: PackageInput, progress: Progress) -> Emitted:
    """Writes the package into the bundle.

    Raises ExportError if it is not what was asked.
    """
    progress("write the Core ML package with custom layers", 0, 0)
    activations, max_tokens = source.config.activations, min(source.context, MAX_TOKENS)
    config = CustomOpConfig(source.context, max_tokens, activations == "int16")
    package = source.work / PACKAGE
    emitted = write(
        source.encoded,
        source.checkpoint.config,
        config,
        package,
        metadata(source, NAME),
    )
    weights_file = next(iter(emitted.places.values())).file
    rows = []
    for file in emitted.files:
        name = file.as_posix()
        parts = matrix_rows(source) if name == weights_file else {}
        if name.endswith(".mlmodel"):
            parts["norms, rope tables"] = emitted.constants_bytes
        rows += rows_of(source.work / file, name, parts, REST[file.suffix])
    artifact = Artifact(
        format=NAME,
        path=package.name,
        files=[file.as_posix() for file in emitted.files],
        activations=activations,
        kv_type="float32",
        prefill_tokens=max_tokens,
        kv_cache_bytes=4 * kv_cache_values(source.checkpoint.config, source.context),
        operators=emitted.layers,
        places=emitted.places,
        vectors={},
        details={
            "specification_version": emitted.specification_version,
            "minimum_deployment_target": "iOS 13",
            "inputs": emitted.inputs,
            "outputs": emitted.outputs,
        },
    )
    return Emitted(artifact, rows, [])


def estimate(planned: PlannedModel) -> Artifact:
    """The package that an export would write, as far as shapes tell."""
    return Artifact(
        format=NAME,
        path=PACKAGE,
        files=[PACKAGE],
        activations=planned.activations,
        kv_type="float32",
        prefill_tokens=min(planned.context, MAX_TOKENS),
        kv_cache_bytes=4 * kv_cache_values(planned.config, planned.context),
        operators={"calls": CALLS_A_LAYER * planned.config.num_hidden_layers + OTHER_CALLS},
        places={t.name: Location(PACKAGE, "tqlz", 0, t.blob_bytes) for t in planned.tensors},
        vectors={},
        details={},
    )

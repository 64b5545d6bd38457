"""Core ML with an operator of our own: a NeuralNetwork whose matrices are custom layers over TQLZ
blobs.

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

Custom layers, version 1 of their contract:
- `LZWLinear`: x [S, cols] -> x W^T [S, rows]. `LZWEmbedding`: ids [S] -> rows of W [S, cols].
- Weights: [0] `rawValue`, the TQLZ blob; [1] `floatValue`, the scales [rows, ceil(cols /
  group_size)].
- Parameters: `version`, `rows`, `cols`, `group_size` (int), `name` (string, of the tensor in the
  checkpoint); for LZWLinear `int16_activations` (bool): whether activations are quantized per token
  as `tinyqmoe_linear_x16` does.
- A tied head has no weights but `weights_of` (string): the name of the layer before it that has
  them.
- Where a protobuf would be too large for all weights, no layer has any, but: `file` (string,
  relative to the folder of the package), `blob_offset`, `blob_bytes`, `scales_offset`,
  `scales_bytes` (long), for the same bytes in that file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from exporter.backends import coreml, protobuf_stream
from exporter.backends.protobuf_stream import Piece
from exporter.bundle import Place
from exporter.encoded import EncodedMatrix, EncodedModel
from exporter.errors import ExportError
from exporter.models.llama import LlamaConfig
from exporter.quiet import quiet

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model
    from coremltools.proto.NeuralNetwork_pb2 import CustomLayerParams, NeuralNetworkLayer

LINEAR, EMBEDDING = "LZWLinear", "LZWEmbedding"
CONTRACT_VERSION = 1
SPECIFICATION_VERSION = 4  # iOS 13: tensors of any rank and all layers used here
PROTOBUF_LIMIT_BYTES = (1 << 31) - (64 << 20)  # a protobuf message ends at 2 GiB; with a margin
ALIGNMENT = 64  # of what lies in the side file
ENDS_BYTES = 64  # of each end of blob and scales that are compared
HIDDEN_SCORE = -3e4  # exp of it is 0, and half precision holds it
DENSE_LAYERS = ("innerProduct", "convolution", "embedding", "embeddingND")

# Field numbers of Model.proto and NeuralNetwork.proto, for what is written piece by piece.
MODEL_NETWORK, NETWORK_LAYERS, LAYER_CUSTOM, CUSTOM_WEIGHTS, WEIGHT_FLOATS, WEIGHT_RAW = (
    500,
    1,
    500,
    20,
    1,
    30,
)
PATH_TO_WEIGHTS = (MODEL_NETWORK, NETWORK_LAYERS, LAYER_CUSTOM, CUSTOM_WEIGHTS)


@dataclass(frozen=True)
class CustomOpConfig:
    """What a network is made for: C cache slots, and 1 to `max_tokens` tokens in a call."""

    context: int
    max_tokens: int
    int16_activations: bool


@dataclass(frozen=True)
class EmittedCustomOp:
    """What was written. Places and files are relative to the folder of the package.

    `layers` counts layer types, custom layers by their class; `inputs` and `outputs` say dtype and
    sizes.
    """

    files: list[Path]
    places: dict[str, Place]
    layers: dict[str, int]
    constants_bytes: int  # of norms, rope tables and scalars
    specification_version: int
    inputs: dict[str, str]
    outputs: dict[str, str]


def emit(
    encoded: EncodedModel,
    vectors: dict[str, Tensor],
    model: LlamaConfig,
    config: CustomOpConfig,
    package: Path,
    metadata: dict[str, str],
) -> EmittedCustomOp:
    """Writes the `.mlpackage`, and weights beside it if a protobuf cannot hold them; then checks
    what was written.

    Weights are copied from file to file, and the check parses stand-ins of them: memory does not
    follow their size. Raises ExportError if it is not what it should be.
    """
    with quiet():
        layers = _Builder(encoded, vectors, model, config).layers
        spec = _interface(model, config)
    coreml.fill_metadata(spec.description.metadata, metadata)
    (package / coreml.DATA).mkdir(parents=True)
    coreml.write_package_manifest(package, weights=False)
    model_file = package / coreml.MODEL_FILE
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
            feature.name: coreml.array_text(feature.type) for feature in spec.description.input
        },
        outputs={
            feature.name: coreml.array_text(feature.type) for feature in spec.description.output
        },
    )
    _check(emitted, encoded, model, config, package, metadata)
    return emitted


class _Builder:
    """Writes the graph. Methods take and return names of values; letters in shapes are those of the
    module."""

    def __init__(
        self,
        encoded: EncodedModel,
        vectors: dict[str, Tensor],
        model: LlamaConfig,
        config: CustomOpConfig,
    ) -> None:
        self.encoded, self.vectors, self.model, self.config = encoded, vectors, model, config
        self.layers: list[NeuralNetworkLayer] = []
        self.scope = ""
        self.scalars: dict[float, str] = {}
        self.kv_rows: list[str] = []  # K and V of each layer, [S, KV * D]
        self._network()

    def layer(self, kind: str, *inputs: str, name: str = "", **params: Any) -> str:
        """Adds a layer with one output, which has the layer's name. `params` are the fields of its
        message."""
        from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer

        name = name or f"{self.scope}{kind}_{len(self.layers)}"
        self.layers.append(
            NeuralNetworkLayer(name=name, input=inputs, output=[name], **{kind: params})
        )
        return name

    def constant(self, values: Tensor) -> str:
        """A float32 tensor."""
        data = {"floatValue": values.reshape(-1).tolist()}
        return self.layer("loadConstantND", shape=list(values.shape), data=data)

    def scalar(self, value: float) -> str:
        """float32 [1], one for equal values."""
        if value not in self.scalars:
            self.scalars[value] = self.constant(torch.tensor([value]))
        return self.scalars[value]

    def add(self, x: str, y: str) -> str:
        return self.layer("addBroadcastable", x, y)

    def multiply(self, x: str, y: str) -> str:
        return self.layer("multiplyBroadcastable", x, y)

    def divide(self, x: str, y: str) -> str:
        return self.layer("divideBroadcastable", x, y)

    def matmul(self, x: str, y: str, *, transpose: bool = False) -> str:
        return self.layer("batchedMatmul", x, y, transposeB=transpose)

    def concat(self, *values: str, axis: int) -> str:
        return self.layer("concatND", *values, axis=axis)

    def part(self, x: str, rank: int, axis: int, begin: int | None, end: int | None) -> str:
        """x[begin:end] along one axis."""
        whole = [i != axis for i in range(rank)]
        return self.layer(
            "sliceStatic",
            x,
            beginIds=[0 if w else begin or 0 for w in whole],
            beginMasks=[w or begin is None for w in whole],
            endIds=[0 if w else end or 0 for w in whole],
            endMasks=[w or end is None for w in whole],
            strides=[1] * rank,
            squeezeMasks=[False] * rank,
        )

    def custom(
        self, class_name: str, x: str, tensor: str, name: str, **more: dict[str, Any]
    ) -> str:
        """A custom layer on a matrix of the encoded model."""
        matrix = self.encoded.matrices[tensor]
        parameters: dict[str, dict[str, Any]] = {
            "version": {"intValue": CONTRACT_VERSION},
            "name": {"stringValue": tensor},
            "rows": {"intValue": matrix.rows},
            "cols": {"intValue": matrix.cols},
            "group_size": {"intValue": matrix.group_size},
        }
        description = f"{class_name} of Tiny-QMoE"
        params = {
            "className": class_name,
            "parameters": parameters | more,
            "description": description,
        }
        return self.layer("custom", x, name=name, **params)

    def linear(self, x: str, tensor: str) -> str:
        """[S, cols] -> [S, rows]."""
        return self.custom(LINEAR, x, tensor, tensor, **self._arithmetic())

    def _arithmetic(self) -> dict[str, dict[str, Any]]:
        return {"int16_activations": {"boolValue": self.config.int16_activations}}

    def _head(self, x: str) -> str:
        embed = "model.embed_tokens.weight"
        if not self.model.tie_word_embeddings:
            return self.linear(x, "lm_head.weight")
        shared = {"weights_of": {"stringValue": embed}}
        return self.custom(LINEAR, x, embed, "lm_head", **self._arithmetic(), **shared)

    def _network(self) -> None:
        embed = "model.embed_tokens.weight"
        self._position_inputs()
        x = self.custom(EMBEDDING, "input_ids", embed, embed)
        for i in range(self.model.num_hidden_layers):
            self.scope = f"layers.{i}."
            x = self._block(x, i)
        self.scope = ""
        last = self.part(x, 2, 0, -1, None)
        logits = self._head(self._norm(last, "model.norm.weight"))
        self.layer("reshapeStatic", logits, name="logits", targetShape=[self.model.vocab_size])
        rows = self.concat(*self.kv_rows, axis=1)
        m = self.model
        shape = self._with_tokens(m.num_hidden_layers, 2, m.num_key_value_heads, m.head_dim)
        self.layer("reshapeDynamic", rows, shape, name="kv_new")

    def _position_inputs(self) -> None:
        """What all layers share: shapes with S in them, cos and sin of every token, which keys a
        token may not see."""
        m, context = self.model, self.config.context
        self.n_tokens = self.layer("getShape", "positions")  # [1]
        groups = m.num_attention_heads // m.num_key_value_heads
        self.query_shape = self._with_tokens(m.num_key_value_heads, groups, m.head_dim)
        self.key_shape = self._with_tokens(m.num_key_value_heads, 1, m.head_dim)
        tables = (self.constant(table) for table in coreml.rope_tables(m, context))  # [C, D/2]
        cos, sin = (
            self.layer("gather", table, "positions", axis=0) for table in tables
        )  # [S, D/2]
        self.cos = self._to_heads(self.concat(cos, cos, axis=-1))
        self.sin = self._to_heads(self.concat(self.multiply(sin, self.scalar(-1.0)), sin, axis=-1))
        # A slot that holds no token yet gets a position after every token's.
        slots = self.layer("rangeStatic", endValue=context, startValue=0, stepSizeValue=1)  # [C]
        unused = self.layer("greaterEqual", slots, self.part("positions", 1, 0, 0, 1))
        key_positions = self.concat(
            self.add(slots, self.multiply(unused, self.scalar(float(context)))), "positions", axis=0
        )  # [C + S]
        query_positions = self.layer("expandDims", "positions", axes=[1])  # [S, 1]
        self.unseen = self.layer("greaterThan", key_positions, query_positions)  # [S, C + S]

    def _with_tokens(self, *sizes: int) -> str:
        """The shape [S, *sizes] as a value, for `reshapeDynamic`."""
        return self.concat(
            self.n_tokens, self.constant(torch.tensor(sizes, dtype=torch.float32)), axis=0
        )

    def _to_heads(self, table: str) -> str:
        """[S, D] -> [S, 1, 1, D]."""
        return self.layer("expandDims", table, axes=[1, 2])

    def _block(self, x: str, i: int) -> str:
        """One decoder layer, x [S, hidden]: x + attention(norm(x)), then x + mlp(norm(x))."""
        prefix = f"model.layers.{i}"
        h = self._norm(x, f"{prefix}.input_layernorm.weight")
        x = self.add(x, self.linear(self._attention(h, i), f"{prefix}.self_attn.o_proj.weight"))
        h = self._norm(x, f"{prefix}.post_attention_layernorm.weight")
        gate = self.linear(h, f"{prefix}.mlp.gate_proj.weight")
        gate = self.multiply(gate, self.layer("activation", gate, sigmoid={}))
        inner = self.multiply(gate, self.linear(h, f"{prefix}.mlp.up_proj.weight"))
        return self.add(x, self.linear(inner, f"{prefix}.mlp.down_proj.weight"))

    def _norm(self, x: str, weight: str) -> str:
        """x / sqrt(mean(x^2) + eps) * weight, with x / m in place of x so that no square leaves
        half precision.

        With m = max(max |x|, sqrt(eps)) it equals (x / m) / sqrt(mean((x / m)^2) + (sqrt(eps) /
        m)^2), and everything under the root is at most 1 each; where the mean underflows, the other
        term is 1.
        """
        root_eps = self.scalar(math.sqrt(self.model.rms_norm_eps))
        largest = self.layer(
            "reduceMax", self.layer("unary", x, type="ABS"), axes=[-1], keepDims=True
        )
        m = self.layer("maxBroadcastable", largest, root_eps)
        scaled, eps = self.divide(x, m), self.divide(root_eps, m)
        mean = self.layer("reduceMean", self.multiply(scaled, scaled), axes=[-1], keepDims=True)
        root = self.layer("unary", self.add(mean, self.multiply(eps, eps)), type="SQRT")
        return self.multiply(self.divide(scaled, root), self.constant(self.vectors[weight].float()))

    def _rotate(self, x: str) -> str:
        """RoPE on [S, KV, G or 1, D]; pairs are (i, i + D/2), and (-sin, sin) is one table."""
        half = self.model.head_dim // 2
        swapped = self.concat(
            self.part(x, 4, 3, half, None), self.part(x, 4, 3, None, half), axis=-1
        )
        return self.add(self.multiply(x, self.cos), self.multiply(swapped, self.sin))

    def _attention(self, h: str, i: int) -> str:
        """Grouped-query attention of h [S, hidden] over the cache and the new tokens -> [S, H * D].

        Scores of slots that hold no token are replaced and not only lowered: what such a slot holds
        can be anything.
        """
        prefix, context = f"model.layers.{i}.self_attn", self.config.context
        q, k, v = (self.linear(h, f"{prefix}.{name}_proj.weight") for name in "qkv")
        q = self._rotate(self.layer("reshapeDynamic", q, self.query_shape))
        q = self.multiply(q, self.scalar(1 / math.sqrt(self.model.head_dim)))
        q = self.layer("transpose", q, axes=[1, 2, 0, 3])  # [KV, G, S, D]
        k = self._rotate(self.layer("reshapeDynamic", k, self.key_shape))  # [S, KV, 1, D]
        self.kv_rows += [self.layer("flattenTo2D", k, axis=1), v]
        k = self.layer("transpose", k, axes=[1, 2, 0, 3])  # [KV, 1, S, D]
        v = self.layer(
            "transpose", self.layer("reshapeDynamic", v, self.key_shape), axes=[1, 2, 0, 3]
        )
        old_k, old_v = self._cached(i, 0), self._cached(i, 1)  # [KV, 1, C, D]
        scores = self.concat(
            self.matmul(q, old_k, transpose=True), self.matmul(q, k, transpose=True), axis=-1
        )
        scores = self.layer(
            "whereBroadcastable", self.unseen, self.scalar(HIDDEN_SCORE), scores
        )  # [KV, G, S, C + S]
        weights = self.layer("softmaxND", scores, axis=-1)
        old, new = self.part(weights, 4, 3, None, context), self.part(weights, 4, 3, context, None)
        mixed = self.add(self.matmul(old, old_v), self.matmul(new, v))  # [KV, G, S, D]
        return self.layer("flattenTo2D", self.layer("transpose", mixed, axes=[2, 0, 1, 3]), axis=1)

    def _cached(self, i: int, which: int) -> str:
        """Keys (0) or values (1) of one layer in the cache, [KV, 1, C, D]."""
        one = [False, True, True, False, False]
        plane = self.layer(
            "sliceStatic",
            "kv_cache",
            beginIds=[0, i, which, 0, 0],
            beginMasks=[not o for o in one],
            endIds=[0, i + 1, which + 1, 0, 0],
            endMasks=[not o for o in one],
            strides=[1] * 5,
            squeezeMasks=one,
        )  # [C, KV, D]
        return self.layer("expandDims", self.layer("transpose", plane, axes=[1, 0, 2]), axes=[1])


def _interface(model: LlamaConfig, config: CustomOpConfig) -> Model:
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
    """An array; with `max_tokens` its first size is 1 to that many."""
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
    pieces = _model_pieces(spec, layers, encoded.matrices)
    if protobuf_stream.length(pieces) <= PROTOBUF_LIMIT_BYTES:
        return model_file, protobuf_stream.write(pieces, model_file)
    offsets = protobuf_stream.write(_side_pieces(encoded), side_file)
    for layer in layers:
        if matrix := encoded.matrices.get(layer.name):
            _refer(layer.custom, matrix, side_file.name, offsets)
    protobuf_stream.write(_model_pieces(spec, layers, {}), model_file)
    return side_file, offsets


def _model_pieces(
    spec: Model, layers: Sequence[NeuralNetworkLayer], weights: dict[str, EncodedMatrix]
) -> list[Piece]:
    """The whole message. A layer of the name of a matrix in `weights` gets its blob and scales."""
    network: list[Piece] = []
    for layer in layers:
        network += protobuf_stream.field(
            NETWORK_LAYERS, _layer_pieces(layer, weights.get(layer.name))
        )
    head = type(spec)()
    head.CopyFrom(spec)
    head.ClearField("neuralNetwork")
    network.append(spec.neuralNetwork.SerializeToString(deterministic=True))
    return [
        head.SerializeToString(deterministic=True),
        *protobuf_stream.field(MODEL_NETWORK, network),
    ]


def _layer_pieces(layer: NeuralNetworkLayer, matrix: EncodedMatrix | None) -> list[Piece]:
    if matrix is None:
        return [layer.SerializeToString(deterministic=True)]
    head, first, last = type(layer)(), type(layer.custom)(), type(layer.custom)()
    head.CopyFrom(layer)
    head.ClearField("custom")
    last.CopyFrom(layer.custom)
    last.ClearField("className")
    first.className = layer.custom.className
    custom = [first.SerializeToString()]
    for number, path in ((WEIGHT_RAW, matrix.blob_path), (WEIGHT_FLOATS, matrix.scales_path)):
        custom += protobuf_stream.field(CUSTOM_WEIGHTS, protobuf_stream.field(number, [path]))
    custom.append(last.SerializeToString(deterministic=True))
    return [
        head.SerializeToString(deterministic=True),
        *protobuf_stream.field(LAYER_CUSTOM, custom),
    ]


def _side_pieces(encoded: EncodedModel) -> list[Piece]:
    """All blobs and scales, each filled up to a multiple of ALIGNMENT."""
    pieces: list[Piece] = []
    for matrix in encoded.matrices.values():
        for path in (matrix.blob_path, matrix.scales_path):
            pieces += [path, bytes(-protobuf_stream.length([path]) % ALIGNMENT)]
    return pieces


def _refer(
    custom: CustomLayerParams, matrix: EncodedMatrix, file: str, offsets: dict[Path, int]
) -> None:
    """Says in a custom layer's parameters where its weights lie."""
    custom.parameters["file"].stringValue = file
    custom.parameters["blob_offset"].longValue = offsets[matrix.blob_path]
    custom.parameters["blob_bytes"].longValue = matrix.blob_bytes
    custom.parameters["scales_offset"].longValue = offsets[matrix.scales_path]
    custom.parameters["scales_bytes"].longValue = matrix.scales_bytes


def _places(encoded: EncodedModel, file: Path, offsets: dict[Path, int]) -> dict[str, Place]:
    return {
        m.name: Place(
            file.as_posix(), "tqlz", offsets[m.blob_path], m.blob_bytes, offsets[m.scales_path]
        )
        for m in encoded.matrices.values()
        if {m.blob_path, m.scales_path} <= offsets.keys()
    }


def census(layers: Sequence[NeuralNetworkLayer]) -> dict[str, int]:
    """How often each type of layer is there; custom layers by their class."""
    counts = Counter(
        layer.custom.className or layer.WhichOneof("layer") or "no type" for layer in layers
    )
    return dict(sorted(counts.items()))


def _check(
    emitted: EmittedCustomOp,
    encoded: EncodedModel,
    model: LlamaConfig,
    config: CustomOpConfig,
    package: Path,
    metadata: dict[str, str],
) -> None:
    """Reads back what was written. Raises ExportError with all that is wrong.

    - coremltools parses the model, and it is small enough for a protobuf (see `_reload`);
    - version, metadata, inputs and outputs are those of the contract (see the module);
    - its layers are those that were written, products as many as the model asks, none of them
      dense;
    - every value is made once and before it is used, and every output is made;
    - every matrix lies where its place says, by the bytes at both ends of blob and scales;
    - what is neither blobs, scales nor constants is small.
    """
    spec = _reload(package / coreml.MODEL_FILE)
    layers = spec.neuralNetwork.layers
    problems = coreml.description_problems(spec, SPECIFICATION_VERSION, metadata)
    problems += coreml.differences("", coreml.declared(spec.description), _contract(model, config))
    problems += (
        [] if census(layers) == emitted.layers else ["its layers are not those that were written"]
    )
    problems += _graph_problems(spec)
    n = model.num_hidden_layers
    expected = {LINEAR: 7 * n + 1, EMBEDDING: 1, "batchedMatmul": 4 * n} | dict.fromkeys(
        DENSE_LAYERS, 0
    )
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
        raise ExportError(what, problems=problems, do="report this as a bug")


def _contract(model: LlamaConfig, config: CustomOpConfig) -> dict[str, str]:
    """What the module says of inputs and outputs, as `coreml.declared` reads it."""
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
        raise ExportError(what, do="report this as a bug") from error


def _graph_problems(spec: Model) -> list[str]:
    """What Core ML's own validator refuses: values that nobody made or two layers made, outputs
    that are absent."""
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


def _misplaced(matrix: EncodedMatrix, place: Place | None, package: Path) -> str:
    """Compares both ends of blob and scales with what lies in the package."""
    if place is None or place.scales_offset is None:
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

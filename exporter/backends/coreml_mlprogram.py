"""Core ML, the format that runs well on iPhones: a stateful iOS 18 ML Program with native 2-bit and
int8 weights.

Written with coremltools' `mb` builder, one function for a single token and one for a piece of a
prompt, without conversion or passes. The builder sees stand-ins that take no memory; where every
constant lies in the weight files is decided here, and those files are not written: a bundle ships
them coded (exporter.codec.weight_file), and `tinyqmoe expand` rebuilds them. Letters in shapes: S
tokens in a call, H query heads, KV key/value heads, G = H / KV, D head_dim, C context, L layers.
"""

from __future__ import annotations

import math
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from torch import Tensor

from exporter.backends import coreml
from exporter.bundle import Place
from exporter.codec.weight_file import RECIPE_VERSION, Piece, Recipe, WeightFile, sha256_of
from exporter.encoded import EncodedMatrix, EncodedModel
from exporter.errors import ExportError, UsageError
from exporter.models.llama import LlamaConfig
from exporter.quiet import quiet

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Program, Var
    from coremltools.proto.MIL_pb2 import Value
    from coremltools.proto.Model_pb2 import Model

DECODE, PREFILL = "decode", "prefill"
PREFILL_TOKENS = (
    128  # of one call of `prefill`; its shapes are fixed, as the Neural Engine wants them
)
MASKED = -3e4  # exp of it is 0, and half precision holds it
TEMPLATE, PACKAGE = "model.template.mlpackage", "model.mlpackage"
CODED_FILE, RECIPE_FILE = "model.weights.tqlz", "expand.json"

SPECIFICATION_VERSION = 9  # iOS 18, the first with states and 2-bit tables
BYTES_PER_LAYER = (
    64 << 10
)  # of a program without weights, at most; two such for what is outside of layers

# A weight file as coremltools' MILBlob writes it: a header; then at multiples of 64 what each blob
# is, and its data.
ALIGNMENT, SENTINEL, STORAGE_VERSION = 64, 0xDEADBEEF, 2
BLOB_TYPES = {"float16": 1, "float32": 2, "int8": 4, "uint2": 10, "int32": 14}


@dataclass(frozen=True)
class MLProgramConfig:
    """What a program is made for: C cache slots, and no weight file larger than `chunk_bytes`."""

    context: int
    chunk_bytes: int

    @property
    def prefill_tokens(self) -> int:
        return min(self.context, PREFILL_TOKENS)


@dataclass(frozen=True)
class EmittedMLProgram:
    """What was written into the bundle. Places are in the expanded package."""

    recipe: Recipe
    places: dict[str, Place]
    operators: dict[str, int]
    constants_bytes: int  # of norms, rope tables, scales and look-up tables
    specification_version: int


def check_groups(groups: dict[str, tuple[int, int | None]]) -> None:
    """Refuses, before any work, matrices whose columns the group size does not divide: blocks here
    are all equal.

    `groups` maps names to (columns, group size or None for a whole row). Raises UsageError naming
    every one.
    """
    problems = [
        f"{name}: {cols} columns are no multiple of {group}"
        for name, (cols, group) in groups.items()
        if group is not None and cols % min(group, cols)
    ]
    if problems:
        do = "choose another --group-size, or --coreml-format custom-op, which takes any"
        raise UsageError("the group size does not suit an ML Program", problems=problems, do=do)


@dataclass(frozen=True)
class _Blob:
    """A constant of a weight file: literal bytes, or a matrix. Its description is at `offset`, its
    data 64 further."""

    key: str
    kind: str
    n_elements: int
    n_bytes: int
    offset: int
    source: bytes | EncodedMatrix


class _Layout:
    """Decides where each constant lies. A constant asked for twice, as by two functions, has one
    place."""

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.files: list[list[_Blob]] = []
        self.places: dict[str, tuple[int, _Blob]] = {}
        self._end = 0

    def place(
        self, key: str, kind: str, n_elements: int, source: bytes | EncodedMatrix
    ) -> tuple[int, _Blob]:
        """The number of the file, and the blob."""
        if key not in self.places:
            bits = {"float16": 16, "float32": 32, "int8": 8, "uint2": 2, "int32": 32}[kind]
            n_bytes = -(-n_elements * bits // 8)
            offset = _aligned(self._end)
            if not self.files or offset + ALIGNMENT + n_bytes > self.chunk_bytes:
                self.files.append([])
                offset = ALIGNMENT
            if offset + ALIGNMENT + n_bytes > self.chunk_bytes:
                what = (
                    f"--chunk-bytes is {self.chunk_bytes:,}, and {key} alone takes "
                    f"{n_bytes + 2 * ALIGNMENT:,}"
                )
                raise UsageError(what, do="choose larger chunks")
            blob = _Blob(key, kind, n_elements, n_bytes, offset, source)
            self.files[-1].append(blob)
            self._end = offset + ALIGNMENT + n_bytes
            self.places[key] = (len(self.files) - 1, blob)
        return self.places[key]


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def weight_file_name(number: int) -> str:
    """`weight.bin`, which is what coremltools calls it; further ones are numbered."""
    return "weight.bin" if number == 0 else f"weight-{number}.bin"


def emit(
    encoded: EncodedModel,
    vectors: dict[str, Tensor],
    model: LlamaConfig,
    config: MLProgramConfig,
    work: Path,
    metadata: dict[str, str],
    progress: Callable[[int, int], None],
) -> EmittedMLProgram:
    """Writes template, coded weights and recipe into `work`, and checks them. `progress` is told
    expanded bytes.

    Raises ExportError if what was written is not what it should be, UsageError if a matrix does not
    fit a chunk.
    """
    layout = _Layout(config.chunk_bytes)
    with quiet():
        program = _Builder(encoded, vectors, model, config).program()
        spec = _translate(program, encoded, layout)
        coreml.fill_metadata(spec.description.metadata, metadata)
    template = work / TEMPLATE
    (template / coreml.DATA).mkdir(parents=True)
    coreml.write_package_manifest(template, weights=True)
    (template / coreml.MODEL_FILE).write_bytes(spec.SerializeToString(deterministic=True))
    written = type(spec).FromString((template / coreml.MODEL_FILE).read_bytes())
    with quiet():
        _check_reload(written)
    _check(written, layout, encoded, model, config, metadata)
    pieces = _write_coded(layout, work / CODED_FILE)
    recipe = Recipe(
        RECIPE_VERSION,
        TEMPLATE,
        PACKAGE,
        CODED_FILE,
        _weight_files(pieces, work / CODED_FILE, progress),
    )
    (work / RECIPE_FILE).write_text(recipe.to_json(), encoding="utf-8")
    return EmittedMLProgram(
        recipe=recipe,
        places={
            key: _place(number, blob)
            for key, (number, blob) in layout.places.items()
            if key in encoded.matrices
        },
        operators=census(operations(written, DECODE) + operations(written, PREFILL)),
        constants_bytes=sum(
            b.n_bytes for _, b in layout.places.values() if isinstance(b.source, bytes)
        ),
        specification_version=written.specificationVersion,
    )


def _place(number: int, blob: _Blob) -> Place:
    file = f"{PACKAGE}/{coreml.WEIGHTS_DIR}/{weight_file_name(number)}"
    return Place(file, blob.kind, blob.offset + ALIGNMENT, blob.n_bytes)


class _Builder:
    """Builds both functions. `mb` keeps a stack of open blocks, so operations go where they are
    written."""

    def __init__(
        self,
        encoded: EncodedModel,
        vectors: dict[str, Tensor],
        model: LlamaConfig,
        config: MLProgramConfig,
    ) -> None:
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil import types

        self.mb, self.types = Builder, types
        self.encoded, self.vectors, self.model, self.config = encoded, vectors, model, config
        self.rope = [table.numpy() for table in coreml.rope_tables(model, config.context)]
        self.state_shape = (
            model.num_hidden_layers,
            model.num_key_value_heads,
            config.context,
            model.head_dim,
        )
        self.constants: dict[str, Var] = {}  # of the function being built

    def program(self) -> Program:
        from coremltools.converters.mil.mil import Program

        def decode(input_ids: Var, position: Var, k_cache: Var, v_cache: Var) -> Var:
            return self.llama(input_ids, position, None, k_cache, v_cache)

        def prefill(input_ids: Var, position: Var, last: Var, k_cache: Var, v_cache: Var) -> Var:
            return self.llama(input_ids, position, last, k_cache, v_cache)

        # names of operations are counted per process: equal exports must be equal bytes
        self.mb.name_count.clear()
        program = Program()
        program.add_function(DECODE, self.function(decode, [(1, 1), (1,)]))
        program.add_function(
            PREFILL, self.function(prefill, [(1, self.config.prefill_tokens), (1,), (1,)])
        )
        program.default_function_name = DECODE
        program.export_as_multifunction = True
        return program

    def function(self, body: Callable[..., Var], shapes: list[tuple[int, ...]]) -> Any:
        """`mb` names the inputs by the parameters of `body`: int32 of these shapes, then the two
        states."""
        import coremltools as ct

        inputs = [self.mb.TensorSpec(shape=shape, dtype=self.types.int32) for shape in shapes]
        states = [
            self.mb.StateTensorSpec(self.state_shape, dtype=self.types.fp16) for _ in range(2)
        ]
        self.constants = {}
        return self.mb.function(inputs + states, opset_version=ct.target.iOS18)(body)

    def llama(
        self, input_ids: Var, position: Var, last: Var | None, k_cache: Var, v_cache: Var
    ) -> Var:
        """Logits float16 [1, V] of token `last` of the call; input_ids [1, S] stand at `position`
        and after it."""
        mb, n_tokens = self.mb, input_ids.shape[1]
        positions = mb.add(
            x=position, y=self.constant("steps", np.arange(n_tokens, dtype=np.int32))
        )  # [S]
        cos, sin = (
            mb.cast(
                x=mb.gather(
                    x=self.constant(name, table), indices=positions, validate_indices=False
                ),
                dtype="fp16",
            )
            for name, table in zip(("rope.cos", "rope.sin"), self.rope, strict=True)
        )  # [S, D/2]
        mask = self.mask(positions, n_tokens)
        embedding = self.weight("model.embed_tokens.weight")
        x = mb.gather(x=embedding, indices=input_ids, validate_indices=False)  # [1, S, hidden]
        caches = [(state, mb.read_state(input=state)) for state in (k_cache, v_cache)]
        for layer in range(self.model.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            h = self.norm(x, f"{prefix}.input_layernorm.weight")
            q, k, v = (
                self.heads(h, f"{prefix}.self_attn.{name}_proj.weight", n_tokens) for name in "qkv"
            )
            k = self.rotate(k, cos, sin)
            caches = [
                self.update(cache, layer, new, position)
                for cache, new in zip(caches, (k, v), strict=True)
            ]
            h = self.attention(
                self.rotate(q, cos, sin), [value for _, value in caches], layer, mask, n_tokens
            )
            x = mb.add(x=x, y=self.linear(h, f"{prefix}.self_attn.o_proj.weight"))
            x = mb.add(
                x=x,
                y=self.mlp(
                    self.norm(x, f"{prefix}.post_attention_layernorm.weight"), f"{prefix}.mlp"
                ),
            )
        if last is not None:
            x = mb.gather(x=x, indices=last, axis=1, validate_indices=False)
        head = "model.embed_tokens.weight" if self.model.tie_word_embeddings else "lm_head.weight"
        logits = self.linear(self.norm(x, "model.norm.weight"), head)  # [1, 1, V]
        return mb.squeeze(x=logits, axes=[1], name="logits")

    def mask(self, positions: Var, n_tokens: int) -> Var:
        """float16 [G * S, C], 0 where a token may look: at its own slot and earlier ones."""
        mb = self.mb
        slots = self.constant("slots", np.arange(self.config.context, dtype=np.int32)[None])
        seen = mb.less_equal(x=slots, y=mb.reshape(x=positions, shape=[n_tokens, 1]))
        mask = mb.mul(
            x=mb.sub(x=mb.cast(x=seen, dtype="fp16"), y=np.float16(1)), y=np.float16(-MASKED)
        )  # [S, C]
        groups = self.model.num_attention_heads // self.model.num_key_value_heads
        return mb.tile(x=mask, reps=[groups, 1]) if groups > 1 else mask

    def norm(self, x: Var, name: str) -> Var:
        """x / sqrt(mean(x^2) + eps) * weight, in float32: squares of Llama's residual stream
        overflow halves."""
        mb = self.mb
        wide = mb.cast(x=x, dtype="fp32")
        mean = mb.reduce_mean(x=mb.mul(x=wide, y=wide), axes=[-1], keep_dims=True)
        scale = mb.rsqrt(
            x=mb.add(x=mean, y=np.float32(self.model.rms_norm_eps)), epsilon=np.float32(1e-30)
        )
        weight = self.constant(name, self.vectors[name].numpy().astype(np.float32))
        return mb.cast(x=mb.mul(x=mb.mul(x=wide, y=scale), y=weight), dtype="fp16")

    def heads(self, h: Var, name: str, n_tokens: int) -> Var:
        """[1, S, hidden] -> [1, heads, S, D]."""
        y = self.linear(h, name)
        y = self.mb.reshape(
            x=y, shape=[1, n_tokens, y.shape[-1] // self.model.head_dim, self.model.head_dim]
        )
        return self.mb.transpose(x=y, perm=[0, 2, 1, 3])

    def rotate(self, x: Var, cos: Var, sin: Var) -> Var:
        """RoPE on [1, heads, S, D]; pairs are (i, i + D/2)."""
        mb = self.mb
        first, second = mb.split(x=x, num_splits=2, axis=-1)
        turned = (
            mb.sub(x=mb.mul(x=first, y=cos), y=mb.mul(x=second, y=sin)),
            mb.add(x=mb.mul(x=second, y=cos), y=mb.mul(x=first, y=sin)),
        )
        return mb.concat(values=turned, axis=-1)

    def update(
        self, cache: tuple[Var, Var], layer: int, new: Var, position: Var
    ) -> tuple[Var, Var]:
        """Writes [1, KV, S, D] into the state's slots from `position` on. Updates are chained,
        never read twice: coremltools merges two reads of a state, though it was written between
        them."""
        mb = self.mb
        state, value = cache
        begin = mb.concat(
            values=[np.array([layer, 0], np.int32), position, np.zeros(1, np.int32)], axis=0
        )
        end = mb.add(x=begin, y=np.array(new.shape, np.int32))
        value = mb.slice_update(x=value, update=new, begin=begin, end=end)
        return state, mb.coreml_update_state(state=state, value=value)

    def attention(self, q: Var, caches: list[Var], layer: int, mask: Var, n_tokens: int) -> Var:
        """[1, H, S, D] -> [1, S, H * D]. The queries of a group are rows over one key head: nothing
        is repeated."""
        mb, model = self.mb, self.model
        kv, dim = model.num_key_value_heads, model.head_dim
        q = mb.reshape(x=q, shape=[1, kv, n_tokens * model.num_attention_heads // kv, dim])
        k, v = (
            mb.slice_by_index(
                x=cache, begin=[layer, 0, 0, 0], end=[layer + 1, kv, self.config.context, dim]
            )
            for cache in caches
        )
        y = mb.scaled_dot_product_attention(
            query=q, key=k, value=v, attn_mask=mb.expand_dims(x=mask, axes=[0, 1])
        )
        y = mb.reshape(x=y, shape=[1, model.num_attention_heads, n_tokens, dim])
        y = mb.transpose(x=y, perm=[0, 2, 1, 3])
        return mb.reshape(x=y, shape=[1, n_tokens, model.num_attention_heads * dim])

    def mlp(self, h: Var, prefix: str) -> Var:
        mb = self.mb
        gate, up = (self.linear(h, f"{prefix}.{name}_proj.weight") for name in ("gate", "up"))
        return self.linear(mb.mul(x=mb.silu(x=gate), y=up), f"{prefix}.down_proj.weight")

    def linear(self, x: Var, name: str) -> Var:
        """The builder gives every product a bias; all of a size share one of zeros, or the file
        would hold many."""
        rows = self.encoded.matrices[name].rows
        bias = self.constant(f"zeros{rows}", np.zeros(rows, np.float16))
        return self.mb.linear(x=x, weight=self.weight(name), bias=bias)

    def constant(self, key: str, value: np.ndarray) -> Var:
        """A constant that both functions share, if both have it with these values."""
        if key not in self.constants:
            var = self.mb.const(val=value, name=key)
            var.op.weight_id = f"{key}.{value.size}"
            self.constants[key] = var
        return self.constants[key]

    def weight(self, name: str) -> Var:
        """A matrix float16 [rows, cols]: 2-bit indices into a table of -scale, 0, scale, or int8
        levels and scales."""
        if name not in self.constants:
            matrix = self.encoded.matrices[name]
            self.constants[name] = (self.ternary if matrix.scheme == "ternary" else self.int8)(
                matrix
            )
        return self.constants[name]

    def int8(self, matrix: EncodedMatrix) -> Var:
        data = np.broadcast_to(np.zeros((), np.int8), (matrix.rows, matrix.cols))
        var = self.mb.constexpr_blockwise_shift_scale(data=data, scale=half_scales(matrix))
        var.op.data.op.weight_id, var.op.scale.op.weight_id = matrix.name, f"{matrix.name}.scales"
        return var

    def ternary(self, matrix: EncodedMatrix) -> Var:
        """The scale is in the table: a look-up followed by a scale fails to load on the Neural
        Engine of OS 26 (apple/coremltools pull request 2688)."""
        scales = half_scales(matrix)
        table = np.stack([-scales, 0 * scales, scales, 0 * scales], axis=-1)[
            ..., None
        ]  # [rows, groups, 4, 1]
        indices = np.broadcast_to(
            np.zeros((), self.types.np_uint2_dtype), (matrix.rows, matrix.cols)
        )
        var = self.mb.constexpr_lut_to_dense(indices=indices, lut=table)
        var.op.indices.op.weight_id, var.op.lut.op.weight_id = matrix.name, f"{matrix.name}.table"
        return var


def half_scales(matrix: EncodedMatrix) -> np.ndarray:
    """float16 [rows, groups]. Raises ExportError where half precision cannot hold the matrix."""
    scales = np.asarray(matrix.scales())
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    largest = float(np.abs(scales).max())
    level = 127 if matrix.scheme == "int8" else 1
    if largest * level > 65504 or 0 < largest < 2.0**-14:
        what = (
            f"{matrix.name} has scales up to {largest:.3g}: its weights do not fit half precision"
        )
        raise ExportError(
            what,
            do="export for Android, or with --coreml-format custom-op, which keep float32 scales",
        )
    return half


def _translate(program: Program, encoded: EncodedModel, layout: _Layout) -> Model:
    """The program as protobuf, by coremltools' own exporters, with our places for the constants."""
    from coremltools import _SPECIFICATION_VERSION_IOS_18 as VERSION
    from coremltools.converters.mil.backend.mil import helper
    from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter

    class Exporter(MILProtoExporter):
        def create_file_value(self, var: Var) -> Value:
            key = var.op.weight_id
            if key is None:
                raise ExportError(
                    f"nobody asked for the constant {var.name} {var.shape}",
                    do="report this as a bug",
                )
            matrix = encoded.matrices.get(key)
            source = np.ascontiguousarray(var.val).tobytes() if matrix is None else matrix
            kind = (
                str(var.val.dtype)
                if matrix is None
                else {"ternary": "uint2", "int8": "int8"}[matrix.scheme]
            )
            number, blob = layout.place(key, kind, math.prod(var.shape), source)
            primitive = helper.types_to_proto_primitive(var.sym_type.get_primitive())
            file_name = f"@model_path/weights/{weight_file_name(number)}"
            return helper.create_file_value_tensor(file_name, blob.offset, var.val.shape, primitive)

    mil = Exporter(program, "", VERSION).export()
    return CoreMLProtoExporter(
        program, mil, "", "", None, "mlprogram", "milinternal", VERSION
    ).export(VERSION)


def _write_coded(layout: _Layout, path: Path) -> list[list[Piece]]:
    """Writes literals and TQLZ blobs one after another; returns of which pieces each weight file is
    made."""
    with path.open("wb") as coded:
        return [_write_coded_file(blobs, coded) for blobs in layout.files]


def _write_coded_file(blobs: list[_Blob], coded: BinaryIO) -> list[Piece]:
    pieces: list[Piece] = []
    literal = bytearray(struct.pack("<II56x", len(blobs), STORAGE_VERSION))
    end = len(literal)

    def flush() -> None:
        if literal:
            pieces.append(Piece("bytes", len(literal), coded.tell(), len(literal)))
            coded.write(literal)
            literal.clear()

    for blob in blobs:
        literal += bytes(blob.offset - end)
        data_offset, padding_bits = blob.offset + ALIGNMENT, blob.n_bytes * 8 - blob.n_elements * 2
        kind = BLOB_TYPES[blob.kind]
        padding = padding_bits if blob.kind == "uint2" else 0
        literal += struct.pack("<IIQQQ32x", SENTINEL, kind, blob.n_bytes, data_offset, padding)
        end = data_offset + blob.n_bytes
        if isinstance(blob.source, bytes):
            literal += blob.source
            continue
        literal_end = coded.tell() + len(literal)
        flush()
        coded.write(
            bytes(_aligned(literal_end) - literal_end)
        )  # a blob's own sections are aligned to 64
        pieces.append(Piece(blob.kind, blob.n_bytes, coded.tell(), blob.source.blob_bytes))
        with blob.source.blob_path.open("rb") as source:
            shutil.copyfileobj(source, coded, 1 << 20)
    flush()
    return pieces


def _weight_files(
    files: list[list[Piece]], coded_path: Path, progress: Callable[[int, int], None]
) -> list[WeightFile]:
    """Expands the coded file as `tinyqmoe expand` will, for its hashes."""
    coded = np.memmap(coded_path, dtype=np.uint8, mode="r")
    total = sum(piece.n_bytes for pieces in files for piece in pieces)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    return [
        WeightFile(
            path=f"{coreml.WEIGHTS_DIR}/{weight_file_name(number)}",
            n_bytes=sum(piece.n_bytes for piece in pieces),
            sha256=sha256_of(coded, pieces, advance),
            pieces=pieces,
        )
        for number, pieces in enumerate(files)
    ]


def operations(spec: Model, function: str) -> list[Any]:
    """The operations of a function, in order."""
    body = spec.mlProgram.functions[function]
    return list(body.block_specializations[body.opset].operations)


def census(ops: list[Any]) -> dict[str, int]:
    """How often each type of operation but `const` is there."""
    counts = Counter(op.type for op in ops)
    counts.pop("const", None)
    return dict(sorted(counts.items()))


def _check_reload(spec: Model) -> None:
    """coremltools itself builds the program again from the protobuf; values from weight files are
    stand-ins."""
    from coremltools.converters.mil.frontend.milproto import helper, load

    original = load._load_value

    def load_value(context: Any, value: Value) -> Any:
        if value.WhichOneof("value") != "blobFileValue":
            return original(context, value)
        kind = helper.proto_to_types(value.type)
        dtype = load.types.nptype_from_builtin(kind.get_primitive())
        return np.broadcast_to(np.zeros((), dtype), kind.get_shape())

    load._load_value = load_value
    try:
        program = load.load(
            spec, specification_version=spec.specificationVersion, file_weights_dir=""
        )
    except Exception as error:
        what = f"coremltools cannot read the program it wrote: {error}"
        raise ExportError(what, do="report this as a bug") from error
    finally:
        load._load_value = original
    if set(program.functions) != {DECODE, PREFILL}:
        raise ExportError(
            f"the program has the functions {sorted(program.functions)}", do="report this as a bug"
        )


def _check(
    spec: Model,
    layout: _Layout,
    encoded: EncodedModel,
    model: LlamaConfig,
    config: MLProgramConfig,
    metadata: dict[str, str],
) -> None:
    """Whether a program is the one that was asked for. Raises ExportError with all that is wrong.

    - version and metadata; inputs, outputs and states of both functions;
    - operations of both functions (see `_function_problems`);
    - every matrix has its place in a weight file, whole; and nothing large lies in the program
      itself.
    """
    problems = coreml.description_problems(spec, SPECIFICATION_VERSION, metadata)
    described = {f.name: f for f in spec.description.functions}
    for name, n_tokens in ((DECODE, 1), (PREFILL, config.prefill_tokens)):
        found = coreml.declared(described[name]) if name in described else {}
        problems += coreml.differences(
            f"{name}: ", found, _interface(name, n_tokens, model, config)
        )
        problems += [
            f"{name}: {p}" for p in _function_problems(operations(spec, name), encoded, model)
        ]
    problems += [
        f"{name} is not in the program" for name in encoded.matrices if name not in layout.places
    ]
    problems += [
        f"{blob.key} has {blob.n_elements:,} elements"
        for _, blob in layout.places.values()
        if isinstance(blob.source, EncodedMatrix)
        and blob.n_elements != blob.source.rows * blob.source.cols
    ]
    if (n := spec.ByteSize()) > (limit := (2 + model.num_hidden_layers) * BYTES_PER_LAYER):
        problems.append(f"the program without weights has {n:,} bytes, expected {limit:,} at most")
    if problems:
        what = f"{TEMPLATE} is not the program that was asked for"
        raise ExportError(what, problems=problems, do="report this as a bug")


def _interface(
    name: str, n_tokens: int, model: LlamaConfig, config: MLProgramConfig
) -> dict[str, str]:
    """What a function declares, as `coreml.declared` reads it."""
    cache = (
        f"{model.num_hidden_layers}, {model.num_key_value_heads}, {config.context}, "
        f"{model.head_dim}"
    )
    return {
        "input input_ids": f"int32 [1, {n_tokens}]",
        "input position": "int32 [1]",
        **({"input last": "int32 [1]"} if name == PREFILL else {}),
        "output logits": f"float16 [1, {model.vocab_size}]",
        "state k_cache": f"float16 [{cache}]",
        "state v_cache": f"float16 [{cache}]",
    }


def _function_problems(ops: list[Any], encoded: EncodedModel, model: LlamaConfig) -> list[str]:
    """Every matrix is there once and compressed, products are as many as asked and none is dense;
    each state is read first, and after that only what was just written."""
    schemes = Counter(m.scheme for m in encoded.matrices.values())
    layers = model.num_hidden_layers
    expected = {
        "constexpr_lut_to_dense": schemes["ternary"],
        "constexpr_blockwise_shift_scale": schemes["int8"],
        "linear": 7 * layers + 1,
        "scaled_dot_product_attention": layers,
        "slice_update": 2 * layers,
        "matmul": 0,
        "conv": 0,
    }
    found = Counter(op.type for op in ops)
    problems = [
        f"{found[name]} x {name}, expected {n}" for name, n in expected.items() if found[name] != n
    ]
    orders: dict[str, list[str]] = {"k_cache": [], "v_cache": []}
    for op in ops:
        if op.type in ("read_state", "write_state"):
            orders.setdefault(op.inputs["input"].arguments[0].name, []).append(op.type)
    right = ["read_state", *["write_state", "read_state"] * layers]
    wrong = [name for name, order in orders.items() if order != right]
    return problems + [f"{name} is not read once and then updated in a chain" for name in wrong]

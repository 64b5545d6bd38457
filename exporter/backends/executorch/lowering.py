"""ExecuTorch programs: recording a network over the Tiny-QMoE operators, and writing the `.pte`.

A program has the Tiny-QMoE operators and nothing else, so it runs in an app that links ExecuTorch's
core runtime and our kernels. `native/executorch` computes them; of those that a program calls:

- `lzw_linear(x, blob, scales, out_features, group_size, int16_activations)`: float32 [.., in] ->
  [.., out_features], decoding fused with the product;
- `lzw_linears(x, blobs, scales, group_sizes, int16_activations)`: the same for several matrices
  that read one x (q, k and v; gate and up), each with a result of its own;
- `lzw_embedding(ids, blob, scales, embedding_dim, group_size)`: int64 [1, S] -> float32 [1, S,
  embedding_dim], decoding only the rows that are asked for;
- `rms_norm(x, weight, eps)`: of each run of n values of x, float32 [.., m n], for a weight [n];
- `rope_angles(tokens, input_pos, frequencies)`: cosines and sines, float32 [2, S, D/2];
- `attention(q, k, v, angles, input_pos, cache, context, kv_type)`: RoPE, the update of `cache`
  (uint8), and causal attention: float32 [1, S, H D] -> [1, S, H D];
- `swiglu(gate, up)`, `add(x, y)` where y may be a bias [n], `last(x)`: [1, S, n] -> [1, n].

`blob` is uint8 [n_bytes] (exporter/codec/FORMAT.md), `scales` float32 or uint16 [rows, n_groups]
(exporter/codec/scales.py);
`native/include/tinyqmoe/llm.h` says what the others compute. Blobs and scales are copied from the
files of the encoded model into the program, so the weights are never in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exporter.backends.executorch.exir import without_exporter
from exporter.backends.executorch.graph import ALIGNMENT, Call, Constant, Graph, Value, bytes_of
from exporter.backends.executorch.kv_cache import KV_TYPES, cache_bytes
from exporter.bundle import HEAD, KVType
from exporter.codec.scale_types import ScaleType
from exporter.encoded import EncodedModel
from exporter.errors import ExportError
from exporter.models.config import ModelConfig, rope_frequencies
from exporter.quiet import quiet

if TYPE_CHECKING:
    from executorch.exir.schema import Program

# Operators over matrices, below `tinyqmoe::`.
LINEAR, LINEARS, EMBED = "lzw_linear", "lzw_linears", "lzw_embedding"
# This is the longest input of one call: activations are planned for it, and longer ones are no
# faster.
PREFILL_TOKENS = 128
SCALE_TYPES: dict[ScaleType, torch.dtype] = {"float32": torch.float32, "ue6m10": torch.uint16}
CACHE_ALIGNMENT = 64  # bytes that a cache has more than it needs: a runtime aligns to 16
# Read at a time. The 8 MiB of ExecuTorch's own copy are new memory each time: twice as slow.
COPIED_BYTES = 1 << 20


@dataclass(frozen=True)
class ProgramConfig:
    """The settings that a program is made for.

    `context` is the number of cache slots.
    """

    context: int
    int16_activations: bool
    kv_type: KVType
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def prefill_tokens(self) -> int:
        return min(self.context, PREFILL_TOKENS)

    def methods(self) -> dict[str, Any]:
        """Constant methods of the program, by name.

        They are those that ExecuTorch's stock text runner asks for, and the arithmetic, which our
        own runner checks.
        """
        methods: dict[str, Any] = {
            "get_max_seq_len": self.prefill_tokens,
            "get_max_context_len": self.context,
            "get_eos_ids": list(self.eos_token_ids),
            "enable_dynamic_shape": True,
            "use_kv_cache": True,
            "use_sdpa_with_kv_cache": True,
            "get_int16_activations": self.int16_activations,
        }
        return methods if self.bos_token_id is None else methods | {"get_bos_id": self.bos_token_id}


@dataclass(frozen=True)
class EmittedProgram:
    """A `.pte` that was written.

    Offsets are in bytes from the start of the file; vectors are float32.
    """

    blob_offsets: dict[str, int]
    scales_offsets: dict[str, int]
    vector_offsets: dict[str, int]
    vector_bytes: int  # equal vectors are there once
    operators: dict[str, int]
    n_products: int
    arena_bytes: int


def join_products(graph: Graph) -> None:
    """Makes one call of the products that have the same input.

    Their input is quantized once then, and threads wait for each other once.
    """
    products: dict[int, list[int]] = {}
    for at, call in graph.calls.items():
        if call.name == LINEAR:
            products.setdefault(call.arguments[0], []).append(at)
    for x, places in products.items():
        if len(places) > 1:
            calls = [graph.calls[at] for at in places]
            blobs, scales, _, sizes, int16 = zip(*(c.arguments[1:] for c in calls), strict=True)
            lists = [graph.tensors([*blobs]), graph.tensors([*scales]), graph.numbers([*sizes])]
            outs = [out for call in calls for out in call.outs]
            graph.join(places, Call(LINEARS, [x, *lists, int16[0]], outs))


class Recorded(nn.Module):
    """A module that records a call in a program instead of computing: values in, a value out."""

    def __init__(self, record: Callable[..., Value]) -> None:
        super().__init__()
        self.record = record

    def forward(self, *values: Any) -> Value:
        return self.record(*values)


class ProgramLayers:
    """The `models.layers.Layers` of a network that is recorded in a program."""

    def __init__(self, encoded: EncodedModel, config: ProgramConfig, graph: Graph) -> None:
        self.encoded, self.config, self.graph = encoded, config, graph
        self._coded: dict[str, tuple[Value, Value]] = {}

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        matrix, int16 = self.encoded.matrices[name], self.config.int16_activations

        def record(x: Value) -> Value:
            last = (matrix.rows, matrix.group_size, int16)
            return self._like(x, LINEAR, x, *self._coded_of(name), *last, n=matrix.rows)

        return Recorded(record)

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        group_size = self.encoded.matrices[name].group_size
        sizes = (1, self.graph.tokens, cols)

        def record(ids: Value) -> Value:
            arguments = (ids, *self._coded_of(name), cols, group_size)
            return self.graph.call(EMBED, *arguments, sizes=sizes, dynamic=ids.dynamic)

        return Recorded(record)

    def norm(self, name: str, eps: float) -> nn.Module:
        weight = self.graph.vector(self.vector(name))
        return Recorded(lambda x: self._like(x, "rms_norm", x, weight, eps))

    def rotation(self, config: ModelConfig) -> nn.Module:
        frequencies = self.graph.vector(rope_frequencies(config))
        sizes = (2, self.graph.tokens, config.head_dim // 2)

        def record(tokens: Value, input_pos: Value) -> Value:
            arguments = (tokens, input_pos, frequencies)
            return self.graph.call("rope_angles", *arguments, sizes=sizes, dynamic=tokens.dynamic)

        return Recorded(record)

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        kv_type = self.config.kv_type
        n_bytes = cache_bytes(kv_type, config.num_key_value_heads, config.head_dim, context)
        cache = self.graph.cache(n_bytes + CACHE_ALIGNMENT)
        last = (cache, context, KV_TYPES[kv_type])
        return Recorded(lambda q, *others: self._like(q, "attention", q, *others, *last))

    def gated(self) -> nn.Module:
        return Recorded(lambda gate, up: self._like(gate, "swiglu", gate, up))

    def add(self) -> nn.Module:
        def record(x: Value, y: Value | Tensor) -> Value:
            other = self.graph.vector(y) if isinstance(y, Tensor) else y
            return self._like(x, "add", x, other)

        return Recorded(record)

    def last(self) -> nn.Module:
        return Recorded(lambda x: self.graph.call("last", x, sizes=(1, x.sizes[-1]), dynamic=False))

    def vector(self, name: str) -> Tensor:
        return self.encoded.vectors[name]

    def _like(self, x: Value, name: str, *arguments: Any, n: int | None = None) -> Value:
        """A call whose result has the sizes of x, with the last one `n` if it is given."""
        sizes = x.sizes if n is None else (*x.sizes[:-1], n)
        return self.graph.call(name, *arguments, sizes=sizes, dynamic=x.dynamic)

    def _coded_of(self, name: str) -> tuple[Value, Value]:
        """Blob and scales of a matrix: its files as constants, once."""
        from executorch.exir._serialize._cord import FileBackedData

        if name not in self._coded:
            matrix = self.encoded.matrices[name]
            blob, scales = (
                FileBackedData(str(path)) for path in (matrix.blob_path, matrix.scales_path)
            )
            self._coded[name] = (
                self.graph.constant(Constant(blob, (matrix.blob_bytes,), torch.uint8)),
                self.graph.constant(
                    Constant(scales, (matrix.rows, matrix.n_groups), SCALE_TYPES[matrix.scale_type])
                ),
            )
        return self._coded[name]


def emit(
    encoded: EncodedModel,
    vectors: Mapping[str, Tensor],
    network: Callable[[ProgramLayers], nn.Module],
    config: ProgramConfig,
    path: Path,
) -> EmittedProgram:
    """Records a network, writes the `.pte`, and checks what was written.

    `vectors` are float32, by name: what else the program holds. Raises ExportError if it is not
    what it should be.
    """
    graph = Graph(config.prefill_tokens)
    with quiet(), without_exporter():  # what executorch imports warns about its own insides
        model = network(ProgramLayers(encoded, config, graph))
        tokens = graph.input((1, graph.tokens), torch.int64, dynamic=graph.tokens > 1)
        logits = model(tokens, graph.input((1,), torch.int64, dynamic=False))
        join_products(graph)
        program = graph.program(logits, config.methods())
        at = write(program, path)
    keys = {name: bytes_of(vector) for name, vector in vectors.items()}
    sources: dict[str, set[Path | bytes]] = {
        m.name: {m.blob_path, m.scales_path} for m in encoded.matrices.values()
    }
    sources |= {name: {key} for name, key in keys.items()}
    if absent := [name for name, parts in sources.items() if not parts <= at.keys()]:
        raise _wrong_program(path, [f"{name} is not in the program" for name in absent])
    emitted = EmittedProgram(
        blob_offsets={m.name: at[m.blob_path] for m in encoded.matrices.values()},
        scales_offsets={m.name: at[m.scales_path] for m in encoded.matrices.values()},
        vector_offsets={name: at[key] for name, key in keys.items()},
        vector_bytes=sum(map(len, set(keys.values()))),
        operators=graph.census(),
        n_products=sum(len(c.outs) for c in graph.calls.values() if c.name in (LINEAR, LINEARS)),
        arena_bytes=sum(program.execution_plan[0].non_const_buffer_sizes),
    )
    _check(emitted, encoded, path)
    return emitted


def write(program: Program, path: Path) -> dict[Path | bytes, int]:
    """Serializes the program to `path`.

    Returns the offset of each file of the encoded model, and of each other constant, in bytes.
    """
    from executorch.exir._serialize._cord import FileBackedData
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
    from executorch.exir._serialize._program import PTEFile, serialize_pte_binary

    cord = serialize_pte_binary(
        PTEFile(
            program=program,
            mutable_data=None,
            named_data=NamedDataStoreOutput(buffers=[], pte_data={}, external_data={}),
        ),
        constant_tensor_alignment=ALIGNMENT,
    )
    offsets: dict[Path | bytes, int] = {}
    with path.open("wb") as file:
        for part in cord._buffers:
            at = file.tell()
            if isinstance(part, FileBackedData):
                offsets[Path(part._path)] = at
                with open(part._path, "rb") as stored:
                    shutil.copyfileobj(stored, file, COPIED_BYTES)
            else:
                offsets[bytes(part)] = at
                file.write(part)
    return offsets


def _check(emitted: EmittedProgram, encoded: EncodedModel, path: Path) -> None:
    """Checks that a written program is the one that was asked for.

    Matrices are multiplied as often as asked, every matrix is in the file once and whole, and
    nothing else is large. Raises ExportError with all that is wrong.
    """
    n_products = len(encoded.matrices) - (HEAD in encoded.matrices)
    operator = f"tinyqmoe::{EMBED}.out"
    problems = []
    if emitted.n_products != n_products:
        problems.append(f"it has {emitted.n_products} products of matrices, expected {n_products}")
    if (lookups := emitted.operators.get(operator, 0)) != 1:
        problems.append(f"{operator} is called {lookups} times, expected 1")
    with path.open("rb") as file:
        for matrix in encoded.matrices.values():
            at = emitted.blob_offsets[matrix.name]
            file.seek(at)
            with matrix.blob_path.open("rb") as blob:
                if file.read(64) != blob.read(64):
                    problems.append(f"{matrix.name} is not at byte {at}")
    coded_bytes = sum(m.blob_bytes + m.scales_bytes for m in encoded.matrices.values())
    rest_bytes = path.stat().st_size - coded_bytes - emitted.vector_bytes
    n_constants = 2 * len(encoded.matrices) + len(emitted.vector_offsets)
    limit = ALIGNMENT * n_constants + 1024 * sum(emitted.operators.values()) + 16384
    if rest_bytes > limit:
        problems.append(
            f"{rest_bytes:,} bytes are neither codes, scales nor vectors, expected at most "
            f"{limit:,}: are weights stored dense?"
        )
    if problems:
        raise _wrong_program(path, problems)


def _wrong_program(path: Path, problems: list[str]) -> ExportError:
    what = f"{path.name} is not the program that was asked for"
    return ExportError(what, problems=problems, hint="report this as a bug")

"""ExecuTorch: one `.pte` with the Tiny-QMoE operators, a static KV cache, and XNNPACK for what is
not ours.

The program is lowered with a 64-byte stand-in for every blob and every scale tensor. The stand-ins
are replaced by the files of the encoded model when the program is written, so the weights are never
in memory, and no pass can fold decoded weights into the file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exporter.backends.executorch import operators  # noqa: F401  (registers torch.ops.tinyqmoe)
from exporter.bundle import HEAD
from exporter.encoded import EncodedMatrix, EncodedModel
from exporter.errors import ExportError
from exporter.models.config import ModelConfig
from exporter.quiet import quiet

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager
    from executorch.exir.schema import Program

STAND_IN_BYTES = 64
ALIGNMENT = 64  # of every constant: the blobs' own sections are aligned to 64 bytes
# the longest input of one call: activations are planned for it, and longer ones are no faster
PREFILL_TOKENS = 128


@dataclass(frozen=True)
class ProgramConfig:
    """What a program is lowered for. `context` is the number of cache slots."""

    context: int
    int16_activations: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def prefill_tokens(self) -> int:
        return min(self.context, PREFILL_TOKENS)


@dataclass(frozen=True)
class EmittedProgram:
    """A written `.pte`. Offsets are from the start of the file."""

    blob_offsets: dict[str, int]
    scales_offsets: dict[str, int]
    operators: dict[str, int]
    arena_bytes: int
    delegates: int
    constants_bytes: int  # norm weights and other constants that are not ours


def stand_in(name: str, kind: str) -> bytes:
    """Bytes that mark where a constant goes; one matrix used twice has one stand-in, and so one
    copy in the file."""
    return hashlib.sha512(f"{kind} {name}".encode()).digest()


class _Coded(nn.Module):
    """Stand-ins for the blob and the scales of one matrix."""

    blob: Tensor
    scales: Tensor

    def __init__(self, matrix: EncodedMatrix) -> None:
        super().__init__()
        blob, scales = (
            bytearray(stand_in(matrix.name, "blob")),
            bytearray(stand_in(matrix.name, "scales")),
        )
        self.register_buffer("blob", torch.frombuffer(blob, dtype=torch.uint8))
        self.register_buffer("scales", torch.frombuffer(scales, dtype=torch.float32).reshape(1, -1))
        self.rows, self.cols, self.group_size = matrix.rows, matrix.cols, matrix.group_size


class LZWLinear(_Coded):
    """x float32 [.., in] -> [.., out] by `tinyqmoe::lzw_linear`."""

    def __init__(self, matrix: EncodedMatrix, int16_activations: bool) -> None:
        super().__init__(matrix)
        self.int16_activations = int16_activations

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.tinyqmoe.lzw_linear(
            x, self.blob, self.scales, self.rows, self.group_size, self.int16_activations
        )
        return y


class LZWEmbedding(_Coded):
    """ids int64 [1, S] -> float32 [1, S, cols] by `tinyqmoe::lzw_embedding`."""

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = torch.ops.tinyqmoe.lzw_embedding(
            ids, self.blob, self.scales, self.cols, self.group_size
        )
        return rows


class CachedAttention(nn.Module):
    """Causal attention over a static cache [1, C, KV, D] by ExecuTorch's `llama::` operators."""

    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        shape = (1, context, config.num_key_value_heads, config.head_dim)
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))
        self.context = context

    def forward(self, q: Tensor, k: Tensor, v: Tensor, input_pos: Tensor) -> Tensor:
        start = input_pos[0].item()
        torch._check_is_size(start)
        torch._check(start < self.context)
        torch.ops.llama.update_cache(k, self.k_cache, start)
        torch.ops.llama.update_cache(v, self.v_cache, start)
        y: Tensor = torch.ops.llama.custom_sdpa(q, self.k_cache, self.v_cache, start, None, 0, True)
        return y


class ProgramLayers:
    """`models.layers.Layers` for lowering."""

    def __init__(self, encoded: EncodedModel, int16_activations: bool) -> None:
        self.encoded, self.int16_activations = encoded, int16_activations

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        return LZWLinear(self.encoded.matrices[name], self.int16_activations)

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        return LZWEmbedding(self.encoded.matrices[name])

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        return CachedAttention(config, context)

    def vector(self, name: str) -> Tensor:
        return self.encoded.vectors[name]


def emit(
    encoded: EncodedModel, network: nn.Module, config: ProgramConfig, path: Path
) -> EmittedProgram:
    """Lowers a network over `ProgramLayers` and writes the `.pte`, then checks what was written.

    Raises ExportError if it is not what it should be.
    """
    manager = lower(network, config)
    program = manager.executorch_program
    census = _operator_census(program)
    constants_bytes = _fill_stand_ins(program, encoded)
    offsets = _write(manager, path)
    absent = [
        m.name
        for m in encoded.matrices.values()
        if not {m.blob_path, m.scales_path} <= offsets.keys()
    ]
    if absent:
        problems = [f"{name} is not in the program" for name in absent]
        what = f"{path.name} is not the program that was asked for"
        raise ExportError(what, problems=problems, hint="report this as a bug")
    emitted = EmittedProgram(
        blob_offsets={m.name: offsets[m.blob_path] for m in encoded.matrices.values()},
        scales_offsets={m.name: offsets[m.scales_path] for m in encoded.matrices.values()},
        operators=census,
        arena_bytes=sum(program.execution_plan[0].non_const_buffer_sizes),
        delegates=len(program.execution_plan[0].delegates),
        constants_bytes=constants_bytes,
    )
    _check(emitted, encoded, path)
    return emitted


def lower(model: nn.Module, config: ProgramConfig) -> ExecutorchProgramManager:
    """`torch.export`, XNNPACK partitioning, memory planning, emission."""
    with quiet():  # lowering logs and warns about its own insides; none of it is for the user
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  (registers torch.ops.llama)
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import (
            EdgeCompileConfig,
            ExecutorchBackendConfig,
            to_edge_transform_and_lower,
        )
        from executorch.exir.passes import MemoryPlanningPass
        from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

        # Two tokens as the example: an example of one would be specialised to one.
        n_tokens = min(2, config.prefill_tokens)
        example = (torch.zeros(1, n_tokens, dtype=torch.long), torch.zeros(1, dtype=torch.long))
        length = (
            torch.export.Dim("length", min=1, max=config.prefill_tokens) if n_tokens > 1 else None
        )
        with torch.no_grad():
            exported = torch.export.export(
                model, example, dynamic_shapes=({1: length} if length else None, None), strict=False
            )
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=_metadata(config),
        )
        return edge.to_executorch(
            ExecutorchBackendConfig(
                extract_delegate_segments=True,
                constant_tensor_alignment=ALIGNMENT,
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            )
        )


def _metadata(config: ProgramConfig) -> dict[str, Any]:
    """The constant methods ExecuTorch's stock text runner asks for, and the arithmetic, which our
    own checks."""
    methods: dict[str, Any] = {
        "get_max_seq_len": config.prefill_tokens,
        "get_max_context_len": config.context,
        "get_eos_ids": list(config.eos_token_ids),
        "enable_dynamic_shape": True,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "get_int16_activations": config.int16_activations,
    }
    return methods if config.bos_token_id is None else methods | {"get_bos_id": config.bos_token_id}


def _operator_census(program: Program) -> dict[str, int]:
    """How often each operator is called, by name with overload."""
    plan = program.execution_plan[0]
    names = [f"{op.name}.{op.overload}" if op.overload else op.name for op in plan.operators]
    calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
    return dict(Counter(names[c.op_index] for c in calls if hasattr(c, "op_index")))


def _fill_stand_ins(program: Program, encoded: EncodedModel) -> int:
    """Puts the files of the encoded model where their stand-ins are; returns the bytes of all other
    constants."""
    from executorch.exir._serialize._cord import FileBackedData
    from executorch.exir.schema import Tensor as TensorValue

    files = {}
    for m in encoded.matrices.values():
        files[stand_in(m.name, "blob")] = (m.blob_path, [m.blob_bytes])
        files[stand_in(m.name, "scales")] = (m.scales_path, [m.rows, m.n_groups])
    sizes_of_buffer = {}
    others = 0
    for index, buffer in enumerate(program.constant_buffer):
        if buffer.storage not in files:
            others += len(buffer.storage)
            continue
        path, sizes = files[buffer.storage]
        buffer.storage = FileBackedData(str(path))
        sizes_of_buffer[index] = sizes
    for value in (v.val for plan in program.execution_plan for v in plan.values):
        constant = isinstance(value, TensorValue) and value.allocation_info is None
        if constant and value.data_buffer_idx in sizes_of_buffer:
            value.sizes = sizes_of_buffer[value.data_buffer_idx]
    return others


def _write(manager: ExecutorchProgramManager, path: Path) -> dict[Path, int]:
    """Serializes the program to `path`; returns where each file of the encoded model was placed."""
    from executorch.exir._serialize._cord import FileBackedData
    from executorch.exir._serialize._program import PTEFile, serialize_pte_binary

    emitted = manager._emitter_output
    cord = serialize_pte_binary(
        PTEFile(
            program=emitted.program,
            mutable_data=emitted.mutable_data,
            named_data=manager._named_data,
        ),
        extract_delegate_segments=True,
        constant_tensor_alignment=ALIGNMENT,
    )
    offsets, at = {}, 0
    for part in cord._buffers:
        if isinstance(part, FileBackedData):
            offsets[Path(part._path)] = at
        at += len(part)
    with path.open("wb") as file:
        cord.write_to_file(file)
    return offsets


def _check(emitted: EmittedProgram, encoded: EncodedModel, path: Path) -> None:
    """The operators are there as often as asked, every matrix is in the file once and whole,
    nothing else is large."""
    problems = []
    expected = {
        "tinyqmoe::lzw_linear.out": len(encoded.matrices) - (HEAD in encoded.matrices),
        "tinyqmoe::lzw_embedding.out": 1,
    }
    for name, count in expected.items():
        if emitted.operators.get(name, 0) != count:
            problems.append(
                f"{name} is called {emitted.operators.get(name, 0)} times, expected {count}"
            )
    with path.open("rb") as file:
        for matrix in encoded.matrices.values():
            file.seek(emitted.blob_offsets[matrix.name])
            with matrix.blob_path.open("rb") as blob:
                if file.read(64) != blob.read(64):
                    problems.append(
                        f"{matrix.name} is not at byte {emitted.blob_offsets[matrix.name]}"
                    )
    # XNNPACK keeps its own copy of a norm weight and some tables; a dense matrix would be far
    # larger than all of it.
    coded_bytes = sum(m.blob_bytes + m.scales_bytes for m in encoded.matrices.values())
    small_bytes = sum(v.numel() * 4 for v in encoded.vectors.values())
    rest_bytes = path.stat().st_size - coded_bytes
    calls = sum(emitted.operators.values())
    limit = (
        2 * small_bytes
        + 2 * ALIGNMENT * len(encoded.matrices)
        + 768 * calls
        + 2048 * emitted.delegates
        + 16384
    )
    if rest_bytes > limit or emitted.constants_bytes > small_bytes + 4096:
        what = f"{rest_bytes:,} bytes are neither codes nor scales, expected at most {limit:,}"
        problems.append(f"{what}: are weights stored dense?")
    if problems:
        what = f"{path.name} is not the program that was asked for"
        raise ExportError(what, problems=problems, hint="report this as a bug")

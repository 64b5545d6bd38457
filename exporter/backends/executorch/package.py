"""The package format `pte`: an ExecuTorch program in a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.backends.package import (
    Emitted,
    ExportMemory,
    Growth,
    PackageInput,
    PlannedModel,
    matrix_rows,
    rows_of,
)
from exporter.bundle import PROGRAM, Artifact, KVType, Location, VectorLocation
from exporter.models.config import ModelConfig, rope_frequencies
from exporter.progress import Progress

if TYPE_CHECKING:
    from exporter.backends.executorch.lowering import EmittedProgram
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig
    from exporter.encoded import EncodedModel

NAME, TOOL = "pte", "executorch"
ROPE = "rope.frequencies"
# Measured over 1 to 32 layers; half of it is holes in the heap that what follows may leave.
MEMORY = ExportMemory("writing the ExecuTorch program", Growth(100, 0.3), Growth(100, 0.3))
CALLS_A_LAYER, OTHER_CALLS = 10, 5  # of operators
PLANNED_BESIDES = 32_768  # bytes of the arena that do not follow the model


def supports(family: str) -> str | None:
    """No reason against any family (None): whatever network a family builds is lowered."""
    return None


def check(config: ExportConfig, checkpoint: Checkpoint) -> None:
    """Refuses nothing: the program holds any group size."""


def emit(source: PackageInput, progress: Progress) -> Emitted:
    """Writes the program into the bundle.

    Raises ExportError if it is not what was asked.
    """
    from exporter.backends.executorch import lowering

    progress("lower to ExecuTorch", 0, 0)
    checkpoint, encoded = source.checkpoint, source.encoded
    activations, kv_type = source.config.activations, source.config.kv_cache
    config = lowering.ProgramConfig(
        source.context,
        activations == "int16",
        kv_type,
        checkpoint.bos_token_id,
        checkpoint.eos_token_ids,
    )
    path = source.work / PROGRAM
    vectors = encoded.vectors | {ROPE: rope_frequencies(checkpoint.config)}
    emitted = lowering.emit(
        encoded, vectors, lambda layers: checkpoint.network(source.context, layers), config, path
    )
    artifact = Artifact(
        format=NAME,
        path=path.name,
        files=[path.name],
        activations=activations,
        kv_type=kv_type,
        prefill_tokens=config.prefill_tokens,
        kv_cache_bytes=kv_cache_bytes(checkpoint.config, source.context, kv_type),
        operators=dict(sorted(emitted.operators.items())),
        places=_places(encoded, emitted),
        vectors={
            name: VectorLocation(PROGRAM, emitted.vector_offsets[name], vector.numel())
            for name, vector in vectors.items()
        },
        details={"arena_bytes": emitted.arena_bytes},
    )
    rows = matrix_rows(source) | {"norms, biases, rope frequencies": emitted.vector_bytes}
    return Emitted(artifact, rows_of(path, path.name, rows, "graph, alignment"), [])


def _places(encoded: EncodedModel, emitted: EmittedProgram) -> dict[str, Location]:
    """The place of each matrix in the program, by name."""
    return {
        m.name: Location(
            PROGRAM,
            "tqlz",
            emitted.blob_offsets[m.name],
            m.blob_bytes,
            emitted.scales_offsets[m.name],
            m.scales_bytes,
            m.scales_crc32,
        )
        for m in encoded.matrices.values()
    }


def kv_cache_bytes(model: ModelConfig, context: int, kv_type: KVType) -> int:
    """Size of the KV cache of all layers, in bytes."""
    from exporter.backends.executorch.kv_cache import cache_bytes

    one = cache_bytes(kv_type, model.num_key_value_heads, model.head_dim, context)
    return model.num_hidden_layers * one


def estimate(planned: PlannedModel) -> Artifact:
    """The package that an export would write, as far as shapes tell."""
    from exporter.backends.executorch.lowering import PREFILL_TOKENS

    model, tokens = planned.config, min(planned.context, PREFILL_TOKENS)
    cache = kv_cache_bytes(model, planned.context, planned.kv_cache)
    widest = max(3 * model.intermediate_size + model.hidden_size, model.vocab_size // tokens)
    return Artifact(
        format=NAME,
        path=PROGRAM,
        files=[PROGRAM],
        activations=planned.activations,
        kv_type=planned.kv_cache,
        prefill_tokens=tokens,
        kv_cache_bytes=cache,
        operators={"calls": CALLS_A_LAYER * model.num_hidden_layers + OTHER_CALLS},
        places={t.name: Location(PROGRAM, "tqlz", 0, t.blob_bytes) for t in planned.tensors},
        vectors={},
        details={"arena_bytes": cache + 4 * tokens * widest + PLANNED_BESIDES},
    )

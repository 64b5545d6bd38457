"""The package format `pte`: an ExecuTorch program in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.backends.package import (
    Emitted,
    ExportMemory,
    Growth,
    PackageInput,
    PlannedModel,
    kv_cache_values,
    matrix_rows,
    rows_of,
)
from exporter.bundle import PROGRAM, VECTORS, Artifact, LedgerRow, Location, VectorLocation
from exporter.models.config import rope_frequencies
from exporter.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig

NAME, TOOL = "pte", "executorch"
ROPE = "rope.frequencies"
# Measured over 1 to 32 layers: the passes hold several versions of a program and of its caches.
MEMORY = ExportMemory("lowering to ExecuTorch", Growth(194, 4.5, 0.31, 1.8), Growth(190, 10, 0, 1))
CALLS_A_LAYER, OTHER_CALLS = 20, 9  # of operators
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
    checkpoint = source.checkpoint
    activations = source.config.activations
    config = lowering.ProgramConfig(
        source.context,
        activations == "int16",
        checkpoint.bos_token_id,
        checkpoint.eos_token_ids,
    )
    path = source.work / PROGRAM
    layers = lowering.ProgramLayers(source.encoded, config.int16_activations)
    network = checkpoint.network(source.context, layers)
    emitted = lowering.emit(source.encoded, network, config, path)
    places = {
        m.name: Location(
            path.name,
            "tqlz",
            emitted.blob_offsets[m.name],
            m.blob_bytes,
            emitted.scales_offsets[m.name],
        )
        for m in source.encoded.matrices.values()
    }
    frequencies = {ROPE: rope_frequencies(checkpoint.config)}
    vectors = _write_vectors(source.encoded.vectors | frequencies, source.work / VECTORS)
    artifact = Artifact(
        format=NAME,
        path=path.name,
        files=[path.name, VECTORS],
        activations=activations,
        prefill_tokens=config.prefill_tokens,
        kv_cache_bytes=4 * kv_cache_values(checkpoint.config, source.context),
        operators=dict(sorted(emitted.operators.items())),
        places=places,
        vectors=vectors,
        details={"arena_bytes": emitted.arena_bytes, "delegates": emitted.delegates},
    )
    rows = matrix_rows(source) | {"norms, rope frequencies": emitted.constants_bytes}
    ledger = rows_of(path, path.name, rows, "graph, delegates, alignment")
    n_bytes = (source.work / VECTORS).stat().st_size
    ledger.append(LedgerRow(VECTORS, "norms, biases, rope frequencies, for sessions", n_bytes))
    return Emitted(artifact, ledger, [])


def _write_vectors(vectors: dict[str, Tensor], path: Path) -> dict[str, VectorLocation]:
    """Writes vectors one after the other, in float32; returns where each lies."""
    locations, at = {}, 0
    with path.open("wb") as file:
        for name, vector in vectors.items():
            locations[name] = VectorLocation(path.name, at, vector.numel())
            at += file.write(vector.numpy().astype("<f4").tobytes())
    return locations


def estimate(planned: PlannedModel) -> Artifact:
    """The package that an export would write, as far as shapes tell."""
    from exporter.backends.executorch.lowering import PREFILL_TOKENS

    model, tokens = planned.config, min(planned.context, PREFILL_TOKENS)
    cache = 4 * kv_cache_values(model, planned.context)
    widest = max(3 * model.intermediate_size + model.hidden_size, model.vocab_size // tokens)
    return Artifact(
        format=NAME,
        path=PROGRAM,
        files=[PROGRAM, VECTORS],
        activations=planned.activations,
        prefill_tokens=tokens,
        kv_cache_bytes=cache,
        operators={"calls": CALLS_A_LAYER * model.num_hidden_layers + OTHER_CALLS},
        places={t.name: Location(PROGRAM, "tqlz", 0, t.blob_bytes) for t in planned.tensors},
        vectors={},
        details={"arena_bytes": cache + 4 * tokens * widest + PLANNED_BESIDES},
    )

"""The manifest an export would write, as far as shapes alone tell: for `tinyqmoe fit` before
anything is exported.

Sizes of codes are those of typical trained weights; everything else follows from shapes. No weight
is read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from exporter import bundle as bundles
from exporter.backends import coreml_mlprogram, executorch
from exporter.bundle import (
    Artifact,
    FileEntry,
    Interface,
    Manifest,
    ModelEntry,
    Place,
    QuantizationLoss,
    TensorEntry,
)
from exporter.codec.format import align, packed_bytes
from exporter.packages import CUSTOM_OP_PACKAGE, CUSTOM_OP_TOKENS
from exporter.quant import SCHEMES
from exporter.quant.tensor import effective_group_size

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig

TOKENS = {  # of the longest call
    "pte": executorch.PREFILL_TOKENS,
    "mlprogram": coreml_mlprogram.PREFILL_TOKENS,
    "custom-op": CUSTOM_OP_TOKENS,
}
# of ternary levels where no share is asked for: normal weights, threshold 0.7 of the mean magnitude
USUAL_ZEROS = 0.42
CODING_LOSS = 1.02  # codes against entropy
GRAPH_BYTES = 250_000  # of a program or a network, without weights
CALLS = {
    "pte": (20, 9),
    "mlprogram": (148, 51),
    "custom-op": (76, 48),
}  # of operators, a layer and besides
PLANNED_BESIDES = 32_768


def outline(checkpoint: Checkpoint, config: ExportConfig, context: int) -> Manifest:
    """What `pipeline.export` would write. Hashes, checksums and what quantization costs are not in
    it."""
    tensors = [
        _tensor(checkpoint, config, name)
        for name in checkpoint.names
        if config.quantization.scheme_for(name)
    ]
    tokenizer = [FileEntry(f.name, f.stat().st_size, "") for f in checkpoint.tokenizer_files]
    artifacts = [_artifact(checkpoint, config, context, name, tensors) for name in config.formats]
    files = [FileEntry(a.files[0], _package_bytes(a, tensors), "") for a in artifacts]
    model = checkpoint.config
    return Manifest(
        schema_version=bundles.SCHEMA_VERSION,
        created="",
        tools={},
        model=ModelEntry(
            checkpoint.path.resolve().name,
            checkpoint.parameters,
            checkpoint.source_bytes,
            checkpoint.config_dict,
        ),
        quantization=config.quantization.to_dict(),
        quantization_loss=QuantizationLoss(0, 0.0, 0.0, 0.0, 0.0),
        interface=Interface(
            context, model.vocab_size, model.bos_token_id, list(checkpoint.eos_token_ids)
        ),
        artifacts=artifacts,
        prompts=[],
        tensors=tensors,
        files=[*files, *tokenizer],
    )


def _tensor(checkpoint: Checkpoint, config: ExportConfig, name: str) -> TensorEntry:
    quantization, (rows, cols) = config.quantization, checkpoint.shape(name)
    scheme, settings = quantization.scheme_for(name), quantization.config_for(name)
    assert scheme is not None  # the caller leaves out norms
    assert settings is not None
    n_levels = SCHEMES[scheme].N_LEVELS
    zeros = (getattr(settings, "sparsity", None) or USUAL_ZEROS) if scheme == "ternary" else 0.01
    entropy = _ternary_entropy(zeros) if scheme == "ternary" else 7.2
    raw_bits = 2 if n_levels <= 4 else 8
    bits = min(raw_bits, entropy * CODING_LOSS)
    if config.codec == "raw" or scheme == "int8":
        bits = raw_bits
    coded = bits < raw_bits
    blob = align(64 + int(rows * packed_bytes(cols, 1) * bits), 64)
    group = effective_group_size(settings.group_size, cols)
    # Dense levels are smallest in codewords of 8 bits, sparse ones in those of 12.
    code_bits, cap = (8, 16) if zeros < 0.45 else (12, 32)
    return TensorEntry(
        name=name,
        rows=rows,
        cols=cols,
        scheme=scheme,
        n_levels=n_levels,
        group_size=group,
        codec="lzw" if coded else "raw",
        code_bits=code_bits if coded else raw_bits,
        cap=cap if coded else 0,
        bits_per_weight=bits,
        entropy_bits=entropy,
        zeros=zeros,
        levels_crc32=0,
        blob_bytes=blob,
        scales_bytes=4 * rows * -(-cols // group),
        sizes_bytes={},
    )


def _ternary_entropy(zeros: float) -> float:
    """Bits a level, the rest in equal parts -1 and 1."""
    rest = (1 - zeros) / 2
    return -(zeros * math.log2(zeros) + 2 * rest * math.log2(rest)) if 0 < zeros < 1 else 1.0


def _artifact(
    checkpoint: Checkpoint,
    config: ExportConfig,
    context: int,
    name: str,
    tensors: list[TensorEntry],
) -> Artifact:
    model = checkpoint.config
    values = 2 * model.num_hidden_layers * context * model.num_key_value_heads * model.head_dim
    cache = values * (2 if name == "mlprogram" else 4)
    tokens = min(context, TOKENS[name])
    calls_a_layer, other_calls = CALLS[name]
    path = {"pte": bundles.PROGRAM, "mlprogram": "model.mlpackage", "custom-op": CUSTOM_OP_PACKAGE}[
        name
    ]
    planned = max(3 * model.intermediate_size + model.hidden_size, model.vocab_size // tokens)
    arena = cache + 4 * tokens * planned + PLANNED_BESIDES
    return Artifact(
        format=name,
        path=path,
        files=[path],
        activations="float16" if name == "mlprogram" else config.activations,
        prefill_tokens=tokens,
        kv_cache_bytes=cache,
        operators={"calls": calls_a_layer * model.num_hidden_layers + other_calls},
        places={t.name: _place(path, name, t) for t in tensors},
        details={"arena_bytes": arena} if name == "pte" else {},
    )


def _place(path: str, name: str, t: TensorEntry) -> Place:
    """An ML Program holds levels as plain numbers, the others hold blobs."""
    if name != "mlprogram":
        return Place(path, "tqlz", 0, t.blob_bytes)
    form, bits = ("uint2", 2) if t.n_levels <= 4 else ("int8", 8)
    return Place(path, form, 0, t.rows * packed_bytes(t.cols, bits))


def _package_bytes(artifact: Artifact, tensors: list[TensorEntry]) -> int:
    return GRAPH_BYTES + sum(artifact.places[t.name].n_bytes + t.scales_bytes for t in tensors)

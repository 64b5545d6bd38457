"""The bundle that an export would write, as far as shapes alone tell: for `tinyqmoe fit`.

Sizes of codes are those of typical trained weights; everything else follows from shapes. No weight
is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter import bundle as bundles
from exporter import manifest, quant
from exporter.backends import registry
from exporter.backends.package import PlannedModel, network_entry
from exporter.bundle import (
    Artifact,
    FileEntry,
    Manifest,
    QuantizationLoss,
    TensorEntry,
)
from exporter.codec.encoder import gain
from exporter.codec.format import BASE3_DIGITS, LZW_CODE_BITS, align, packed_bytes
from exporter.codec.growth import best_cap
from exporter.codec.scale_types import SCALE_BYTES
from exporter.codec.weight_file import plain_form
from exporter.quant.plan import plan_matrix, summary
from exporter.quant.tensor import effective_group_size

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig

CODING_LOSS = 1.01  # phrases with their tables and index against entropy
EXPECTED_SCALES = "ue6m10"  # a ternary checkpoint may have longer ones
GRAPH_BYTES = 250_000  # of a program or a network, without weights


def estimate_bundle(checkpoint: Checkpoint, config: ExportConfig, context: int) -> Manifest:
    """The manifest that `pipeline.export` would write.

    Hashes, checksums and what quantization costs are not in it.
    """
    tensors = [
        _tensor(checkpoint, config, name)
        for name in checkpoint.names
        if config.quantization.scheme_for(name)
    ]
    tokenizer = [FileEntry(name, size, "") for name, size in checkpoint.text_files.items()]
    planned = PlannedModel(checkpoint.config, context, config.activations, config.kv_cache, tensors)
    artifacts = [registry.load(name).estimate(planned) for name in config.formats]
    files = [FileEntry(a.files[0], _package_bytes(a, tensors), "") for a in artifacts]
    model = checkpoint.config
    return Manifest(
        schema_version=bundles.SCHEMA_VERSION,
        created="",
        tools={},
        model=manifest.model_entry(checkpoint, {}),
        quantization=summary(config.quantization, checkpoint),
        rate=None,
        quantization_loss=QuantizationLoss("", 0, 0.0, 0.0, 0.0, 0.0, 0.0),
        interface=manifest.interface(checkpoint, context),
        network=network_entry(model, context),
        artifacts=artifacts,
        prompts=[],
        tensors=tensors,
        files=[*files, *tokenizer],
    )


def _tensor(checkpoint: Checkpoint, config: ExportConfig, name: str) -> TensorEntry:
    plan, (rows, cols) = plan_matrix(config.quantization, checkpoint, name), checkpoint.shape(name)
    assert plan is not None  # the caller leaves out vectors
    n_levels = quant.load(plan.scheme).N_LEVELS
    entropy = quant.load(plan.scheme).expected_entropy(plan.config)
    codec, code_bits, cap, bits = _expected_codec(entropy, n_levels, config)
    group = effective_group_size(plan.config.group_size, cols)
    return TensorEntry(
        name=name,
        rows=rows,
        cols=cols,
        scheme=plan.scheme,
        n_levels=n_levels,
        group_size=group,
        scale_type=EXPECTED_SCALES,
        codec=codec,
        code_bits=code_bits,
        cap=cap,
        bits_per_weight=bits,
        entropy_bits=entropy,
        zeros=0.0,
        levels_crc32=0,
        blob_bytes=align(64 + int(rows * packed_bytes(cols, 1) * bits), 64),
        scales_bytes=SCALE_BYTES[EXPECTED_SCALES] * rows * -(-cols // group),
        sizes_bytes={},
        own_levels=plan.own_levels,
    )


def _expected_codec(
    entropy: float, n_levels: int, config: ExportConfig
) -> tuple[str, int, int, float]:
    """Codec, code_bits, cap and bits per weight that the encoder will come to."""
    raw_bits = plain_form(n_levels).bits
    coded = ("lzw", LZW_CODE_BITS, best_cap(entropy), entropy * CODING_LOSS)
    if config.codec == "lzw":
        return coded
    best: tuple[str, int, int, float] = ("raw", raw_bits, 0, raw_bits)
    if config.codec == "raw":
        return best
    base3 = ("base3", 8, BASE3_DIGITS, 8 / BASE3_DIGITS)
    for candidate in (base3, coded) if n_levels == 3 else (coded,):
        if candidate[3] < best[3] * (1 - gain(config.matrix_codec, best[0], candidate[0])):
            best = candidate
    return best


def _package_bytes(artifact: Artifact, tensors: list[TensorEntry]) -> int:
    """Size of a package, in bytes."""
    return GRAPH_BYTES + sum(artifact.places[t.name].n_bytes + t.scales_bytes for t in tensors)

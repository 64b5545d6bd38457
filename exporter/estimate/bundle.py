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
from exporter.codec.format import align, packed_bytes
from exporter.codec.weight_file import plain_form
from exporter.quant.tensor import effective_group_size

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig

CODED_LEVELS = 4  # larger alphabets are hardly smaller in codes than packed
CODING_LOSS = 1.02  # codes against entropy
SPARSE_BITS = 1.54  # entropy below which codewords of 12 bits are smaller than those of 8
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
        model=manifest.model_entry(checkpoint),
        quantization=config.quantization.to_dict(),
        quantization_loss=QuantizationLoss(0, 0.0, 0.0, 0.0, 0.0),
        interface=manifest.interface(checkpoint, context),
        network=network_entry(model, context),
        artifacts=artifacts,
        prompts=[],
        tensors=tensors,
        files=[*files, *tokenizer],
    )


def _tensor(checkpoint: Checkpoint, config: ExportConfig, name: str) -> TensorEntry:
    quantization, (rows, cols) = config.quantization, checkpoint.shape(name)
    scheme, settings = quantization.scheme_for(name), quantization.config_for(name)
    assert scheme is not None  # the caller leaves out vectors
    assert settings is not None
    n_levels = quant.load(scheme).N_LEVELS
    entropy = quant.load(scheme).expected_entropy(settings)
    raw_bits = plain_form(n_levels).bits
    coded = config.codec != "raw" and n_levels <= CODED_LEVELS and entropy * CODING_LOSS < raw_bits
    bits = entropy * CODING_LOSS if coded else raw_bits
    group = effective_group_size(settings.group_size, cols)
    code_bits, cap = (12, 32) if entropy < SPARSE_BITS else (8, 16)
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
        zeros=0.0,
        levels_crc32=0,
        blob_bytes=align(64 + int(rows * packed_bytes(cols, 1) * bits), 64),
        scales_bytes=4 * rows * -(-cols // group),
        sizes_bytes={},
    )


def _package_bytes(artifact: Artifact, tensors: list[TensorEntry]) -> int:
    """Size of a package, in bytes."""
    return GRAPH_BYTES + sum(artifact.places[t.name].n_bytes + t.scales_bytes for t in tensors)

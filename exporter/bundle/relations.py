"""What holds between the entries of a manifest, whoever wrote it.

Readers divide by these numbers, map files by these places and name tensors by these names. A
manifest that passes has one meaning, and no reader has to check again.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import PurePosixPath

from exporter.bundle.entries import (
    ACTIVATIONS,
    BACKENDS,
    HALF,
    KV_TYPES,
    MANIFEST,
    NETWORK_VERSION,
    REFERENCE,
    SIGNATURE,
    Artifact,
    Manifest,
    Network,
    TensorEntry,
)
from exporter.bundle.network_shapes import matrix_shapes, optional_vector_sizes, vector_sizes
from exporter.bundle.placement import placement_problems
from exporter.codec.scale_types import SCALE_BYTES

LARGEST_SIZE = 1 << 24  # of any dimension, as in native/llm/bundle.cc
BOS_RULES = ("tokenizer", "none", "unknown")
CODECS = ("raw", "lzw", "base3")
SHA256 = re.compile("[0-9a-f]{64}")
# Fields of config.json that say the same as a field of the network.
SAME_IN_CONFIG = {
    "hidden": "hidden_size",
    "inner": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}


def relation_problems(manifest: Manifest) -> list[str]:
    """All that does not hold in a manifest whose fields have the right types."""
    problems = [*_network(manifest), *_files(manifest)]
    # What follows is said of shapes and files that these have.
    return problems or [
        *_sources(manifest),
        *_interface(manifest),
        *_figures(manifest),
        *_tensors(manifest),
        *_ledger(manifest),
        *_artifacts(manifest),
    ]


def _sources(manifest: Manifest) -> Iterator[str]:
    model, origin = manifest.model, manifest.model.origin
    if not model.source_sha256:
        yield "model.source_sha256 names no file that the weights were read from"
    for name, digest in model.source_sha256.items():
        if not SHA256.fullmatch(digest):
            yield f"model.source_sha256.{name} is not 64 hex digits"
    if origin.revision and not origin.repo_id:
        yield "model.origin.revision is there without the repo_id that it is of"
    if origin.adapter_revision and not origin.adapter:
        yield "model.origin.adapter_revision is there without the adapter that it is of"


def _network(manifest: Manifest) -> Iterator[str]:
    network, config = manifest.network, manifest.model.config
    sizes = {name: value for name, value in vars(network).items() if name not in ("version", "eps")}
    for name, value in sizes.items():
        if not 1 <= value <= LARGEST_SIZE:
            yield f"network.{name} is {value}, expected 1 to 2^24"
    if network.version != NETWORK_VERSION:
        yield f"network.version is {network.version}, expected {NETWORK_VERSION}"
    if not 0 < network.eps < 1:
        yield f"network.eps is {network.eps}, expected a number between 0 and 1"
    if network.kv_heads and network.heads % network.kv_heads:
        yield f"network: {network.heads} heads do not share {network.kv_heads} kv_heads"
    if network.head_dim % 2:
        yield f"network.head_dim is {network.head_dim}, expected an even number"
    for name, key in SAME_IN_CONFIG.items():
        if isinstance(config.get(key), int) and config[key] != sizes[name]:
            yield f"network.{name} is {sizes[name]}, model.config.{key} is {config[key]}"
    if not _same_float32(network.eps, config.get("rms_norm_eps", network.eps)):
        yield f"network.eps is {network.eps}, model.config has {config['rms_norm_eps']}"
    if len(manifest.tensors) not in (7 * network.layers + 1, 7 * network.layers + 2):
        yield f"{len(manifest.tensors)} tensors, {network.layers} layers have others"


def _same_float32(value: float, other: object) -> bool:
    if not isinstance(other, int | float) or abs(other) > 1:
        return False
    return struct.pack("<f", value) == struct.pack("<f", other)


def _files(manifest: Manifest) -> Iterator[str]:
    entries = [*manifest.files, *manifest.expanded]
    seen: set[str] = set()
    for entry in entries:
        if not _is_inside(entry.path):
            yield f"{entry.path!r} is outside the bundle, or not written as a path in it"
        if entry.path in seen:
            yield f"{entry.path} is listed twice"
        if not SHA256.fullmatch(entry.sha256):
            yield f"{entry.path}: its sha256 is not 64 hex digits"
        seen.add(entry.path)
    folders = {str(folder) for name in seen for folder in PurePosixPath(name).parents}
    yield from (f"{name} is a file and a folder" for name in sorted(seen & folders))
    if REFERENCE not in {entry.path for entry in manifest.files}:
        yield f"{REFERENCE} is not listed in the manifest"


def _is_inside(path: str) -> bool:
    """Whether a text is the plain path of a file in a bundle, and not of its manifest."""
    plain = (
        bool(path) and str(PurePosixPath(path)) == path and path not in (".", MANIFEST, SIGNATURE)
    )
    outside = path.startswith("/") or ".." in path.split("/") or "\\" in path or "\0" in path
    return plain and not outside


def _interface(manifest: Manifest) -> Iterator[str]:
    interface, network = manifest.interface, manifest.network
    if interface.context != network.context:
        yield f"interface.context is {interface.context}, network.context {network.context}"
    if interface.vocab_size != network.vocab:
        yield f"interface.vocab_size is {interface.vocab_size}, network.vocab {network.vocab}"
    if interface.bos_rule not in BOS_RULES:
        yield f"interface.bos_rule {interface.bos_rule!r} is unknown"
    bos = [] if interface.bos_token_id is None else [interface.bos_token_id]
    for token in (*bos, *interface.eos_token_ids):
        if token >= network.vocab:
            yield f"interface: token {token} is outside the vocabulary of {network.vocab}"


def _figures(manifest: Manifest) -> Iterator[str]:
    """Figures that are shown, and that nothing is computed from."""
    loss = manifest.quantization_loss
    if not 0 <= loss.top1_agreement <= 1:
        yield f"quantization_loss.top1_agreement is {loss.top1_agreement}, expected 0 to 1"
    for name in ("kl_standard_error", "perplexity_original", "perplexity_quantized"):
        if getattr(loss, name) < 0:
            yield f"quantization_loss.{name} is negative"
    rate = manifest.rate
    values = () if rate is None else (rate.bits_asked, rate.bits_per_weight, rate.constant)
    if any(value is not None and value < 0 for value in values):
        yield "rate: a number is negative"


def _tensors(manifest: Manifest) -> Iterator[str]:
    shapes, seen = matrix_shapes(manifest.network), set()
    for t in manifest.tensors:
        if t.name in seen:
            yield f"{t.name} is listed twice"
        seen.add(t.name)
        if shapes.get(t.name) != (t.rows, t.cols):
            expected = "no such matrix" if t.name not in shapes else f"{list(shapes[t.name])}"
            yield f"{t.name} is {[t.rows, t.cols]}, the network has {expected}"
        else:
            yield from _tensor(t)


def _tensor(t: TensorEntry) -> Iterator[str]:
    """Problems of a matrix whose shape is right."""
    if not 1 <= t.group_size <= t.cols:
        yield f"{t.name}: group_size is {t.group_size}, expected 1 to {t.cols}"
        return
    if t.scale_type not in SCALE_BYTES:
        yield f"{t.name}: scale_type {t.scale_type!r} is unknown"
        return
    n_scales = t.rows * math.ceil(t.cols / t.group_size)
    if t.scales_bytes != (scales := n_scales * SCALE_BYTES[t.scale_type]):
        yield f"{t.name}: scales_bytes is {t.scales_bytes:,}, expected {scales:,}"
    bits = 8 * (t.blob_bytes + t.scales_bytes) / (t.rows * t.cols)
    if abs(t.bits_per_weight - bits) > 1e-5 * bits:
        yield f"{t.name}: bits_per_weight is {t.bits_per_weight}, its bytes are {bits:.6f}"
    if t.codec not in CODECS or (t.codec == "base3" and t.n_levels != 3):
        yield f"{t.name}: codec {t.codec!r} of {t.n_levels} levels is unknown"
    ranges = {
        "n_levels": (2, 256),
        "code_bits": (1, 16),
        "cap": (0, 255),
        "entropy_bits": (0, 8),
        "zeros": (0, 1),
        "levels_crc32": (0, 2**32 - 1),
        "blob_bytes": (1, 2**53),
    }
    for name, (least, most) in ranges.items():
        if not least <= getattr(t, name) <= most:
            yield f"{t.name}: {name} is {getattr(t, name)}, expected {least} to {most}"


def _ledger(manifest: Manifest) -> Iterator[str]:
    sums = dict.fromkeys((entry.path for entry in manifest.files), 0)
    for row in manifest.ledger:
        if row.n_bytes < 0:
            yield f"{row.file}: {row.what} has {row.n_bytes:,} bytes"
        if row.file not in sums:
            yield f"the ledger has {row.file}, which is not listed in the manifest"
        sums[row.file] = sums.get(row.file, 0) + row.n_bytes
    for entry in manifest.files:
        if sums[entry.path] != entry.n_bytes:
            total = sums[entry.path]
            yield f"{entry.path}: the ledger has {total:,} bytes, the file {entry.n_bytes:,}"


def _artifacts(manifest: Manifest) -> Iterator[str]:
    formats = [a.format for a in manifest.artifacts]
    if not formats:
        yield "there is no artifact"
    yield from (f"there are two packages of {name}" for name in BACKENDS if formats.count(name) > 1)
    for a in manifest.artifacts:
        if a.format not in BACKENDS:
            yield f"format {a.format!r} is unknown"
        else:
            yield from _artifact(manifest, a)


def _artifact(manifest: Manifest, a: Artifact) -> Iterator[str]:
    network, listed = manifest.network, {entry.path for entry in manifest.files}
    expanded = {e.path for e in manifest.expanded if e.path.startswith(f"{a.path}/")}
    yield from (f"{name} is not listed in the manifest" for name in a.files if name not in listed)
    if REFERENCE in a.files or len(set(a.files)) < len(a.files):
        yield f"{a.path}: its files are named twice, or {REFERENCE} is one of them"
    inside = [name for name in (*a.files, *expanded) if f"{name}/".startswith(f"{a.path}/")]
    if not inside or not _is_inside(a.path):
        yield f"{a.path!r} is none of the files of the package"
    if a.activations not in (*ACTIVATIONS, HALF):
        yield f"{a.path}: activations {a.activations!r} are unknown"
    if a.kv_type not in KV_TYPES:
        yield f"{a.path}: kv_type {a.kv_type!r} is unknown"
    elif a.kv_cache_bytes < (least := _least_cache_bytes(network, a.kv_type)):
        yield f"{a.path}: kv_cache_bytes is {a.kv_cache_bytes:,}, expected {least:,} at least"
    if not 1 <= a.prefill_tokens <= network.context:
        yield f"{a.path}: prefill_tokens is {a.prefill_tokens}, expected 1 to {network.context}"
    yield from _details(a)
    yield from _vectors(network, a)
    yield from placement_problems(manifest, a, expanded)


def _least_cache_bytes(network: Network, kv_type: str) -> int:
    """Size in bytes of the values of a KV cache; each layout adds its own padding."""
    item = {"float32": 4, "float16": 2, "int8": 1}[kv_type]
    return 2 * network.layers * network.context * network.kv_heads * network.head_dim * item


def _details(a: Artifact) -> Iterator[str]:
    """Problems of what only a kind of package has, and readers ask for."""
    for name, value in a.details.items():
        if name.endswith("_bytes") and (type(value) is not int or not 0 <= value <= 2**53):
            yield f"{a.path}: details.{name} is no number of bytes"
            return
    if a.format == "pte" and a.details.get("arena_bytes", -1) < a.kv_cache_bytes:
        yield f"{a.path}: details.arena_bytes is not there, or less than the KV cache"
    if a.format == "mlprogram" and a.details.get("recipe") not in a.files:
        yield f"{a.path}: details.recipe is none of the files of the package"


def _vectors(network: Network, a: Artifact) -> Iterator[str]:
    """Problems of the vectors that a session reads; a package without any is not for sessions."""
    if not a.vectors:
        return
    needed = vector_sizes(network)
    known = needed | optional_vector_sizes(network)
    yield from (f"{a.path}: there is no vector {name}" for name in needed if name not in a.vectors)
    for name, vector in a.vectors.items():
        if known.get(name) != vector.n:
            expected = known.get(name, "no such vector")
            yield f"{a.path}: vector {name} has {vector.n} values, the network has {expected}"
        if vector.offset % 4:
            yield f"{a.path}: vector {name} is not on a multiple of 4 bytes"

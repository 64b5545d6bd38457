"""GGUF files for llama.cpp of the shape of a bundle's network, with random weights.

They are for measuring speed, which does not depend on what weights are. The type of every matrix
is what llama-quantize chooses, so that a file is what people run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from benchmarks.shapes import check_family, file_stem
from exporter.bundle import Manifest
from exporter.bundle.entries import HEAD, Network
from exporter.bundle.network_shapes import matrix_shapes, vector_sizes

CONTEXT = 131072  # more than is measured; memory is taken for what is asked
FREQUENCIES = "rope.frequencies"  # llama.cpp computes its own


def shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by its name in a GGUF file. Raises UsageError: another family."""
    check_family(manifest)
    network = manifest.network
    all_shapes: dict[str, tuple[int, ...]] = dict(matrix_shapes(network))
    all_shapes |= {name: (n,) for name, n in vector_sizes(network).items()}
    absent = [FREQUENCIES] + [HEAD] * bool(manifest.model.config["tie_word_embeddings"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, network.layers)
    return {
        f"{names.get_name(name.removesuffix('.weight'))}.weight": shape
        for name, shape in all_shapes.items()
        if name not in absent
    }


def write(manifest: Manifest, path: Path) -> None:
    """Writes a file of random weights in float16. Raises UsageError."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, manifest.network)
    tensors = shapes(manifest)
    for name, shape in tensors.items():
        dtype = np.float16 if len(shape) == 2 else np.float32
        writer.add_tensor_info(name, shape, np.dtype(dtype), np.dtype(dtype).itemsize * _n(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    drawn = np.random.default_rng(0)
    for shape in tensors.values():
        values = 0.02 * drawn.standard_normal(shape, np.float32)
        writer.write_tensor_data(values.astype(np.float16) if len(shape) == 2 else values)
    writer.close()


def _n(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _add_sizes(writer: gguf.GGUFWriter, network: Network) -> None:
    """The sizes, and no vocabulary: its tokens have no texts."""
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(network.vocab)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(network.hidden)
    writer.add_feed_forward_length(network.inner)
    writer.add_block_count(network.layers)
    writer.add_head_count(network.heads)
    writer.add_head_count_kv(network.kv_heads)
    writer.add_key_length(network.head_dim)
    writer.add_value_length(network.head_dim)
    writer.add_rope_dimension_count(network.head_dim)
    writer.add_layer_norm_rms_eps(network.eps)


def has(kind: str) -> bool:
    """Whether llama.cpp has a type of this name."""
    return f"MOSTLY_{kind}" in gguf.LlamaFileType.__members__


def quantized(manifest: Manifest, kind: str, folder: Path) -> Path:
    """A file of a type such as Q8_0 in a folder, made unless it is there.

    Raises UsageError, ExportError.
    """
    from benchmarks import llama_cpp_speed

    shape = file_stem(manifest.network)
    shape += "-tied" * bool(manifest.model.config["tie_word_embeddings"])
    path, plain = folder / f"{shape}-{kind}.gguf", folder / f"{shape}-F16.gguf"
    if not path.exists():
        if not plain.exists():
            _put(plain, lambda partial: write(manifest, partial))
        _put(path, lambda partial: llama_cpp_speed.quantize(plain, partial, kind))
    return path


def _put(path: Path, make: Callable[[Path], None]) -> None:
    """Puts a file in its place when it is whole."""
    partial = path.with_suffix(".partial")
    make(partial)
    partial.rename(path)

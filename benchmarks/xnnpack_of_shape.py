"""Programs for ExecuTorch's XNNPACK of the shape of a bundle's network, with random weights.

They are for measuring speed, which does not depend on what weights are. ExecuTorch makes them by
what it ships for Llama, with the options of its `llama_xnnpack.yaml`: its own network, levels by
torchao, a cache in the program, attention by its own operator, prompts of any length, logits of the
last position, and all that XNNPACK can do left to it. Scales are not fitted to the weights (HQQ).
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import check_family, file_stem
from exporter.bundle import Manifest
from exporter.bundle.entries import Network
from exporter.errors import UsageError
from exporter.quiet import quiet

CONTEXT = 2048  # positions of a program, whose cache is part of it


@dataclass(frozen=True)
class Levels:
    """What torchao makes of weights: columns that share a scale, or 0: the row, and the embedding.

    embedding: as ExecuTorch writes it, bits and columns that share a scale. 0: the row.
    """

    group: int
    embedding: str


# Activations are int8 by token in both.
TYPES = {"8da4w": Levels(32, "4,32"), "8da8w": Levels(0, "8,0")}


def has(kind: str) -> bool:
    """Whether programs are made of this type."""
    return kind in TYPES


def parameters(network: Network) -> dict[str, Any]:
    """The sizes of a network as ExecuTorch's transformer takes them."""
    return {
        "dim": network.hidden,
        "hidden_dim": network.inner,
        "n_layers": network.layers,
        "n_heads": network.heads,
        "n_kv_heads": network.kv_heads,
        "head_dim": network.head_dim,
        "vocab_size": network.vocab,
        "norm_eps": network.eps,
    }


def random_weights(network: Network) -> dict[str, Any]:
    """Tensors by their names in ExecuTorch's transformer, always the same for a network.

    A product has about the size of what it multiplies, so that every part shows in logits.
    """
    import torch
    from executorch.examples.models.llama.llama_transformer import construct_transformer
    from executorch.examples.models.llama.model_args import ModelArgs

    with torch.device("meta"):
        network_of_shape = construct_transformer(ModelArgs(**parameters(network)))
    drawn = torch.Generator().manual_seed(0)

    def values(shape: torch.Size) -> torch.Tensor:
        if len(shape) == 1:
            return 1 + 0.1 * torch.randn(shape, generator=drawn)
        return shape[1] ** -0.5 * torch.randn(shape, generator=drawn)

    return {name: values(p.shape) for name, p in network_of_shape.named_parameters()}


def write(network: Network, kind: str, path: Path) -> None:
    """Writes a program of a type in TYPES. Raises UsageError: its rows are not whole groups."""
    group = TYPES[kind].group
    for columns in (network.hidden, network.inner, network.heads * network.head_dim):
        if group and columns % group:
            what = f"ExecuTorch leaves rows of {columns} columns as they are: no groups of {group}"
            raise UsageError(what, hint="measure a network of another shape, or 8da8w")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, quiet():
        import torch
        from executorch.examples.models.llama.export_llama_lib import export_llama

        with contextlib.redirect_stdout(sys.stderr):  # which is quiet
            torch.save(random_weights(network), Path(folder) / "weights.pth")
            (Path(folder) / "parameters.json").write_text(json.dumps(parameters(network)))
            export_llama(_options(kind, Path(folder)))
        (Path(folder) / "program.pte").rename(path)


def _options(kind: str, folder: Path) -> Any:
    """Options for weights in a folder, where the program is written too."""
    from executorch.extension.llm.export.config.llm_config import LlmConfig, ModelType

    options = LlmConfig()
    options.base.model_class = ModelType.llama3_2
    options.base.checkpoint = str(folder / "weights.pth")
    options.base.params = str(folder / "parameters.json")
    options.model.use_kv_cache = options.model.use_sdpa_with_kv_cache = True
    options.export.max_seq_length = options.export.max_context_length = CONTEXT
    options.export.output_name = str(folder / "program.pte")
    options.quantization.qmode = kind
    options.quantization.group_size = TYPES[kind].group
    options.quantization.embedding_quantize = TYPES[kind].embedding
    options.quantization.use_hqq = False
    options.backend.xnnpack.enabled = options.backend.xnnpack.extended_ops = True
    return options


def made(manifest: Manifest, kind: str, folder: Path) -> Path:
    """A program of a type in TYPES in a folder, made unless it is there. Raises UsageError."""
    check_family(manifest)
    path = folder / f"{file_stem(manifest.network)}-{kind}.pte"
    if not path.exists():
        write(manifest.network, kind, path)
    return path

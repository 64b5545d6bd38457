"""Names of tensors as people have them: made those of the network, or refused by their cause.

What transformers reads under another name is read here too: a prefix, a tied head under the head's
name, an additional head for values. What it would leave out or fill with random numbers is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.folder import GET_ANOTHER
from exporter.checkpoint.gguf_types import QUANTIZED_TYPES, TERNARY_TYPES
from exporter.checkpoint.packed import BITNET, PACKED_TYPES
from exporter.checkpoint.safetensors import TORCH_DTYPES
from exporter.checkpoint.tensors import TensorSource, row_spans
from exporter.errors import CheckpointError
from exporter.models.config import ModelConfig

ANCHOR = "layers.0.input_layernorm.weight"  # that every family has, and under no other name
READ_TYPES = (*TORCH_DTYPES, *QUANTIZED_TYPES, *TERNARY_TYPES, *PACKED_TYPES)
# Names that wrappers put into the names of what they wrap: DistributedDataParallel, torch.compile,
# FSDP, activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# They are computed from the config, or are heads that training adds and that write no text.
NOT_OF_THE_NETWORK = re.compile(
    r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)|(.*\.)?(v_head|value_head)\..*"
)
QUANTIZED_PARTS = re.compile(
    r".*\.(qweight|qzeros|scales|g_idx|absmax|quant_map|weight_packed|weight_scale(_inv)?|"
    r"weight_scale_2|input_scale|SCB|_data|quant_state\..*)"
)
# Methods whose tensors are not plain floats: where all of them are, they were dequantized.
PACKING_METHODS = (
    *("bitsandbytes", "gptq", "awq", "aqlm", "compressed-tensors", "fp8", "fbgemm_fp8", "hqq"),
    *("eetq", "quanto", "torchao", "mxfp4", "gguf", "auto-round", "higgs", "vptq", "modelopt"),
)

# What the runtime of such a model does besides, and the packages do not.
BITNET_ACTIVATIONS = (
    "the model was trained with activations of 8 bits for each token (bitnet): a package keeps 16 "
    "bits or more, so its logits are nearer to those of its weights than transformers' are, and a "
    "token may differ from transformers' where two are almost equally likely"
)


def match(
    raw: dict[str, Any],
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, TensorSource],
    problems: list[str],
    warnings: list[str],
) -> dict[str, TensorSource]:
    """The tensors of the network, in its order.

    `shapes` are those of an untied model: a head that differs from the embedding is taken, as by
    transformers, though the config says that they are tied. What is missing, surplus and misshapen
    is noted in `problems`. Raises CheckpointError where all of it has one cause.
    """
    _refuse_adapter(found)
    named = _with_our_names(found)
    expected = dict(shapes)
    if config.tie_word_embeddings:
        named = _untangle(named, warnings)
        if HEAD not in named:
            expected.pop(HEAD, None)
    wrong = _problems(expected, named)
    _check_quantization(raw, named, wrong, warnings)
    problems += wrong
    return {name: named[name] for name in expected if name in named}


def _refuse_adapter(found: Mapping[str, TensorSource]) -> None:
    """Raises CheckpointError for the names of an adapter that was not merged, or of Meta's."""
    if adapters := [name for name in found if ".lora_" in name or ".base_layer." in name]:
        raise CheckpointError(
            f"the weights hold an adapter that is not merged: {len(adapters)} tensors such as "
            f"{adapters[0]}",
            hint="merge it with PEFT: model.merge_and_unload().save_pretrained(FOLDER); or give "
            "the base model, and the folder of the adapter as --adapter",
        )
    if any(name.endswith("tok_embeddings.weight") for name in found):
        raise CheckpointError(
            "the tensors have Meta's original names (tok_embeddings.weight), in which the rows of "
            "queries and keys have another order",
            hint="use the Hugging Face form of the model, or convert it with transformers' "
            "convert_llama_weights_to_hf.py",
        )


def _with_our_names(found: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """The same tensors without wrappers and prefixes in their names."""
    plain: dict[str, TensorSource] = {}
    for name, tensor in found.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in plain:
            raise CheckpointError(
                f"two tensors would be {short}, one of them {name}", hint=GET_ANOTHER
            )
        plain[short] = tensor
    anchors = [name for name in plain if name == ANCHOR or name.endswith(f".{ANCHOR}")]
    if len(anchors) != 1:
        return plain
    inner = anchors[0].removesuffix(ANCHOR)  # such as "model.", or "" of a model without a head
    outer = inner.removesuffix("model.")

    def ours(name: str) -> str:
        if name.startswith(inner) and name != outer + HEAD:
            return f"model.{name.removeprefix(inner)}"
        return name.removeprefix(outer)

    return {ours(name): tensor for name, tensor in plain.items()}


def _untangle(named: dict[str, TensorSource], warnings: list[str]) -> dict[str, TensorSource]:
    """The tensors of a tied model, with a head only where it differs from the embedding."""
    if HEAD not in named:
        return named
    rest = {name: tensor for name, tensor in named.items() if name != HEAD}
    if EMBEDDING not in named:
        return rest | {EMBEDDING: named[HEAD]}
    if _same(named[HEAD], named[EMBEDDING]):
        return rest
    warnings.append(
        f"{HEAD} differs from {EMBEDDING}, though config.json says that they are tied: the head "
        "is exported as it is, as transformers reads it"
    )
    return named


def _same(first: TensorSource, second: TensorSource) -> bool:
    """Whether two matrices hold the same values, whatever their types."""
    readable = {first.dtype, second.dtype} <= set(READ_TYPES)
    return (
        readable
        and first.shape == second.shape
        and all(
            torch.equal(first.rows(*span), second.rows(*span)) for span in row_spans(first.shape)
        )
    )


def _problems(
    expected: Mapping[str, tuple[int, ...]], named: Mapping[str, TensorSource]
) -> list[str]:
    """What is missing, surplus, misshapen or of a type that is not read.

    What three layers or more have in common is one line.
    """
    told: dict[str, list[str]] = {}

    def tell(name: str, what: str) -> None:
        told.setdefault(f"{re.sub(r'[.]layers[.][0-9]+[.]', '.layers.*.', name)}{what}", []).append(
            f"{name}{what}"
        )

    for name, shape in expected.items():
        tensor = named.get(name)
        if tensor is None:
            tell(name, f" {list(shape)} is missing")
        elif tensor.shape != shape:
            tell(name, f" has shape {list(tensor.shape)}, expected {list(shape)}")
        elif tensor.dtype not in READ_TYPES:
            tell(name, f" is {tensor.dtype}, supported: {', '.join(READ_TYPES)}")
    for name in sorted(named.keys() - expected.keys()):
        if not NOT_OF_THE_NETWORK.fullmatch(name):
            tell(name, " is not part of this model")
    return [
        line
        for pattern, lines in told.items()
        for line in (lines if len(lines) < 3 else [f"{pattern} (in {len(lines)} layers)"])
    ]


def _check_quantization(
    raw: dict[str, Any],
    named: Mapping[str, TensorSource],
    problems: list[str],
    warnings: list[str],
) -> None:
    """Raises CheckpointError for weights that another tool has quantized.

    A config that says so of plain float weights is what merging or dequantizing left behind.
    Matrices that `packed` reads are none of these.
    """
    said = raw.get("quantization_config")
    method = said.get("quant_method", "unknown") if isinstance(said, dict) else said
    types = {tensor.dtype for tensor in named.values()}
    if BITNET in types and not problems:
        warnings.append(BITNET_ACTIVATIONS)
    if types & set(PACKED_TYPES) and not problems:
        return
    parts = [name for name in named if QUANTIZED_PARTS.fullmatch(name)]
    if problems and (said or parts):
        how = f"by {method}" if said else f"(it has {parts[0]})"
        raise CheckpointError(
            f"the weights are quantized already {how}",
            hint="export the original checkpoint in 16 or 32 bits; or dequantize this one with "
            "transformers: model.dequantize(), then model.save_pretrained(FOLDER)",
        )
    if said and method not in PACKING_METHODS:
        raise CheckpointError(
            f"config.json: quantization_config says {method!r}, which computes otherwise than its "
            "float weights say",
            hint="export the original checkpoint; docs/checkpoints.md lists what is read",
        )
    if said and not problems:
        warnings.append(
            f"config.json says that the weights are quantized ({method}), but they are plain "
            "floats: exported as they are"
        )


def untied(config: ModelConfig) -> ModelConfig:
    """The same model with a head of its own."""
    return replace(config, tie_word_embeddings=False)

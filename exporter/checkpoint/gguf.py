"""GGUF files: config, tensors and their row order as a Hugging Face checkpoint has them.

A tensor that the file holds quantized is read as the float16 values that it stands for: those of
the 16-bit checkpoint that it converts to. F32, F16 and BF16 are read as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint import gguf_types
from exporter.checkpoint.gguf_header import GgufHeader, read_header
from exporter.checkpoint.safetensors import read_bytes
from exporter.checkpoint.tensors import check_range
from exporter.errors import CheckpointError

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # and model_type of the same name
# llama.cpp turns neighbouring rows of a head, Hugging Face those of its two halves.
TURNED = ("llama",)
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": HEAD,
}
ROPE_FACTORS = "rope_freqs.weight"
# Numbers that change what the network computes, of other models under the same architecture.
REFUSED_KEYS = (
    *("expert_count", "embedding_scale", "residual_scale", "logit_scale", "attention.scale"),
    *("attention.max_alibi_bias", "attention.clamp_kqv", "attention.sliding_window"),
)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file.

    `heads` is the number of heads whose rows are to be brought into Hugging Face's order, or 0.
    """

    file: Path
    begin: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]
    heads: int = 0

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        check_range(begin, end, self.shape[0])
        if not self.heads:
            return self._stored(begin, end)
        head = self.shape[0] // self.heads
        first, last = begin // head, -(-end // head)
        pairs = self._stored(first * head, last * head).reshape(
            last - first, head // 2, 2, *self.shape[1:]
        )
        return pairs.transpose(1, 2).reshape(-1, *self.shape[1:])[begin - first * head :][
            : end - begin
        ]

    def _stored(self, begin: int, end: int) -> torch.Tensor:
        """Rows in the order of the file, as float32."""
        row_bytes = self.size_bytes // self.shape[0]
        raw = read_bytes(self.file, self.begin + begin * row_bytes, (end - begin) * row_bytes)
        if begin == end:
            return torch.zeros(0, *self.shape[1:])
        values = gguf_types.dequantize(raw.reshape(end - begin, row_bytes), self.dtype)
        rows = torch.from_numpy(values).float().reshape(end - begin, *self.shape[1:])
        return rows if self.dtype in gguf_types.FLOAT_TYPES else rows.half().float()


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file says: a config in Hugging Face's fields, and the tensors by their names."""

    config: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufModel:
    """The model of a GGUF file, or of all files of a split one.

    Raises CheckpointError for a damaged file and for a model that is not of ARCHITECTURES.
    """
    files = _parts(path)
    headers = [read_header(file) for file in files]
    fields = headers[0].fields
    stored: dict[str, GgufTensor] = {}
    for file, header in zip(files, headers, strict=True):
        stored |= _tensors(file, header)
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} is of the architecture {architecture!r}, which is not supported",
            hint=f"use a GGUF file of {', '.join(ARCHITECTURES)}",
        )
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in fields.items()
        if key.startswith(f"{architecture}.")
    }
    _refuse_keys(path, own)
    config = _config(architecture, own, fields, stored)
    if factors := stored.pop(ROPE_FACTORS, None):
        config["rope_parameters"] |= {
            "rope_type": "factors",
            "factors": factors.rows(0, factors.shape[0]).tolist(),
        }
    return GgufModel(config, _named(architecture, config, stored))


def _parts(path: Path) -> list[Path]:
    """The files of a split model, or the one file."""
    part = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if not part:
        return [path]
    files = [path.with_name(f"{part[1]}-{i + 1:05}-of-{part[2]}.gguf") for i in range(int(part[2]))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{path} is one of {len(files)} files, and others are not there",
            problems=missing,
            hint="download all of them into the same directory",
        )
    return files


def _tensors(path: Path, header: GgufHeader) -> dict[str, GgufTensor]:
    """The tensors of one file, by the names that it has for them."""
    return {
        name: GgufTensor(path, part.begin, part.size_bytes, part.dtype, part.shape)
        for name, part in header.tensors.items()
    }


def _refuse_keys(path: Path, own: dict[str, Any]) -> None:
    """Raises CheckpointError for what the networks of this tool do not compute."""
    window, context = own.get("attention.sliding_window"), own.get("context_length", 0)
    given = [key for key in REFUSED_KEYS if own.get(key)]
    if window and window >= context:
        given.remove("attention.sliding_window")
    dimension, head = own.get("rope.dimension_count"), own.get("attention.key_length")
    if dimension and head and dimension != head:
        given.append("rope.dimension_count")
    if given:
        raise CheckpointError(
            f"{path} describes a model that this tool cannot export",
            problems=[f"{key} is {own[key]}" for key in given],
            hint="docs/checkpoints.md lists what is read, converted and refused",
        )


def _config(
    architecture: str,
    own: dict[str, Any],
    fields: dict[str, Any],
    stored: dict[str, GgufTensor],
) -> dict[str, Any]:
    """The metadata as the config.json of a Hugging Face checkpoint."""
    heads = own.get("attention.head_count")
    embedding = stored.get("token_embd.weight")
    width = own.get("embedding_length", 0)
    config = {
        "model_type": architecture,
        "vocab_size": embedding.shape[0] if embedding else own.get("vocab_size"),
        "hidden_size": width,
        "intermediate_size": own.get("feed_forward_length"),
        "num_hidden_layers": own.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": own.get("attention.key_length")
        or own.get("rope.dimension_count")
        or (width // heads if heads else None),
        "rms_norm_eps": _short(own.get("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": own.get("context_length"),
        "tie_word_embeddings": "output.weight" not in stored,
        "attention_bias": "blk.0.attn_q.bias" in stored,
        "rope_parameters": _rope(own),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(fields),
    }
    return {key: value for key, value in config.items() if value is not None}


def _rope(own: dict[str, Any]) -> dict[str, Any]:
    """RoPE base and scaling in Hugging Face's fields."""
    rope = {"rope_theta": _short(own.get("rope.freq_base", 10000.0)), "rope_type": "default"}
    kind, factor = own.get("rope.scaling.type", "none"), own.get("rope.scaling.factor")
    if kind != "none":
        rope |= {"rope_type": kind, "factor": _short(factor)}
    if kind == "yarn":
        attention = own.get("rope.scaling.yarn_attn_factor", own.get("rope.scaling.attn_factor"))
        rope |= {
            "original_max_position_embeddings": own.get("rope.scaling.original_context_length"),
            "attention_factor": _short(attention),
        }
    return {key: value for key, value in rope.items() if value is not None}


def _end_tokens(fields: dict[str, Any]) -> list[int]:
    """Ids of the end of a text, of a turn and of a message, where the file has them."""
    kinds = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    return list(dict.fromkeys(int(fields[kind]) for kind in kinds if kind in fields))


def _short(value: float | None) -> float | None:
    """The shortest decimal of a float32, as a config.json has it."""
    return None if value is None else float(str(torch.tensor(value).numpy()))


def _named(
    architecture: str, config: dict[str, Any], stored: dict[str, GgufTensor]
) -> dict[str, GgufTensor]:
    """The tensors by their Hugging Face names and in that order of rows."""
    heads = {
        "attn_q": config.get("num_attention_heads"),
        "attn_k": config.get("num_key_value_heads"),
    }
    tensors = {}
    for name, tensor in stored.items():
        part = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if part and part[2] in NAMES:
            name = f"model.layers.{part[1]}.{NAMES[part[2]]}.{part[3]}"
        if part and architecture in TURNED and (count := heads.get(part[2])):
            tensor = GgufTensor(**{**vars(tensor), "heads": count})
        tensors[OUTSIDE.get(name, name)] = tensor
    return tensors

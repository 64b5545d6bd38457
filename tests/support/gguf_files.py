"""Small GGUF files of random models, written as llama.cpp's converter lays them out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from tests.support.checkpoints import random_family

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        module, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{NAMES[module]}.{kind}"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def turned(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys in llama.cpp's order, as its convert_hf_to_gguf.py turns them."""
    pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def random_blocks(kind: Type, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Random blocks of a type that the library reads and does not write, with small scales."""
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (shape[0], shape[1] // block, n_bytes), dtype=np.uint8)
    scale = rng.uniform(1e-4, 1e-3, blocks.shape[:2]).astype(np.float16)[..., None].view(np.uint8)
    if kind in (Type.Q6_K, Type.Q3_K):
        blocks[..., -2:] = scale
    elif kind is Type.Q2_K:  # a scale and a minimum at the end
        blocks[..., -4:-2], blocks[..., -2:] = scale, scale
    elif kind.name.startswith("IQ"):
        blocks[..., :2] = scale
    else:  # Q4_K, Q5_K: a scale and a minimum in front
        blocks[..., :2], blocks[..., 2:4] = scale, scale
    return blocks.reshape(shape[0], -1)


def stored(weight: torch.Tensor, kind: Type, seed: int) -> np.ndarray:
    if weight.ndim == 1 or kind is Type.F32:
        return weight.numpy()
    if kind.name.startswith("IQ") or kind.name.endswith("_K"):
        return random_blocks(kind, (weight.shape[0], weight.shape[1]), seed)
    return gguf.quants.quantize(weight.numpy(), kind)


def write_gguf(
    path: Path,
    family: str = "llama",
    kind: Type = Type.F32,
    *,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    tokenizer: bool = True,
    model: Any = None,
    pack: Callable[[torch.Tensor], tuple[np.ndarray, int]] | None = None,
    **overrides: Any,
) -> Any:
    """Writes a model, or else a random one, and returns it, in transformers.

    `fields` are more metadata, without the prefix of the architecture; `tensors` more tensors.
    `pack` makes the blocks of a matrix, uint8 [rows, bytes], and says the number of their type.
    """
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    model = model or random_family(
        family, **{"vocab_size": 300, "num_key_value_heads": 2} | sizes | overrides
    )
    config, writer = model.config, gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if family == "qwen3":
        writer.add_key_length(config.head_dim)
    for key, value in (fields or {}).items():
        put = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else put)(f"{family}.{key}", value)
    if tokenizer:
        add_tokenizer(writer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights = model.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    for seed, (name, weight) in enumerate(weights.items()):
        count = heads.get(name.split(".")[-2], 0) if family == "llama" else 0
        weight = turned(weight, count) if count else weight
        if pack and weight.ndim == 2:
            blocks, number = pack(weight)
            shape = tuple(weight.shape)
            writer.add_tensor(gguf_name(name), blocks.view(np.int8), shape, raw_dtype=number)  # type: ignore[arg-type]
            continue
        data = stored(weight, kind, seed)
        raw = None if data.dtype != np.uint8 else kind
        writer.add_tensor(gguf_name(name), data, raw_dtype=raw)
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """A byte-level vocabulary of 259 tokens with one merge: <s> is 256, </s> 257."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "<s>", "</s>", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")

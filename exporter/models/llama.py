"""Llama 3.x whole: config, tensor shapes, and the network written for `torch.export` with a dynamic
sequence length.

The network does not know how weights are stored. It asks a `Layers` for each linear, embedding and
attention by checkpoint tensor name: `DenseLayers` answers in float32 PyTorch (the reference), a
backend with its own operators. Letters in shapes: S tokens in this call, H query heads, KV
key/value heads, D head_dim, C context (cache slots).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.models import ConfigReader, is_id

# a config is foreign input: without a limit, a false layer count alone would exhaust memory
MAX_LAYERS = 1024


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3 stretching of the RoPE frequencies; fields as in Hugging Face configs."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model, in Hugging Face field names. Made by `from_dict`, which validates."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LlamaConfig:
        """From a parsed config.json, of transformers 4 or 5. Raises CheckpointError with all that
        is unsupported."""
        read = ConfigReader(raw)
        hidden, heads = read.size("hidden_size"), read.size("num_attention_heads")
        kv_heads, head_dim = (
            read.size("num_key_value_heads", heads),
            read.size("head_dim", max(1, hidden // heads)),
        )
        if not read.problems:  # else these would follow from a size that is named already
            whole = read.get("head_dim") is not None or hidden % heads == 0
            read.check(
                whole,
                f"hidden_size {hidden} must be a multiple of {heads} heads, as head_dim is absent",
            )
            read.check(
                heads % kv_heads == 0,
                f"num_attention_heads {heads} must be a multiple of {kv_heads} kv heads",
            )
            read.check(
                head_dim % 2 == 0,
                f"head_dim must be even, because RoPE turns pairs, got {head_dim}",
            )
        _refuse_unsupported(read)
        bos, eos = read.get("bos_token_id"), read.get("eos_token_id", [])
        ids = tuple(eos) if isinstance(eos, list) else (eos,)
        read.check(all(map(is_id, ids)), f"eos_token_id must be one or more token ids, got {eos!r}")
        read.check(bos is None or is_id(bos), f"bos_token_id must be a token id, got {bos!r}")
        theta, rope = _read_rope(read)
        config = cls(
            vocab_size=read.size("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.size("intermediate_size"),
            num_hidden_layers=read.size("num_hidden_layers", limit=MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=read.positive("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope=rope,
            max_position_embeddings=read.size("max_position_embeddings"),
            tie_word_embeddings=bool(read.one_of("tie_word_embeddings", False, True)),
            bos_token_id=bos,
            eos_token_ids=ids,
        )
        read.finish()
        return config


def _refuse_unsupported(read: ConfigReader) -> None:
    """Note what the config switches on and this file does not compute."""
    read.one_of("model_type", "llama")
    read.one_of("architectures", ["LlamaForCausalLM"])
    read.one_of("hidden_act", "silu")
    read.one_of("attention_bias", False)
    read.one_of("mlp_bias", False)
    read.one_of("partial_rotary_factor", 1.0)
    read.check(
        read.get("quantization_config") is None,
        "quantization_config: the weights are already quantized",
    )


def _read_rope(read: ConfigReader) -> tuple[float, RopeScaling | None]:
    """RoPE base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and
    `rope_scaling` (4)."""
    rope = read.section("rope_parameters", "rope_scaling")
    theta = (rope if rope.get("rope_theta") is not None else read).positive("rope_theta", 10000.0)
    outer = read.get("rope_theta", theta)
    read.check(
        rope.get("rope_theta") in (None, outer),
        f"rope_theta is {outer!r}, but {theta!r} in {rope.prefix[:-2]}",
    )
    rope.one_of("partial_rotary_factor", 1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    rope.check(
        kind in ("default", "llama3"), f"rope_type is {kind!r}, supported: 'default' or 'llama3'"
    )
    if kind != "llama3":
        return theta, None
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    original = rope.size("original_max_position_embeddings")
    rope.check(low < high, f"high_freq_factor {high} must be greater than low_freq_factor {low}")
    return theta, RopeScaling(rope.positive("factor"), low, high, original)


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint and its shape, in the order of the network. A tied model has no
    lm_head.weight."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    return (
        shapes
        if config.tie_word_embeddings
        else shapes | {"lm_head.weight": (config.vocab_size, hidden)}
    )


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Radians per position of each pair of a head, float32 [D/2].

    theta^(-2i/D) (RoFormer, arXiv 2104.09864). With Llama 3 scaling, as in Meta's `apply_scaling`
    and transformers' `_compute_llama3_parameters`: wavelengths over original/low_freq_factor are
    stretched by `factor`, those under original/high_freq_factor stay, and between them the two are
    blended linearly in original/wavelength.
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    freqs = 1.0 / (config.rope_theta**pairs)
    if config.rope is None:
        return freqs
    rope = config.rope
    turns = (
        rope.original_max_position_embeddings * freqs / (2 * math.pi)
    )  # full turns within the original context
    keep = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(
        0, 1
    )
    return (1 - keep) * freqs / rope.factor + keep * freqs


class Layers(Protocol):
    """What a user of `Llama` supplies, by checkpoint tensor name; a tied head is asked for by the
    embedding's."""

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        """A module float32 [.., in_features] -> [.., out_features]."""

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        """A module int64 [1, S] -> float32 [1, S, cols]."""

    def attention(self, config: LlamaConfig, context: int) -> nn.Module:
        """A module that owns one layer's KV cache of `context` slots: see `TorchAttention`."""

    def vector(self, name: str) -> Tensor:
        """A norm weight, float32 [hidden]."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32 (arXiv 1910.07467)."""

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [1, S, heads, D] with cos, sin [S, 1, D/2]; pairs are (i, i + D/2), the convention
    of Hugging Face."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(nn.Module):
    """One decoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig, context: int, layers: Layers, prefix: str) -> None:
        super().__init__()

        def linear(name: str, out_features: int, in_features: int) -> nn.Module:
            return layers.linear(f"{prefix}.{name}.weight", out_features, in_features)

        hidden, inner = config.hidden_size, config.intermediate_size
        queries, keys = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.head_dim = config.head_dim
        self.attention_norm = RMSNorm(
            layers.vector(f"{prefix}.input_layernorm.weight"), config.rms_norm_eps
        )
        self.q, self.k = (
            linear("self_attn.q_proj", queries, hidden),
            linear("self_attn.k_proj", keys, hidden),
        )
        self.v, self.o = (
            linear("self_attn.v_proj", keys, hidden),
            linear("self_attn.o_proj", hidden, queries),
        )
        self.attention = layers.attention(config, context)
        self.mlp_norm = RMSNorm(
            layers.vector(f"{prefix}.post_attention_layernorm.weight"), config.rms_norm_eps
        )
        self.gate, self.up = (
            linear("mlp.gate_proj", inner, hidden),
            linear("mlp.up_proj", inner, hidden),
        )
        self.down = linear("mlp.down_proj", hidden, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, input_pos: Tensor) -> Tensor:
        h = self.attention_norm(x)
        q, k, v = (
            proj(h).unflatten(-1, (-1, self.head_dim)) for proj in (self.q, self.k, self.v)
        )  # [1, S, heads, D]
        x = x + self.o(
            self.attention(rotate(q, cos, sin), rotate(k, cos, sin), v, input_pos).flatten(2)
        )
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """The network with a KV cache of C slots. The caller keeps input_pos + S <= C; position 0
    starts anew."""

    frequencies: Tensor

    def __init__(self, config: LlamaConfig, context: int, layers: Layers) -> None:
        super().__init__()
        embed, vocab, hidden = "model.embed_tokens.weight", config.vocab_size, config.hidden_size
        self.embed = layers.embedding(embed, vocab, hidden)
        blocks = [
            Block(config, context, layers, f"model.layers.{i}")
            for i in range(config.num_hidden_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(layers.vector("model.norm.weight"), config.rms_norm_eps)
        self.head = layers.linear(
            embed if config.tie_word_embeddings else "lm_head.weight", vocab, hidden
        )
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)

    def hidden(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Tokens int64 [1, S] from position input_pos int64 [1] on -> float32 [1, S, hidden] after
        the final norm."""
        positions = input_pos + torch.arange(tokens.shape[1])
        angles = (positions.float()[:, None] * self.frequencies).unsqueeze(1)  # [S, 1, D/2]
        cos, sin = angles.cos(), angles.sin()
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, input_pos)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [.., hidden] -> [.., vocab]."""
        return self.head(hidden)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Logits of the last position only, float32 [1, vocab]: all of them would cost S x vocab
        floats."""
        return self.logits(self.hidden(tokens, input_pos)[:, -1])


class TorchAttention(nn.Module):
    """Causal grouped-query attention over a static cache [1, C, KV, D], in PyTorch. Past C it
    raises IndexError."""

    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, config: LlamaConfig, context: int) -> None:
        super().__init__()
        shape = (1, context, config.num_key_value_heads, config.head_dim)
        self.register_buffer("k_cache", torch.zeros(shape), persistent=False)
        self.register_buffer("v_cache", torch.zeros(shape), persistent=False)

    def reset(self) -> None:
        """Forget every position."""
        self.k_cache.zero_()
        self.v_cache.zero_()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, input_pos: Tensor) -> Tensor:
        """q [1, S, H, D], k and v [1, S, KV, D], input_pos int64 [1] -> [1, S, H, D]; k and v enter
        the cache."""
        positions = input_pos + torch.arange(q.shape[1])
        self.k_cache.index_copy_(1, positions, k)
        self.v_cache.index_copy_(1, positions, v)
        seen = (
            torch.arange(self.k_cache.shape[1]) <= positions[:, None]
        )  # [S, C]: causal, and hides unwritten slots
        k, v = self.k_cache.transpose(1, 2), self.v_cache.transpose(1, 2)
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, attn_mask=seen, enable_gqa=True
        ).transpose(1, 2)


class DenseLayers:
    """`Layers` in float32 PyTorch from a function name -> weight: the reference every other
    arithmetic is judged by."""

    def __init__(self, weight: Callable[[str], Tensor]) -> None:
        self.weight = weight

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        module = nn.Linear(
            in_features, out_features, bias=False, device="meta"
        )  # meta: no second copy of the weight
        module.weight = nn.Parameter(self.weight(name).float(), requires_grad=False)
        return module

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        return nn.Embedding.from_pretrained(self.weight(name).float())

    def attention(self, config: LlamaConfig, context: int) -> nn.Module:
        return TorchAttention(config, context)

    def vector(self, name: str) -> Tensor:
        return self.weight(name).float()


Config, Model = LlamaConfig, Llama  # the names every family has

"""The layers of a decoder of the Llama kind, and the decoder itself, written for `torch.export`
with a dynamic sequence length.

The network does not know how weights are stored. It asks a `Layers` for each linear, embedding and
attention by checkpoint tensor name: `DenseLayers` answers in float32 PyTorch (the reference), a
backend with its own operators. Letters in shapes: S tokens in this call, H query heads, KV
key/value heads, D head_dim, C context (cache slots).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.bundle import EMBEDDING, HEAD
from exporter.models.config import ModelConfig, rope_frequencies


class Layers(Protocol):
    """What a user of a network supplies, by checkpoint tensor name; a tied head is asked for by the
    embedding's."""

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        """A module float32 [.., in_features] -> [.., out_features]."""

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        """A module int64 [1, S] -> float32 [1, S, cols]."""

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        """A module that owns one layer's KV cache of `context` slots: see `TorchAttention`."""

    def vector(self, name: str) -> Tensor:
        """A norm weight or a bias, float32 [length]."""


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


class Biased(nn.Module):
    """A linear module with a bias: x -> linear(x) + bias."""

    bias: Tensor

    def __init__(self, linear: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + self.bias
        return y


class Block(nn.Module):
    """One decoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, context: int, layers: Layers, prefix: str) -> None:
        super().__init__()

        def linear(name: str, out_features: int, in_features: int) -> nn.Module:
            module = layers.linear(f"{prefix}.{name}.weight", out_features, in_features)
            biased = name in config.biases
            return Biased(module, layers.vector(f"{prefix}.{name}.bias")) if biased else module

        def norm(name: str) -> RMSNorm:
            return RMSNorm(layers.vector(f"{prefix}.{name}.weight"), config.rms_norm_eps)

        hidden, inner = config.hidden_size, config.intermediate_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.head_dim = config.head_dim
        self.attention_norm = norm("input_layernorm")
        self.q = linear("self_attn.q_proj", queries, hidden)
        self.k = linear("self_attn.k_proj", keys, hidden)
        self.v = linear("self_attn.v_proj", keys, hidden)
        self.o = linear("self_attn.o_proj", hidden, queries)
        self.q_norm = norm("self_attn.q_norm") if config.head_norm else nn.Identity()
        self.k_norm = norm("self_attn.k_norm") if config.head_norm else nn.Identity()
        self.attention = layers.attention(config, context)
        self.mlp_norm = norm("post_attention_layernorm")
        self.gate = linear("mlp.gate_proj", inner, hidden)
        self.up = linear("mlp.up_proj", inner, hidden)
        self.down = linear("mlp.down_proj", hidden, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, input_pos: Tensor) -> Tensor:
        h = self.attention_norm(x)
        # q, k and v are [1, S, heads, D].
        q, k, v = (proj(h).unflatten(-1, (-1, self.head_dim)) for proj in (self.q, self.k, self.v))
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        x = x + self.o(self.attention(q, k, v, input_pos).flatten(2))
        h = self.mlp_norm(x)
        y: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return y


class Decoder(nn.Module):
    """The network with a KV cache of C slots. The caller keeps input_pos + S <= C; position 0
    starts anew."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig, context: int, layers: Layers) -> None:
        super().__init__()
        vocab, hidden = config.vocab_size, config.hidden_size
        self.embed = layers.embedding(EMBEDDING, vocab, hidden)
        blocks = [
            Block(config, context, layers, f"model.layers.{i}")
            for i in range(config.num_hidden_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(layers.vector("model.norm.weight"), config.rms_norm_eps)
        self.head = layers.linear(EMBEDDING if config.tie_word_embeddings else HEAD, vocab, hidden)
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
        h: Tensor = self.norm(x)
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [.., hidden] -> [.., vocab]."""
        logits: Tensor = self.head(hidden)
        return logits

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Logits of the last position only, float32 [1, vocab]: all of them would cost S x vocab
        floats."""
        return self.logits(self.hidden(tokens, input_pos)[:, -1])


class TorchAttention(nn.Module):
    """Causal grouped-query attention over a static cache [1, C, KV, D], in PyTorch. Past C it
    raises IndexError."""

    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, config: ModelConfig, context: int) -> None:
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
        # The mask is bool [S, C]: it is causal, and hides unwritten slots.
        seen = torch.arange(self.k_cache.shape[1]) <= positions[:, None]
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
        # On the meta device: there is no second copy of the weight.
        module = nn.Linear(in_features, out_features, bias=False, device="meta")
        module.weight = nn.Parameter(self.weight(name).float(), requires_grad=False)
        return module

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        module: nn.Module = nn.Embedding.from_pretrained(self.weight(name).float())
        return module

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        return TorchAttention(config, context)

    def vector(self, name: str) -> Tensor:
        return self.weight(name).float()

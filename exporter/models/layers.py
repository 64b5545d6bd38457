"""The layers of a decoder of the Llama kind, and the decoder itself.

They are written for `torch.export` with a dynamic sequence length.

The network does not know how weights are stored, nor how a layer computes. It asks a `Layers` for
each module, by checkpoint tensor name where it has weights: `TorchLayers` answers in float32
PyTorch (the reference), a backend with its own operators. Letters in shapes: S tokens in this call,
H query heads, KV key/value heads, D head_dim, C context (cache slots).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.bundle import EMBEDDING, HEAD, KVType
from exporter.models.config import ModelConfig, rope_frequencies


class Layers(Protocol):
    """The modules that a user of a network supplies.

    A tied head is asked for by the embedding's name.
    """

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        """A linear module, float32 [.., in_features] -> [.., out_features]."""

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        """An embedding module, int64 [1, S] -> float32 [1, S, cols]."""

    def norm(self, name: str, eps: float) -> nn.Module:
        """An RMSNorm of each run of as many values as its weight has, float32 [1, S, n] -> same."""

    def rotation(self, config: ModelConfig) -> nn.Module:
        """A module from tokens int64 [1, S] and a position int64 [1] to RoPE's angles.

        They are float32 [2, S, D/2]: the cosines, then the sines.
        """

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        """A module that owns one layer's KV cache of `context` slots: see `TorchAttention`."""

    def gated(self) -> nn.Module:
        """A module silu(gate) * up of two float32 [1, S, n]."""

    def add(self) -> nn.Module:
        """A module x + y of float32 [1, S, n] and a residual of that shape, or a bias [n]."""

    def last(self) -> nn.Module:
        """A module that keeps the last token: float32 [1, S, n] -> [1, n]."""

    def vector(self, name: str) -> Tensor:
        """A norm weight or a bias, float32 [length]."""


class Biased(nn.Module):
    """A linear module with a bias: x -> linear(x) + bias."""

    bias: Tensor

    def __init__(self, linear: nn.Module, add: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.linear, self.add = linear, add
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.add(self.linear(x), self.bias)
        return y


class Block(nn.Module):
    """One decoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, context: int, layers: Layers, prefix: str) -> None:
        super().__init__()

        def linear(name: str, out_features: int, in_features: int) -> nn.Module:
            module = layers.linear(f"{prefix}.{name}.weight", out_features, in_features)
            if name not in config.biases:
                return module
            return Biased(module, layers.add(), layers.vector(f"{prefix}.{name}.bias"))

        def norm(name: str) -> nn.Module:
            return layers.norm(f"{prefix}.{name}.weight", config.rms_norm_eps)

        hidden, inner = config.hidden_size, config.intermediate_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
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
        self.gated = layers.gated()
        self.down = linear("mlp.down_proj", hidden, inner)
        self.add = layers.add()

    def forward(self, x: Tensor, angles: Tensor, input_pos: Tensor) -> Tensor:
        h = self.attention_norm(x)
        q, k, v = self.q_norm(self.q(h)), self.k_norm(self.k(h)), self.v(h)
        x = self.add(x, self.o(self.attention(q, k, v, angles, input_pos)))
        h = self.mlp_norm(x)
        y: Tensor = self.add(x, self.down(self.gated(self.gate(h), self.up(h))))
        return y


class Decoder(nn.Module):
    """The network with a KV cache of C slots.

    The caller keeps input_pos + S <= C; position 0 starts anew.
    """

    def __init__(self, config: ModelConfig, context: int, layers: Layers) -> None:
        super().__init__()
        vocab, hidden = config.vocab_size, config.hidden_size
        self.embed = layers.embedding(EMBEDDING, vocab, hidden)
        self.rotation = layers.rotation(config)
        blocks = [
            Block(config, context, layers, f"model.layers.{i}")
            for i in range(config.num_hidden_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = layers.norm("model.norm.weight", config.rms_norm_eps)
        self.last = layers.last()
        self.head = layers.linear(EMBEDDING if config.tie_word_embeddings else HEAD, vocab, hidden)

    def hidden(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Hidden states before the final norm, float32 [1, S, hidden].

        `tokens` are int64 [1, S], from position `input_pos` int64 [1] on.
        """
        angles = self.rotation(tokens, input_pos)
        x: Tensor = self.embed(tokens)
        for block in self.blocks:
            x = block(x, angles, input_pos)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: float32 [.., hidden] -> [.., vocab]."""
        logits: Tensor = self.head(self.norm(hidden))
        return logits

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Logits of the last position, float32 [1, vocab].

        Those of all positions would cost S x vocab floats.
        """
        return self.logits(self.last(self.hidden(tokens, input_pos)))


# ---- the same in PyTorch -------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """RMSNorm over runs of n values, in float32: x / sqrt(mean(x^2) + eps) * weight [n].

    The formula is that of arXiv 1910.07467.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        runs = x.unflatten(-1, (-1, self.weight.numel()))
        normed = runs * torch.rsqrt(runs.square().mean(-1, keepdim=True) + self.eps) * self.weight
        y: Tensor = normed.flatten(-2)
        return y


class Rotation(nn.Module):
    """The cosines and sines of RoPE, float32 [2, S, D/2], of positions from `input_pos` on."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        positions = input_pos + torch.arange(tokens.shape[1])
        angles = positions.float()[:, None] * self.frequencies
        return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE on x [1, S, heads, D] with angles [2, S, D/2].

    Pairs are (i, i + D/2), the convention of Hugging Face.
    """
    cos, sin = angles.unsqueeze(2)  # [S, 1, D/2] each
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def store_float32(x: Tensor) -> Tensor:
    """The same values."""
    return x


def store_float16(x: Tensor) -> Tensor:
    """The values of x rounded to half precision, float32."""
    return x.half().float()


def store_int8(x: Tensor) -> Tensor:
    """The values of x [.., D] in 8 bits with one scale a row, float32: see native/llm.h."""
    most = x.abs().amax(-1, keepdim=True)
    usable = most >= 2.0**-100
    factor = torch.where(usable, torch.full_like(most, 127) / most, torch.zeros_like(most))
    scale = torch.where(usable, most / torch.full_like(most, 127), torch.zeros_like(most))
    return torch.round(x * factor) * scale


STORES: dict[KVType, Callable[[Tensor], Tensor]] = {
    "float32": store_float32,
    "float16": store_float16,
    "int8": store_int8,
}


class TorchAttention(nn.Module):
    """Causal grouped-query attention over a static cache [1, C, KV, D], in PyTorch.

    Keys and values are rounded as a cache of type `kv_type` stores them. Past C it raises
    IndexError.
    """

    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, config: ModelConfig, context: int, kv_type: KVType = "float32") -> None:
        super().__init__()
        shape = (1, context, config.num_key_value_heads, config.head_dim)
        self.register_buffer("k_cache", torch.zeros(shape), persistent=False)
        self.register_buffer("v_cache", torch.zeros(shape), persistent=False)
        self.head_dim, self.store = config.head_dim, STORES[kv_type]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor, input_pos: Tensor) -> Tensor:
        """Attention of the queries over the cache, [1, S, H * D].

        q is [1, S, H * D], k and v are [1, S, KV * D], angles [2, S, D/2], input_pos int64 [1]. The
        rotated keys and the values enter the cache. Angles of more positions than one token are
        those of all the places where it stands: it enters the cache at each, and attends from the
        last.
        """
        tokens, positions = q.shape[1], input_pos + torch.arange(angles.shape[1])
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        q, k = rotate(q, angles[:, -tokens:]), rotate(k, angles)
        self.k_cache.index_copy_(1, positions, self.store(k))
        self.v_cache.index_copy_(1, positions, self.store(v).expand_as(k))
        # The mask is bool [S, C]: it is causal, and hides unwritten slots.
        seen = torch.arange(self.k_cache.shape[1]) <= positions[-tokens:, None]
        k, v = self.k_cache.transpose(1, 2), self.v_cache.transpose(1, 2)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


class SwiGLU(nn.Module):
    """The product silu(gate) * up."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


class Add(nn.Module):
    """The sum x + y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Last(nn.Module):
    """The last token: [1, S, n] -> [1, n]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


class TorchLayers(ABC):
    """What all `Layers` in PyTorch share; a subclass adds linear, embedding and vector."""

    def __init__(self, kv_type: KVType = "float32") -> None:
        self.kv_type = kv_type

    @abstractmethod
    def vector(self, name: str) -> Tensor:
        """A norm weight or a bias, float32 [length]."""

    def norm(self, name: str, eps: float) -> nn.Module:
        return RMSNorm(self.vector(name), eps)

    def rotation(self, config: ModelConfig) -> nn.Module:
        return Rotation(config)

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        return TorchAttention(config, context, self.kv_type)

    def gated(self) -> nn.Module:
        return SwiGLU()

    def add(self) -> nn.Module:
        return Add()

    def last(self) -> nn.Module:
        return Last()


class DenseLayers(TorchLayers):
    """`Layers` in float32 PyTorch: the reference that every other arithmetic is judged by.

    `weight` gives the weight of a name.
    """

    def __init__(self, weight: Callable[[str], Tensor]) -> None:
        super().__init__()
        self.weight = weight

    def linear(self, name: str, out_features: int, in_features: int) -> nn.Module:
        # The module is on the meta device, so there is no second copy of the weight.
        module = nn.Linear(in_features, out_features, bias=False, device="meta")
        module.weight = nn.Parameter(self.weight(name).float(), requires_grad=False)
        return module

    def embedding(self, name: str, rows: int, cols: int) -> nn.Module:
        module: nn.Module = nn.Embedding.from_pretrained(self.weight(name).float())
        return module

    def vector(self, name: str) -> Tensor:
        return self.weight(name).float()

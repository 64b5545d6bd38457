"""The matrices and vectors of a network, as native/llm/MANIFEST.md has them."""

from __future__ import annotations

from exporter.bundle.entries import EMBEDDING, HEAD, Network


def matrix_shapes(network: Network) -> dict[str, tuple[int, int]]:
    """The shape [rows, cols] of every matrix by name; that of the head too, which may be absent."""
    n = network
    queries, keys = n.heads * n.head_dim, n.kv_heads * n.head_dim
    layer = {
        "self_attn.q_proj": (queries, n.hidden),
        "self_attn.k_proj": (keys, n.hidden),
        "self_attn.v_proj": (keys, n.hidden),
        "self_attn.o_proj": (n.hidden, queries),
        "mlp.gate_proj": (n.inner, n.hidden),
        "mlp.up_proj": (n.inner, n.hidden),
        "mlp.down_proj": (n.hidden, n.inner),
    }
    return {EMBEDDING: (n.vocab, n.hidden), HEAD: (n.vocab, n.hidden)} | {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(n.layers)
        for name, shape in layer.items()
    }


def vector_sizes(network: Network) -> dict[str, int]:
    """The number of values of every vector that a network has, by name."""
    norms = ("input_layernorm", "post_attention_layernorm")
    return {"model.norm.weight": network.hidden, "rope.frequencies": network.head_dim // 2} | {
        f"model.layers.{i}.{name}.weight": network.hidden
        for i in range(network.layers)
        for name in norms
    }


def optional_vector_sizes(network: Network) -> dict[str, int]:
    """The number of values of every vector that only some families have, by name."""
    biases = {
        name.removesuffix(".weight") + ".bias": shape[0]
        for name, shape in matrix_shapes(network).items()
        if name not in (EMBEDDING, HEAD)
    }
    norms = {
        f"model.layers.{i}.self_attn.{name}.weight": network.head_dim
        for i in range(network.layers)
        for name in ("q_norm", "k_norm")
    }
    return biases | norms

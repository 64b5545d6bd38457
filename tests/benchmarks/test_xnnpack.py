"""Programs for XNNPACK: that they compute their network, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import xnnpack_of_shape, xnnpack_speed
from benchmarks.rates import Setting
from benchmarks.xnnpack_speed import XnnpackProgram
from exporter.bundle.entries import Network
from exporter.errors import UsageError

SMALL = Network(
    3, 64, 96, layers=1, heads=4, kv_heads=2, head_dim=16, vocab=96, context=64, eps=1e-5
)
PROMPT = [7, 91, 3, 44, 80, 12, 5, 66]
# Of ExecuTorch's transformer, and of that of Hugging Face.
NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def rotated_by_halves(weights: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of queries or keys whose pairs are neighbours, as Hugging Face has them: in halves."""
    pairs = weights.view(-1, head_dim // 2, 2, weights.shape[1])
    return pairs.transpose(1, 2).reshape(weights.shape)


def rounded(weights: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Weights as levels of so many bits leave them, with a scale for each group of columns.

    As torchao has it: the largest of a group is half of a range of 2^bits - 1 steps.
    """
    groups = weights.view(-1, group)
    scales = groups.abs().amax(1, keepdim=True) / ((2**bits - 1) / 2)
    levels = (groups / scales).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (levels * scales).view(weights.shape)


def reference(network: Network, bits: int, group: int) -> Any:
    """The network in transformers, with the weights of a program as levels leave them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=network.vocab,
        hidden_size=network.hidden,
        intermediate_size=network.inner,
        num_hidden_layers=network.layers,
        num_attention_heads=network.heads,
        num_key_value_heads=network.kv_heads,
        head_dim=network.head_dim,
        rms_norm_eps=network.eps,
        tie_word_embeddings=False,
    )
    state = {}
    for name, values in xnnpack_of_shape.random_weights(network).items():
        part = name.removesuffix(".weight").removeprefix("layers.0.")
        if part in ("attention.wq", "attention.wk"):
            values = rotated_by_halves(values, network.head_dim)
        if values.dim() == 2:
            values = rounded(values, bits, group or values.shape[1])
        layer = "model.layers.0." if name.startswith("layers.0.") else ""
        state[f"{layer}{NAMES[part]}.weight"] = values
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference in that of what is expected."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.long  # ExecuTorch takes a minute to lower a layer
@pytest.mark.parametrize(
    ("kind", "bits", "group", "near"), [("8da8w", 8, 0, 0.05), ("8da4w", 4, 32, 0.1)]
)
def test_a_program_computes_its_network(
    kind: str, bits: int, group: int, near: float, tmp_path: Path
) -> None:
    """A prompt at once, a second call behind it, and a token, against transformers.

    What is left between them are activations of 8 bits. That this can fail: the logits of every
    other position are far from those of a position, and with 4 bits those of unrounded weights.
    """
    path = tmp_path / "program.pte"
    xnnpack_of_shape.write(SMALL, kind, path)
    with torch.no_grad():
        expected = reference(SMALL, bits, group)(torch.tensor([PROMPT])).logits[0]
    program = XnnpackProgram(path)
    ends = {5: program.feed(PROMPT[:5], 0).clone(), 7: program.feed(PROMPT[5:7], 5).clone()}
    ends[8] = program.feed(PROMPT[7:], 7).clone()
    for end, found in ends.items():
        distances = [distance(found, row) for row in expected]
        assert distances[end - 1] < near
        assert min(d for i, d in enumerate(distances) if i != end - 1) > 5 * near


def test_rows_that_are_no_groups_are_refused(tmp_path: Path) -> None:
    odd = Network(
        3, 48, 96, layers=1, heads=3, kv_heads=1, head_dim=16, vocab=9, context=9, eps=1e-5
    )
    with pytest.raises(UsageError, match="rows of 48 columns as they are: no groups of 32"):
        xnnpack_of_shape.write(odd, "8da4w", tmp_path / "program.pte")


def test_settings_that_a_program_cannot_have_are_refused(tmp_path: Path) -> None:
    threads = xnnpack_speed.Runtime.get().start_threads()
    with pytest.raises(UsageError, match=f"ExecuTorch's pool has {threads} threads, not 99"):
        xnnpack_speed.rates(tmp_path / "none.pte", Setting(99, 0, 8, 8, 1))
    with pytest.raises(UsageError, match="programs for XNNPACK have 2,048 positions"):
        xnnpack_speed.rates(tmp_path / "none.pte", Setting(threads, 2000, 64, 8, 1))

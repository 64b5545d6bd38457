"""exporter.models.llama against transformers' LlamaForCausalLM, and its export with a dynamic sequence length."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import LLAMA3_ROPE, SMALL, hf_model

from exporter import models
from exporter.errors import CheckpointError
from exporter.models.llama import DenseLayers, Llama, LlamaConfig, TorchAttention, rope_frequencies, tensor_shapes

CONFIGS: dict[str, dict[str, Any]] = {
    "gqa-tied": {},
    "mha-untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "mqa": {"num_key_value_heads": 1},
    "llama3-rope": {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0, "hidden_size": 64},
    "wide-heads": {"head_dim": 32, "hidden_size": 40},
    "narrow-heads": {"head_dim": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 3},
    "odd-sizes": {"hidden_size": 36, "intermediate_size": 43, "num_attention_heads": 2, "num_key_value_heads": 2},
    "large-vocab": {"vocab_size": 128256, "hidden_size": 16},
}
CONTEXT = 96


@pytest.fixture(scope="module", params=CONFIGS, ids=list(CONFIGS))
def pair(request: pytest.FixtureRequest) -> tuple[Any, Llama]:
    """The model of transformers and ours, with the same weights."""
    theirs = hf_model(**CONFIGS[request.param])
    return theirs, ours_from(theirs, CONTEXT)


def ours_from(theirs: Any, context: int) -> Llama:
    config = LlamaConfig.from_dict(theirs.config.to_dict() | {"architectures": ["LlamaForCausalLM"]})
    weights = theirs.state_dict()
    assert {name: tuple(weights[name].shape) for name in tensor_shapes(config)} == tensor_shapes(config)
    return Llama(config, context, DenseLayers(weights.__getitem__)).eval()


def random_tokens(model: Llama, count: int) -> torch.Tensor:
    return torch.randint(0, model.embed.num_embeddings, (1, count), generator=torch.Generator().manual_seed(1))


def run_split(model: Llama, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """All hidden states [1, S, hidden], fed in pieces of the given sizes."""
    assert sum(sizes) == tokens.shape[1]
    pieces, at = [], 0
    for size in sizes:
        pieces.append(model.hidden(tokens[:, at : at + size], torch.tensor([at])))
        at += size
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("sizes", [[90], [1] * 90, [7, 1, 1, 40, 41]], ids=["at-once", "step-by-step", "split"])
@torch.no_grad()
def test_logits_match_transformers(pair: tuple[Any, Llama], sizes: list[int]) -> None:
    theirs, ours = pair
    tokens = random_tokens(ours, 90)
    logits = ours.logits(run_split(ours, tokens, sizes))
    torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_forward_is_the_last_position(pair: tuple[Any, Llama]) -> None:
    theirs, ours = pair
    tokens = random_tokens(ours, 11)
    logits = ours(tokens, torch.tensor([0]))
    assert logits.shape == (1, ours.embed.num_embeddings)
    torch.testing.assert_close(logits, theirs(tokens).logits[:, -1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_export_with_dynamic_length(pair: tuple[Any, Llama]) -> None:
    theirs, ours = pair
    length = torch.export.Dim("length", min=1, max=CONTEXT)
    example = (random_tokens(ours, 5), torch.tensor([0]))
    program = torch.export.export(ours, example, dynamic_shapes=({1: length}, None), strict=False).module()
    tokens = random_tokens(ours, 60)
    for begin, end in [(0, 1), (1, 2), (2, 40), (40, 60)]:
        logits = program(tokens[:, begin:end], torch.tensor([begin]))
        torch.testing.assert_close(logits, theirs(tokens[:, :end]).logits[:, -1], atol=1e-4, rtol=0)

"""exporter.models.llama against transformers' LlamaForCausalLM, and its export with a dynamic
sequence length."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from exporter import models
from exporter.errors import CheckpointError
from exporter.models.config import ModelConfig, rope_frequencies
from exporter.models.layers import DenseLayers, TorchAttention
from exporter.models.llama import Llama, read_config, tensor_shapes
from tests.support.checkpoints import LLAMA3_ROPE, SMALL, hf_model

CONFIGS: dict[str, dict[str, Any]] = {
    "gqa-tied": {},
    "mha-untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "mqa": {"num_key_value_heads": 1},
    "llama3-rope": {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0, "hidden_size": 64},
    "wide-heads": {"head_dim": 32, "hidden_size": 40},
    "narrow-heads": {
        "head_dim": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "num_hidden_layers": 3,
    },
    "odd-sizes": {
        "hidden_size": 36,
        "intermediate_size": 43,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "large-vocab": {"vocab_size": 128256, "hidden_size": 16},
}
CONTEXT = 96


@pytest.fixture(scope="module", params=CONFIGS, ids=list(CONFIGS))
def pair(request: pytest.FixtureRequest) -> tuple[Any, Llama]:
    """The model of transformers and ours, with the same weights."""
    theirs = hf_model(**CONFIGS[request.param])
    return theirs, ours_from(theirs, CONTEXT)


def ours_from(theirs: Any, context: int) -> Llama:
    config = config_of(theirs)
    weights = theirs.state_dict()
    assert {name: tuple(weights[name].shape) for name in tensor_shapes(config)} == tensor_shapes(
        config
    )
    return Llama(config, context, DenseLayers(weights.__getitem__)).eval()


def random_tokens(model: Llama, count: int) -> torch.Tensor:
    return torch.randint(
        0, model.embed.num_embeddings, (1, count), generator=torch.Generator().manual_seed(1)
    )


def run_split(model: Llama, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """All hidden states [1, S, hidden], fed in pieces of the given sizes."""
    assert sum(sizes) == tokens.shape[1]
    pieces, at = [], 0
    for size in sizes:
        pieces.append(model.hidden(tokens[:, at : at + size], torch.tensor([at])))
        at += size
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize(
    "sizes", [[90], [1] * 90, [7, 1, 1, 40, 41]], ids=["at-once", "step-by-step", "split"]
)
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
    program = torch.export.export(
        ours, example, dynamic_shapes=({1: length}, None), strict=False
    ).module()
    tokens = random_tokens(ours, 60)
    for begin, end in [(0, 1), (1, 2), (2, 40), (40, 60)]:
        logits = program(tokens[:, begin:end], torch.tensor([begin]))
        torch.testing.assert_close(logits, theirs(tokens[:, :end]).logits[:, -1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_llama3_frequencies_match_transformers() -> None:
    theirs = hf_model(**CONFIGS["llama3-rope"])
    ours = ours_from(theirs, CONTEXT)
    frequencies = ours.rotation.frequencies
    torch.testing.assert_close(frequencies, theirs.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)
    plain = rope_frequencies(dataclasses.replace(config_of(theirs), rope=None))
    assert (frequencies != plain).any()


@torch.no_grad()
def test_position_zero_starts_anew_and_the_end_is_guarded() -> None:
    model = ours_from(hf_model(), 8)
    tokens = random_tokens(model, 8)
    first = model(tokens, torch.tensor([0]))
    model(tokens.flip(1), torch.tensor([0]))
    assert torch.equal(model(tokens, torch.tensor([0])), first)
    with pytest.raises((IndexError, RuntimeError)):
        model(tokens, torch.tensor([1]))


@torch.no_grad()
@pytest.mark.parametrize(("kv_type", "bits"), [("float32", 23), ("float16", 10), ("int8", 6)])
def test_a_cache_holds_what_its_type_can(kv_type: Any, bits: int) -> None:
    attention = TorchAttention(config_of(hf_model()), 8, kv_type)
    q, v = torch.randn(1, 3, 48), torch.randn(1, 3, 24)
    attention(q, v, v, torch.ones(2, 3, 6), torch.tensor([0]))
    held, given = attention.v_cache[:, :3], v.unflatten(-1, (-1, 12))
    largest = given.abs().amax(-1, keepdim=True)
    assert ((held - given).abs() <= largest * 2.0 ** -(bits + 1)).all()


# ---- config ----


def config_of(theirs: Any) -> ModelConfig:
    return read_config(theirs.config.to_dict() | {"architectures": ["LlamaForCausalLM"]})


VERSION_4 = SMALL | {"model_type": "llama", "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0}


def test_both_rope_spellings_read_the_same() -> None:
    version_5 = {k: v for k, v in VERSION_4.items() if not k.startswith("rope_")}
    version_5["rope_parameters"] = LLAMA3_ROPE | {"rope_theta": 500000.0}
    legacy = dict(LLAMA3_ROPE, type="llama3")
    del legacy["rope_type"]
    configs = [read_config(d) for d in (VERSION_4, version_5, VERSION_4 | {"rope_scaling": legacy})]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].rope is not None
    assert (configs[0].rope.factor, configs[0].rope_theta) == (8.0, 500000.0)


def test_defaults_of_absent_fields() -> None:
    small = {
        k: v
        for k, v in SMALL.items()
        if k not in ("num_key_value_heads", "rope_theta", "bos_token_id")
    }
    config = read_config(small | {"eos_token_id": [2, 7]})
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta, config.rope) == (
        4,
        12,
        10000.0,
        None,
    )
    assert (config.bos_token_id, config.eos_token_ids) == (None, (2, 7))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model_type": ({"model_type": "mistral"}, "model_type is 'mistral'"),
    "architecture": ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "attention-bias": ({"attention_bias": "no"}, "attention_bias is 'no'"),
    "mlp-bias": ({"mlp_bias": 2}, "mlp_bias is 2"),
    "tie": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    "partial-rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "factor must be a positive"),
    "linear": ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor must be"),
    "factors": (
        {"head_dim": 12, "rope_scaling": {"rope_type": "factors", "factors": [1.0, 2.0]}},
        "factors must be 6 positive numbers",
    ),
    "longrope": ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
    "dynamic": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_type is 'dynamic'",
    ),
    "rope-no-object": ({"rope_scaling": 4}, "rope_scaling must be an object"),
    "rope-incomplete": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 2}},
        "rope_scaling: low_freq_factor must be",
    ),
    "rope-order": (
        {"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}},
        "must be greater than low_freq_factor",
    ),
    "two-thetas": ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta is 10000.0, but 7.0"),
    "theta": ({"rope_theta": -1}, "rope_theta must be a positive number"),
    "kv-heads": ({"num_key_value_heads": 3}, "must be a multiple of 3 kv heads"),
    "odd-head": ({"head_dim": 7}, "head_dim must be even"),
    "hidden-heads": ({"hidden_size": 50}, "must be a multiple of 4 heads"),
    "zero": ({"vocab_size": 0}, "vocab_size must be an integer"),
    "bool-size": ({"hidden_size": True}, "hidden_size must be an integer"),
    "null": ({"intermediate_size": None}, "intermediate_size must be an integer"),
    "many-layers": (
        {"num_hidden_layers": 10**9},
        "num_hidden_layers must be an integer from 1 to 1024",
    ),
    "eps": ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number"),
    "eos": ({"eos_token_id": "</s>"}, "eos_token_id must be"),
    "bos": ({"bos_token_id": -1}, "bos_token_id must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_config_is_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(CheckpointError) as refusal:
        read_config(SMALL | {"model_type": "llama"} | changes)
    assert message in str(refusal.value)
    assert len(refusal.value.problems) <= (4 if "incomplete" in case else 1)


def test_all_problems_at_once() -> None:
    wrong = {
        "hidden_act": "relu",
        "mlp_bias": 2,
        "vocab_size": -1,
        "rope_scaling": {"rope_type": "dynamic"},
    }
    with pytest.raises(CheckpointError) as refusal:
        read_config(SMALL | wrong)
    assert len(refusal.value.problems) == 4


def test_pretraining_tp_is_fine() -> None:
    read_config(SMALL | {"pretraining_tp": 2})


def test_unknown_family_names_the_supported() -> None:
    with pytest.raises(CheckpointError, match="one of: llama"):
        models.load("mamba")

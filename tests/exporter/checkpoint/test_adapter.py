"""LoRA adapters merged while the weights are read, against the same sum computed whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint import tensors
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError
from tests.support.checkpoints import copy
from tests.support.kinds import edit_json, put, write_adapter, write_plain

WEIGHTS = "adapter_model.safetensors"
QUERY = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("tied") / "model")


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("untied") / "model", tie_word_embeddings=False)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(adapter: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    there = dict(load_file(adapter / WEIGHTS))
    change(there)
    put(adapter, there, WEIGHTS)


def dense(base: Path, adapter: Path, scale: Callable[[str], float]) -> dict[str, torch.Tensor]:
    """All weights of a model whose adapter has plain pairs A, B: W + scale * B A."""
    weights, parts = dict(load_file(base / "model.safetensors")), load_file(adapter / WEIGHTS)
    for name, a in parts.items():
        if name.endswith("lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = parts[name.replace("lora_A", "lora_B")]
            weights[f"{module}.weight"] = weights[f"{module}.weight"] + scale(module) * (b @ a)
    return weights


def check(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint.names) == set(expected)
    for name, weight in expected.items():
        got = torch.cat([block for _, block in checkpoint.blocks(name)])
        torch.testing.assert_close(got, weight, rtol=1e-5, atol=1e-5)


SCALES: dict[str, tuple[dict[str, Any], Callable[[str], float]]] = {
    "alpha over r": ({}, lambda module: 8 / 3),
    "rsLoRA": ({"use_rslora": True}, lambda module: 8 / math.sqrt(3)),
    "alpha by pattern": (
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 5, "v_proj": 2}},
        lambda module: (5 if module == QUERY else 2 if module.endswith("v_proj") else 8) / 3,
    ),
    "what says nothing of the weights": (
        {"fan_in_fan_out": True, "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
        lambda module: 8 / 3,
    ),
}


@pytest.mark.parametrize("case", SCALES)
@pytest.mark.parametrize("block", [48 * 7, 1_000_000])
def test_the_weights_are_those_of_the_whole_sum(
    case: str, block: int, tied: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "BLOCK_WEIGHTS", block)
    changes, scale = SCALES[case]
    edit_json(adapter / "adapter_config.json", **changes)
    checkpoint = Checkpoint.open(tied, adapter=str(adapter))
    check(checkpoint, dense(tied, adapter, scale))
    assert checkpoint.origin.adapter == adapter.name


def test_ranks_by_pattern(tied: Path, adapter: Path) -> None:
    def widen(there: dict[str, torch.Tensor]) -> None:
        for part, shape in (("lora_A", (5, 48)), ("lora_B", (48, 5))):
            there[f"base_model.model.{QUERY}.{part}.weight"] = torch.randn(shape)

    edit(adapter, widen)
    edit_json(adapter / "adapter_config.json", rank_pattern={r".*1\.self_attn\.q_proj": 5})
    expected = dense(tied, adapter, lambda module: 8 / (5 if module == QUERY else 3))
    check(Checkpoint.open(tied, adapter=str(adapter)), expected)


def test_an_adapter_beside_the_weights_is_merged_when_asked_for(tied: Path, tmp_path: Path) -> None:
    directory = copy(tied, tmp_path / "model")
    write_adapter(directory)
    checkpoint = Checkpoint.open(directory, adapter=str(directory))
    check(checkpoint, dense(directory, directory, lambda module: 8 / 3))


def test_an_adapter_of_the_embedding(untied: Path, adapter: Path) -> None:
    a, b = torch.randn(3, 260), torch.randn(48, 3)
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    edit(adapter, lambda there: there.update({f"{name}A": a, f"{name}B": b}))
    expected = dense(untied, adapter, lambda module: 8 / 3)
    expected[EMBEDDING] = expected[EMBEDDING] + 8 / 3 * (b @ a).T
    check(Checkpoint.open(untied, adapter=str(adapter)), expected)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_modules_to_save_take_the_place_of_the_model_s(
    kind: str, adapter: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(kind)
    whole = {EMBEDDING: torch.randn(260, 48), HEAD: torch.randn(260, 48)}
    edit(
        adapter, lambda there: there.update({f"base_model.model.{n}": t for n, t in whole.items()})
    )
    checkpoint = Checkpoint.open(base, adapter=str(adapter))
    assert not checkpoint.config.tie_word_embeddings
    check(checkpoint, dense(base, adapter, lambda module: 8 / 3) | whole)


def test_the_weights_are_those_of_peft(tied: Path, adapter: Path) -> None:
    peft = pytest.importorskip("peft", reason="EXTRA CHECK NOT RUN: peft is not installed")
    from transformers import AutoModelForCausalLM

    edit_json(adapter / "adapter_config.json", use_rslora=True, alpha_pattern={"v_proj": 5})
    model = AutoModelForCausalLM.from_pretrained(tied)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    checkpoint = Checkpoint.open(tied, adapter=str(adapter))
    check(checkpoint, {name: merged[name] for name in checkpoint.names})


# ---- refusals ------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora is True"),
    "biases": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'"),
    "replicated layers": ({"layer_replication": [[0, 2]]}, "layer_replication is"),
    "a kind of tomorrow": ({"use_new_trick": True}, "use_new_trick is True"),
    "another rank": ({"r": 4}, "A has rank 3, adapter_config.json says 4"),
    "no number": ({"r": "many"}, "r must be a positive number, got 'many'"),
}


def refusal(base: Path, adapter: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(base, adapter=str(adapter))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("case", CONFIGS)
def test_an_unsupported_adapter_is_refused_by_name(case: str, tied: Path, adapter: Path) -> None:
    changes, message = CONFIGS[case]
    edit_json(adapter / "adapter_config.json", **changes)
    assert message in str(refusal(tied, adapter))


MISFITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "another model": (
        lambda t: t.update({f"base_model.model.{QUERY}.lora_B.weight": torch.ones(50, 3)}),
        "B [50, 3] do not make [48, 48]",
    ),
    "half a pair": (
        lambda t: t.pop(f"base_model.model.{QUERY}.lora_B.weight"),
        f"{QUERY}.weight: B is missing",
    ),
    "a matrix that is not there": (
        lambda t: t.update({"base_model.model.model.layers.9.x.lora_A.weight": torch.ones(3, 48)}),
        "is for model.layers.9.x.weight, which the model has not",
    ),
    "a longer vocabulary": (
        lambda t: t.update(
            {f"base_model.model.{name}": torch.ones(270, 48) for name in (EMBEDDING, HEAD)}
        ),
        f"{EMBEDDING} has shape [270, 48], the model's [260, 48]",
    ),
    "an embedding that is tied": (
        lambda t: t.update({f"base_model.model.{EMBEDDING}": torch.ones(260, 48)}),
        "ties its embedding and its head",
    ),
    "integers": (
        lambda t: t.update(
            {f"base_model.model.{QUERY}.lora_A.weight": torch.ones(3, 48, dtype=torch.int8)}
        ),
        "is I8, supported",
    ),
    "nothing": (lambda t: t.clear(), "it has no tensors"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_an_adapter_that_does_not_fit_is_refused(case: str, tied: Path, adapter: Path) -> None:
    change, message = MISFITS[case]
    edit(adapter, change)
    assert message in str(refusal(tied, adapter))


def test_a_folder_that_is_no_adapter(tied: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    assert "adapter_model.safetensors is missing" in str(refusal(tied, adapter))
    assert "adapter_config.json is missing" in str(refusal(tied, tied))

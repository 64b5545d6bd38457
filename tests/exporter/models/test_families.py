"""Every family against transformers on random configurations, and through all package formats."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter import models
from exporter.backends import registry
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.config import ExportConfig
from exporter.errors import CheckpointError, UsageError
from exporter.models import llama
from exporter.models.layers import DenseLayers
from exporter.quant.config import QuantConfig
from runtime_ref.parity import check_parity
from runtime_ref.residency import Residency
from runtime_ref.runners import open_runner
from tests.support import bundles as shared
from tests.support.checkpoints import LLAMA3_ROPE, SMALL, random_family, write_family

FORMATS = ("pte", "mlprogram", "custom-op")
SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries, tied": {},
    "untied, one kv head": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "wide heads, llama3 rope": {"head_dim": 24, "rope_scaling": LLAMA3_ROPE},
}
FEATURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "qwen3 with biases": {"attention_bias": True},
}
CASES = [(family, shape) for family in FEATURES for shape in SHAPES]


def family_of(case: str) -> str:
    return case.split()[0]


@pytest.mark.parametrize(("case", "shape"), CASES)
def test_logits_are_those_of_transformers(case: str, shape: str, tmp_path: Path) -> None:
    theirs = random_family(family_of(case), **FEATURES[case] | SHAPES[shape])
    theirs.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    weights = theirs.state_dict()
    ours = checkpoint.network(40, DenseLayers(weights.__getitem__)).eval()
    tokens = torch.randint(0, 100, (1, 23), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(tokens).logits[0]
        got = ours.logits(ours.hidden(tokens, torch.tensor([0])))[0]
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)


def test_every_family_is_tested() -> None:
    assert {family_of(case) for case in FEATURES} == set(models.supported())


@pytest.mark.parametrize("case", [case for case in FEATURES if case != "llama"])
def test_all_packages_of_a_family_pass_parity(case: str, tmp_path: Path) -> None:
    features = FEATURES[case] | {"tie_word_embeddings": False, "num_hidden_layers": 1}
    write_family(tmp_path / "model", family_of(case), **features)
    quantization = QuantConfig(scheme="int8")
    made = shared.export(
        tmp_path / "model", tmp_path / "out", quantization, formats=FORMATS, context=24
    )
    for artifact in made.manifest.artifacts:
        runner = open_runner(made, artifact, Residency("stream"), shared.no_progress)
        report = check_parity(made, runner, lambda n: None)
        assert report.passed, (artifact.format, [c for c in report.checks if not c.passed])


class RaisingModel:
    def __init__(self, *arguments: object) -> None:
        raise ZeroDivisionError("this network cannot be built")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_family_whose_model_raises_cannot_be_exported(
    checkpoint: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference and lowering build the family's own network, and no other in its place."""
    monkeypatch.setattr(llama, "Model", RaisingModel)
    with pytest.raises(ZeroDivisionError, match="cannot be built"):
        shared.export(checkpoint, tmp_path / "out", QuantConfig(), formats=(kind,), context=16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", FORMATS[1:])
def test_a_graph_drawn_by_hand_refuses_a_family_it_does_not_draw(
    checkpoint: Path, kind: str
) -> None:
    opened = Checkpoint.open(checkpoint)
    other = opened.config_dict | {"model_type": "other"}
    config = ExportConfig(QuantConfig(), formats=("pte", kind))
    with pytest.raises(UsageError, match="family other") as caught:
        registry.check(config, dataclasses.replace(opened, config_dict=other))
    assert [p.split(":")[0] for p in caught.value.problems] == [kind]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a sliding window in force": ("mistral", {"sliding_window": 16}, "sliding_window is 16"),
    "the default window": ("mistral", {"max_position_embeddings": 8192}, "sliding_window is 4096"),
    "windows in Qwen2": ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
    "some layers with windows": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_family_does_not_compute_is_refused(case: str) -> None:
    family, changes, message = REFUSED[case]
    architecture = {"architectures": [f"{family.capitalize()}ForCausalLM"]}
    with pytest.raises(CheckpointError) as refused:
        models.load(family).read_config(
            SMALL | {"model_type": family, "head_dim": 12} | architecture | changes
        )
    assert message in str(refused.value)


def test_defaults_are_those_of_transformers() -> None:
    """An absent head_dim of Qwen3 is 128, and not hidden_size / heads."""
    raw = SMALL | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    assert models.load("qwen3").read_config(raw).head_dim == 128

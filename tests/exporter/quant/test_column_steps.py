"""Factors of inputs: the model stays what it was, and its statistics are those measured on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.quant import calibration_passes, rate
from exporter.quant.calibration import Calibration, Statistics
from exporter.quant.calibration_passes import Passes
from exporter.quant.column_steps import EXPONENT, fold
from tests.support.bundles import no_progress
from tests.support.checkpoints import write_family

SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    ("qwen2", {"num_key_value_heads": 1}),
    ("qwen3", {"num_key_value_heads": 4, "intermediate_size": 33, "head_dim": 32}),
]
VALUES = "model.layers.0.self_attn.v_proj.weight"
OUTPUT = "model.layers.0.self_attn.o_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}-{len(shape[1])}")
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    family, options = request.param
    return write_family(tmp_path / "model", family, **options)


def calibrate(checkpoint: Checkpoint, folder: Path) -> Calibration:
    windows = torch.randint(100, (6, 60), generator=torch.Generator().manual_seed(1))
    folder.mkdir()
    calibration = Calibration(folder)
    Passes(checkpoint, windows, calibration, no_progress).run()
    return calibration


def matrices(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.names if len(checkpoint.shape(name)) == 2]


def folded(
    model: Path, tmp_path: Path, without: str | None = None
) -> tuple[Checkpoint, Checkpoint, Statistics]:
    given = Checkpoint.open(model)
    names = [name for name in matrices(given) if name != without]
    return given, *fold(given, names, calibrate(given, tmp_path / "given"))


def logits(model: Path, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of transformers' model with some weights replaced, float32 [n, vocab]."""
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    missing = dense.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    with torch.no_grad():
        found: torch.Tensor = dense(torch.arange(30)[None], use_cache=False).logits[0]
    return found


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    whole = {n: checkpoint.rows(n, 0, checkpoint.shape(n)[0]) for n in matrices(checkpoint)}
    return whole | checkpoint.vectors()


def test_the_model_computes_what_it_did(model: Path, tmp_path: Path) -> None:
    given, made, _ = folded(model, tmp_path)
    changed = weights(made)
    same = {n for n, w in weights(given).items() if torch.equal(w, changed[n])}
    ends = ("q_norm.weight", "k_norm.weight", "q_proj.bias", "k_proj.bias", "gate_proj.bias")
    ends = (*ends, "o_proj.bias", "down_proj.bias")
    tied = {EMBEDDING, "model.norm.weight"} if HEAD not in changed else {EMBEDDING}
    assert same == {n for n in changed if n.endswith(ends)} | tied
    expected = logits(model, {})
    found = logits(model, changed)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_statistics_are_those_of_the_folded_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what follows means: the damping of Gram matrices and the floor of sensitivities."""
    monkeypatch.setattr(rate, "DAMPING", 1e-6)
    monkeypatch.setattr(calibration_passes, "FLOOR", 0.0)
    _, made, statistics = folded(model, tmp_path)
    measured = calibrate(made, tmp_path / "measured")
    for name in matrices(made):
        expected, found = measured.curvature(name), statistics.curvature(name)
        torch.testing.assert_close(found.inputs.errors, expected.inputs.errors, rtol=0.02, atol=0)
        largest = float(expected.sensitivity.max())
        torch.testing.assert_close(
            found.sensitivity, expected.sensitivity, rtol=0.02, atol=1e-3 * largest
        )


def test_blocks_of_rows_are_parts_of_the_whole(model: Path, tmp_path: Path) -> None:
    _, made, _ = folded(model, tmp_path)
    whole = made.rows(VALUES, 0, made.shape(VALUES)[0])
    torch.testing.assert_close(made.rows(VALUES, 3, 9), whole[3:9], rtol=0, atol=0)


def test_factors_follow_the_errors_of_columns(model: Path, tmp_path: Path) -> None:
    given, made, statistics = folded(model, tmp_path)
    before = Calibration(tmp_path / "given").curvature(VALUES).inputs.errors.log()
    after = statistics.curvature(VALUES).inputs.errors.log()
    expected = (1 - 2 * EXPONENT) * (before - before.mean())
    torch.testing.assert_close(after - after.mean(), expected, rtol=1e-3, atol=1e-3)
    factors = made.vector(NORM) / given.vector(NORM)
    assert float(factors.log().mean()) == pytest.approx(0, abs=1e-4)


def test_a_matrix_that_is_not_at_the_rate_keeps_its_inputs_and_its_weights(
    model: Path, tmp_path: Path
) -> None:
    given, made, _ = folded(model, tmp_path, without=VALUES)
    before, after = weights(given), weights(made)
    for name in (VALUES, OUTPUT, NORM):
        assert torch.equal(before[name], after[name])
    torch.testing.assert_close(
        logits(model, after),
        logits(model, {}),
        rtol=1e-4,
        atol=1e-4 * float(after[VALUES].abs().max()),
    )

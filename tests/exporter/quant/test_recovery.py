"""Layers that are trained after they are quantized, judged by transformers' dense models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError, UsageError
from exporter.quant import plan
from exporter.quant.calibration import Calibration, Uncalibrated
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import MatrixQuantizer
from exporter.quant.rate_quantizer import RateQuantizer
from exporter.quant.recovery import divergence
from exporter.quant.rules import Rule
from exporter.quant.sequential import FACTOR, SequentialQuantizer
from exporter.quant.trained_matrix import LatentMatrix, ScaledMatrix, TrainedMatrix
from exporter.quant.trained_quantizer import LEVELS, TRAINED, TrainedQuantizer
from tests.support.bundles import no_progress
from tests.support.checkpoints import write_family
from tests.support.cut_passes import cut_off

WINDOWS, TOKENS, STEPS = 3, 20, 30
SHAPES: list[tuple[str, dict[str, Any], int | None]] = [
    ("llama", {}, 16),
    ("llama", {"tie_word_embeddings": False, "num_hidden_layers": 3, "attention_bias": True}, None),
    ("qwen3", {"num_key_value_heads": 4, "intermediate_size": 33}, 20),
]


def windows() -> torch.Tensor:
    return torch.randint(100, (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(1))


def trained(model: Path, folder: Path, config: QuantConfig) -> TrainedQuantizer:
    """The quantizer of a model after the steps that a configuration asks for."""
    checkpoint = Checkpoint.open(model)
    folder.mkdir(exist_ok=True)
    calibration, plans = Calibration(folder), plan.fitted(config, checkpoint)
    coarse = dict.fromkeys(plan.names_at_rate(config, checkpoint), 0.02)
    others = {name: given for name, given in plans.items() if name not in coarse}
    sources: list[MatrixQuantizer] = [RateQuantizer(checkpoint, Uncalibrated(checkpoint), coarse)]
    if others:
        sequential = SequentialQuantizer(checkpoint, others, windows(), calibration)
        sequential.calibrate(no_progress)
        sources.append(sequential)
    matrices, steps = plan.trained(plans), config.recovery_steps
    made = TrainedQuantizer(checkpoint, sources, matrices, max(1, steps), windows(), calibration)
    if steps:
        made.train(no_progress)
    return made


def dense_logits(model: Any) -> torch.Tensor:
    """Logits of a dense model of all windows, float32 [windows, tokens, vocab]."""
    with torch.no_grad():
        logits: torch.Tensor = model(windows(), use_cache=False).logits
    return logits


def drift(path: Path, made: TrainedQuantizer, config: QuantConfig) -> float:
    """The mean divergence from a checkpoint's dense model of the model that was made of it."""
    dense: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    expected = dense_logits(dense).double().log_softmax(-1)
    checkpoint = made.with_trained_norms()
    plans = plan.fitted(config, checkpoint)
    with torch.no_grad():
        for name in checkpoint.names:
            if name in made.names:
                size = plans[name].group_size(checkpoint.shape(name)[1])
                parts = [dequantized(size, *part[1:]) for part in made.blocks(name)]
                dense.get_parameter(name).copy_(torch.from_numpy(np.concatenate(parts)))
            elif len(checkpoint.shape(name)) == 1:
                dense.get_parameter(name).copy_(checkpoint.vector(name))
    found = dense_logits(dense).double().log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def dequantized(size: int, levels: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    return levels.numpy() * np.repeat(scales.numpy(), size, axis=1)[:, : levels.shape[1]]


@pytest.mark.parametrize(("family", "options", "size"), SHAPES)
def test_the_model_comes_closer_to_the_given_one(
    tmp_path: Path, family: str, options: dict[str, Any], size: int | None
) -> None:
    model = write_family(tmp_path / "model", family, **options)
    found = []
    for steps in (None, STEPS):
        config = QuantConfig("ternary", group_size=size, recover=steps)
        made = trained(model, tmp_path / f"work-{steps}", config)
        found.append(drift(model, made, config))
    assert found[1] < 0.85 * found[0], found
    for name in made.names:
        ((_, levels, scales),) = made.blocks(name)
        assert levels.dtype == torch.int8
        assert set(levels.unique().tolist()) <= {-1, 0, 1}
        mantissas = np.frexp(scales.numpy())[0] * 2**11
        assert (mantissas == np.rint(mantissas)).all()


def test_levels_at_a_rate_stay_and_scales_are_trained(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "llama", attention_bias=True)
    found, matrices = [], []
    for steps in (None, STEPS):
        config = QuantConfig("int8", bits_per_weight=2.0, recover=steps)
        made = trained(model, tmp_path / f"work-{steps}", config)
        found.append(drift(model, made, config))
        matrices.append({name: next(made.blocks(name)) for name in made.names})
    assert found[1] < 0.9 * found[0], found
    for name, (_, levels, scales) in matrices[1].items():
        _, levels_before, scales_before = matrices[0][name]
        assert torch.equal(levels, levels_before)
        assert torch.equal(scales, scales_before) == ("layers" not in name), name


def latent(size: int) -> tuple[LatentMatrix, torch.Tensor, torch.Tensor]:
    """A matrix before training, with its levels int8 [4, 10] and scales float32 [4, n]."""
    generator = torch.Generator().manual_seed(size)
    w = torch.randn(4, 10, generator=generator)
    levels = torch.randint(-1, 2, w.shape, generator=generator).to(torch.int8)
    levels[2] = 0
    scales = torch.randint(1, 5, (4, -(-10 // size)), generator=generator) / 4
    scales[2] = 0
    return LatentMatrix.of(w, levels, scales, size), levels, scales


def scaled(size: int) -> tuple[ScaledMatrix, torch.Tensor, torch.Tensor]:
    """The same with levels that stay."""
    _, levels, scales = latent(size)
    return ScaledMatrix.of(levels, scales, size), levels, scales


@pytest.mark.parametrize("size", [3, 5, 10])
@pytest.mark.parametrize("begun", [latent, scaled])
def test_a_matrix_begins_as_it_was_quantized(
    begun: Callable[[int], tuple[TrainedMatrix, torch.Tensor, torch.Tensor]], size: int
) -> None:
    matrix, levels, scales = begun(size)
    found_levels, found_scales = matrix.finished()
    assert torch.equal(found_levels, levels)
    used = torch.stack([part.any(1) for part in levels.split(size, 1)], 1)
    assert torch.equal(found_scales, torch.where(used, scales, 0.0))
    expected = levels.numpy() * np.repeat(scales.numpy(), size, axis=1)[:, :10]
    assert np.array_equal(matrix.quantized().numpy(), expected)


@pytest.mark.parametrize("size", [3, 10])
def test_gradients_pass_through_the_rounding(size: int) -> None:
    """Those of latent weights are g s, those of a scale's logarithm the sum of g w."""
    matrix = latent(size)[0].to(torch.device("cpu"))
    g, w = gradient_through(matrix)
    assert matrix.weights.grad is not None
    s = np.repeat(matrix.scales.numpy(), size, axis=1)[:, :10]
    np.testing.assert_allclose(matrix.weights.grad.numpy(), g.numpy() * s, rtol=1e-6)
    assert_gradient_of_scales(matrix.logs, g * w, size)


@pytest.mark.parametrize("size", [3, 10])
def test_levels_that_stay_have_gradients_of_scales(size: int) -> None:
    matrix = scaled(size)[0].to(torch.device("cpu"))
    g, w = gradient_through(matrix)
    assert [tensor is matrix.logs for tensor, _ in matrix.parameters()] == [True]
    assert_gradient_of_scales(matrix.logs, g * w, size)


def gradient_through(matrix: TrainedMatrix) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient of the weights of a matrix, which has passed to what is trained; the weights."""
    g = torch.randn(4, 10, generator=torch.Generator().manual_seed(3))
    w = matrix.quantized()
    (g * w).sum().backward()
    return g, w.detach()


def assert_gradient_of_scales(logs: torch.Tensor, products: torch.Tensor, size: int) -> None:
    expected = [products[:, i : i + size].sum(1).numpy() for i in range(0, 10, size)]
    assert logs.grad is not None
    np.testing.assert_allclose(logs.grad.numpy(), np.stack(expected, 1), rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_divergence_of_a_token() -> None:
    generator = torch.Generator().manual_seed(5)
    found, expected = torch.randn(2, 1, 7, 30, generator=generator)
    p, q = (np.exp(x[0].double().numpy()) for x in (expected, found))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    kl = (p * np.log(p / q)).sum(-1).mean()
    assert float(divergence(found, expected)) == pytest.approx(kl, rel=1e-5)


CUT = QuantConfig("ternary", group_size=16, recover=3)  # of trainings that are cut off


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A model, and the files of its training where nothing cut it off."""
    folder = tmp_path_factory.mktemp("whole")
    model = write_family(folder / "model", "llama")
    trained(model, folder / "work", CUT)
    return model, contents(folder / "work")


@pytest.mark.parametrize("call", [1, 2, 3, 4, 6])
def test_passes_that_were_cut_off_give_the_same_bytes(
    whole: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call writes the inputs of a layer: in the quantized model, and then in the given one."""
    model, expected = whole
    cut_off(monkeypatch, call, lambda: trained(model, tmp_path, CUT))
    trained(model, tmp_path, CUT)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("written", [0, 3, 40, 47, 93, 120])
def test_training_that_was_cut_off_gives_the_same_bytes(
    whole: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    written: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is cut off after a number of files of its state, or of what has come of it."""
    model, expected = whole
    real, count = Calibration.write, 0

    def write(self: Calibration, name: str, tensor: torch.Tensor) -> None:
        nonlocal count
        if not name.endswith(FACTOR):
            if count == written:
                raise KeyboardInterrupt
            count += 1
        real(self, name, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(Calibration, "write", write)
        with pytest.raises(KeyboardInterrupt):
            trained(model, tmp_path, CUT)
    trained(model, tmp_path, CUT)
    assert contents(tmp_path) == expected


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_progress_counts_layers_and_steps(tmp_path: Path) -> None:
    """Two layers of the given model, and the steps."""
    model = write_family(tmp_path / "model", "llama")
    told: list[tuple[str, int, int]] = []
    made = trained(model, tmp_path / "work", QuantConfig("ternary"))
    plans = plan.fitted(QuantConfig("ternary", recover=4), made.checkpoint)
    made = dataclasses.replace(made, trained=plan.trained(plans), steps=4)
    made.train(lambda *values: told.append(values))
    assert all((what, total) == ("train", 6) for what, _, total in told)
    assert [done for _, done, _ in told] == [0, 1, 3, 4, 5, 6]


@pytest.mark.parametrize(("steps", "windows_read"), [(2, 2), (3, 3), (7, 3)])
def test_steps_read_each_window_before_one_comes_again(
    tmp_path: Path, steps: int, windows_read: int
) -> None:
    checkpoint = Checkpoint.open(write_family(tmp_path / "model", "llama"))
    made = TrainedQuantizer(checkpoint, [], [], steps, windows(), Calibration(tmp_path))
    assert len(made.order) == steps
    for begin in range(0, steps, WINDOWS):
        part = made.order[begin : begin + WINDOWS]
        assert len(set(part)) == len(part)
    assert len(made.passage.windows) == windows_read
    given = windows().tolist()
    assert all(window in given for window in made.passage.windows.tolist())


def test_what_no_rule_trains_stays(tmp_path: Path) -> None:
    """Of the first layer all is trained; of the second a matrix, so that its norms are as given."""
    model = write_family(tmp_path / "model", "llama")
    rules = (
        Rule("model.layers.0.*", "ternary", {"recover": 5}),
        Rule("*.1.mlp.down_proj.weight", "ternary", {"group_size": 16, "recover": 5}),
        Rule("*.1.mlp.up_proj.weight", "ternary", {"group_size": 16}),
        Rule("*", "int8"),
    )
    made = trained(model, tmp_path / "work", QuantConfig("mixed", rules=rules))
    found = [name for name in made.checkpoint.names if made.calibration.has(f"{name}.{LEVELS}")]
    assert found == [
        *(n for n in made.checkpoint.names if ".0." in n and n.endswith("proj.weight")),
        "model.layers.1.mlp.down_proj.weight",
    ]
    norms = made.with_trained_norms().vectors()
    changed = [n for n, v in norms.items() if not torch.equal(v, made.checkpoint.vector(n))]
    assert changed == [n for n in made.checkpoint.names if ".0." in n and n.endswith("norm.weight")]
    assert [n for n in norms if made.calibration.has(f"{n}.{TRAINED}")] == changed


def test_layers_of_both_kinds_are_trained_together(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "llama")
    found = []
    for recover in ({}, {"recover": STEPS}):
        rules = (
            Rule("model.layers.0.*", "ternary", {"group_size": 16, **recover}),
            Rule("model.layers.1.*", "int8", {"bits_per_weight": 2.0, **recover}),
            Rule("*", "int8"),
        )
        config = QuantConfig("mixed", rules=rules)
        made = trained(model, tmp_path / f"work-{len(recover)}", config)
        found.append(drift(model, made, config))
    norms = made.with_trained_norms().vectors()
    changed = [n for n, v in norms.items() if not torch.equal(v, made.checkpoint.vector(n))]
    assert changed == [n for n in norms if "layernorm" in n]
    assert found[1] < 0.8 * found[0], found


def test_a_damaged_matrix_is_told(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "llama")
    made = trained(model, tmp_path / "work", QuantConfig("ternary", recover=1))
    file = tmp_path / "work" / f"model.layers.0.mlp.up_proj.weight.{LEVELS}"
    data = bytearray(file.read_bytes())
    data[-9] ^= 2
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        list(made.blocks("model.layers.0.mlp.up_proj.weight"))


def test_two_numbers_of_steps_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_family(tmp_path / "model", "llama"))
    rules = (
        Rule("*.0.mlp.*", "ternary", {"recover": 5}),
        Rule("*.1.mlp.*", "ternary", {"recover": 6}),
        Rule("*", "int8"),
    )
    with pytest.raises(UsageError, match="one number of steps; the plan has 5, 6"):
        plan.check(QuantConfig("mixed", rules=rules), checkpoint)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"scheme": "int4", "recover": 5}, "recover is an option of scheme int8 or ternary"),
        ({"scheme": "int8", "recover": 0}, "recover must be a positive number of steps; got 0"),
        ({"scheme": "ternary", "recover": 0}, "recover must be a positive number of steps; got 0"),
        ({"scheme": "ternary", "recover": True}, "recover must be a positive number of steps"),
        ({"scheme": "ternary", "recover": 5, "sparsity": 0.5}, "recover and sparsity exclude"),
    ],
)
def test_what_recover_does_not_go_with_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        QuantConfig(**settings)
    assert any(problem in text for text in caught.value.problems)


@pytest.mark.parametrize("scheme", ["int8", "auto"])
def test_rounded_levels_are_not_trained(tmp_path: Path, scheme: str) -> None:
    checkpoint = Checkpoint.open(write_family(tmp_path / "model", "llama"))
    with pytest.raises(UsageError, match="recover trains nothing here") as caught:
        plan.check(QuantConfig(scheme, recover=5), checkpoint)
    assert "--bits-per-weight" in caught.value.hint

"""Exports of ternary levels that are fitted to the model: what they hold, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tinyqmoe
from exporter import encoded, pipeline
from exporter.bundle import EMBEDDING, Bundle
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.config import ExportConfig
from exporter.errors import CheckpointError, UsageError
from exporter.estimate import export_memory
from exporter.quant import plan, recovery
from exporter.quant.calibration import Calibration, CalibrationText
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from exporter.quant.rules import Rule, read
from exporter.quant.sequential import SequentialQuantizer
from tests.support import ternary_models
from tests.support.bundles import TEXT, no_progress, write_text_model
from tests.support.checkpoints import write_llama

GROUPED = QuantConfig("ternary", group_size=32)
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("fitted") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3)
    return path


def export(
    model: Path, out: Path, config: QuantConfig, text: object, resume: bool = False, **options: Any
) -> Bundle:
    options = {"formats": ("custom-op",), "context": 24, "calibration": str(text)} | options
    return pipeline.export(model, out, ExportConfig(config, **options), no_progress, resume=resume)


@pytest.fixture(scope="module")
def fitted(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Groups of 32 weights."""
    return export(model, tmp_path_factory.mktemp("made") / "out", GROUPED, text)


def test_the_package_passes_parity(fitted: Bundle) -> None:
    assert tinyqmoe.check_parity(fitted).passed


def test_levels_are_those_of_the_calibration(
    model: Path, text: Path, fitted: Bundle, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(model)
    windows = CalibrationText("x", text.read_text()).windows(checkpoint)
    plans = plan.fitted(GROUPED, checkpoint)
    quantizer = SequentialQuantizer(checkpoint, plans, windows, Calibration(tmp_path))
    quantizer.calibrate(no_progress)
    ((_, levels, scales),) = quantizer.blocks(DOWN)
    (entry,) = (t for t in fitted.manifest.tensors if t.name == DOWN)
    assert (entry.scheme, entry.group_size, entry.own_levels) == ("ternary", 32, False)
    assert entry.levels_crc32 == crc_of_levels(levels)
    assert (entry.scale_type, entry.scales_bytes) == ("ue6m10", 2 * scales.numel())
    rate = fitted.manifest.rate
    assert rate is not None
    assert (rate.text, rate.tokens) == ("text.txt", windows.numel())
    assert rate.text_sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    assert (rate.bits_asked, rate.constant) == (None, None)
    layers = [t for t in fitted.manifest.tensors if t.name != EMBEDDING]
    size = sum(t.blob_bytes + t.scales_bytes for t in layers)
    assert rate.bits_per_weight == pytest.approx(8 * size / sum(t.rows * t.cols for t in layers))


def crc_of_levels(levels: torch.Tensor) -> int:
    import zlib

    return zlib.crc32(levels.numpy().tobytes())


@pytest.mark.parametrize(
    "config",
    [GROUPED, QuantConfig("ternary", group_size=32, sparsity=0.4)],
    ids=["no text", "a sparsity"],
)
def test_without_a_text_or_with_a_sparsity_levels_are_rounded(
    model: Path, tmp_path: Path, config: QuantConfig
) -> None:
    options = {} if config.sparsity else {"calibration": "none"}
    made = pipeline.export(
        model,
        tmp_path / "out",
        ExportConfig(config, ("custom-op",), 24, **options),
        no_progress,
    )
    assert made.manifest.rate is None
    rounded = {t.name: t for t in quantize(Checkpoint.open(model), config)}
    for entry in made.manifest.tensors:
        assert entry.levels_crc32 == crc_of_levels(
            torch.from_numpy(np.array(rounded[entry.name].levels))
        )


def test_a_plan_may_have_a_rate_beside_it(model: Path, text: Path, tmp_path: Path) -> None:
    rules = (
        Rule("*.down_proj.weight", "ternary", {"group_size": 16}),
        Rule("*.up_proj.weight", "ternary", {"sparsity": 0.5}),
        Rule("*", "int8", {"bits_per_weight": 4}),
    )
    made = export(model, tmp_path / "out", QuantConfig("mixed", rules=rules), text)
    schemes = {t.name: (t.scheme, t.group_size) for t in made.manifest.tensors}
    assert schemes[DOWN] == ("ternary", 16)
    assert schemes[DOWN.replace("down", "up")] == ("ternary", 64)
    assert schemes[EMBEDDING] == ("int8", 64)


def test_an_export_that_was_cut_off_gives_the_same_bytes(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(model, tmp_path / "whole", GROUPED, text)
    real, calls = encoded._write_record, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(encoded, "_write_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(model, tmp_path / "cut", GROUPED, text)
    resumed = export(model, tmp_path / "cut", GROUPED, text, resume=True)
    manifests = [dataclasses.replace(b.manifest, created="") for b in (whole, resumed)]
    assert manifests[0] == manifests[1]


@pytest.fixture(scope="module")
def trained(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("trained") / "out"
    return export(model, out, dataclasses.replace(GROUPED, recover=20), text)


def test_a_trained_package_passes_parity(trained: Bundle) -> None:
    """Its norms ship with it: the answers that parity compares with are of the trained ones."""
    assert tinyqmoe.check_parity(trained).passed
    assert trained.manifest.quantization["recover"] == 20


@pytest.mark.parametrize("cut", ["a step", "coding"])
def test_training_that_was_cut_off_gives_the_same_bytes(
    model: Path,
    text: Path,
    trained: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: str,
) -> None:
    owner, method = {
        "a step": (recovery.Recovery, "_loss"),
        "coding": (encoded, "_write_record"),
    }[cut]
    real, calls = getattr(owner, method), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    config = dataclasses.replace(GROUPED, recover=20)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(model, tmp_path / "out", config, text)
    resumed = export(model, tmp_path / "out", config, text, resume=True)
    manifests = [dataclasses.replace(b.manifest, created="") for b in (trained, resumed)]
    assert manifests[0] == manifests[1]


def test_a_saved_plan_trains_again(
    model: Path, text: Path, trained: Bundle, tmp_path: Path
) -> None:
    """One layer trained, beside matrices at a rate; its plan, replayed, gives the same bytes."""
    rules = (
        Rule("model.layers.0.*", "ternary", {"group_size": 16, "recover": 4}),
        Rule("*", "int8", {"bits_per_weight": 4}),
    )
    plan_file = tmp_path / "plan.json"
    first = export(
        model, tmp_path / "a", QuantConfig("mixed", rules=rules), text, save_plan=plan_file
    )
    again = QuantConfig("mixed", rules=read(plan_file))
    second = export(model, tmp_path / "b", again, text)
    assert tinyqmoe.check_parity(first).passed
    assert [t.levels_crc32 for t in first.manifest.tensors] == [
        t.levels_crc32 for t in second.manifest.tensors
    ]
    weights = [[f for f in b.manifest.files if "mlpackage" in f.path] for b in (first, second)]
    assert weights[0] == weights[1]


def test_fitting_has_its_stage_of_memory(model: Path) -> None:
    def stages(**options: Any) -> dict[str, int]:
        config = ExportConfig(GROUPED, ("custom-op",), **options)
        found = export_memory.stages(Checkpoint.open(model), config, 24)
        return {stage.what: stage.n_bytes for stage in found}

    assert {"calibrating", "fitting levels"} < stages().keys()
    assert not {"calibrating", "fitting levels"} & stages(calibration="none").keys()


def test_training_has_its_stage_of_memory(model: Path) -> None:
    config = ExportConfig(dataclasses.replace(GROUPED, recover=5), ("custom-op",))
    found = export_memory.stages(Checkpoint.open(model), config, 24)
    assert "training layers" in [stage.what for stage in found]


def test_training_without_a_text_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        ExportConfig(dataclasses.replace(GROUPED, recover=5), calibration="none")
    assert caught.value.problems == ["recover trains on a text: leave calibration none away"]


def test_there_is_nothing_to_train_of_a_ternary_checkpoint(text: Path, tmp_path: Path) -> None:
    made = ternary_models.ternary_family(num_hidden_layers=1)
    path = ternary_models.write_floats(tmp_path / "model", made, torch.float16)
    with pytest.raises(UsageError, match="recover trains nothing here") as caught:
        export(path, tmp_path / "out", QuantConfig("ternary", recover=5), text)
    assert "leave recover away" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_refused_before_work(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    with pytest.raises(CheckpointError, match="needs a tokenizer") as caught:
        pipeline.export(model, tmp_path / "new" / "out", ExportConfig(GROUPED), no_progress)
    assert "--calibration none" in caught.value.hint
    assert not (tmp_path / "new").exists()


def test_a_ternary_checkpoint_is_not_calibrated(text: Path, tmp_path: Path) -> None:
    """Its levels are its own; a text that would not be read is refused."""
    made = ternary_models.ternary_family(num_hidden_layers=1)
    path = ternary_models.write_floats(tmp_path / "model", made, torch.float16)
    with pytest.raises(UsageError, match="nothing is to be calibrated") as caught:
        export(path, tmp_path / "out", QuantConfig("ternary", embedding="ternary"), text)
    assert "--calibration" in caught.value.hint
    assert not (tmp_path / "out").exists()

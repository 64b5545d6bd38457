"""int4, and a scheme that is added by its file alone: quantized, packed and estimated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exporter import quant
from exporter.bundle import Bundle
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.codec.weight_file import PLAIN_FORMS, plain_form
from exporter.config import ExportConfig
from exporter.estimate.bundle import estimate_bundle
from exporter.quant import int4
from exporter.quant.config import QuantConfig
from runtime_ref.parity import check_parity
from runtime_ref.residency import Residency
from runtime_ref.runners import open_runner
from tests.support import bundles as shared
from tests.support.checkpoints import write_llama

FORMATS = ("pte", "mlprogram", "custom-op")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer whose columns are multiples of 32, as an ML Program wants them for groups."""
    directory = tmp_path_factory.mktemp("schemes") / "model"
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    return write_llama(directory, **shape, vocab_size=90)


def all_pass(made: Bundle) -> None:
    for artifact in made.manifest.artifacts:
        runner = open_runner(made, artifact, Residency("stream"), shared.no_progress)
        report = check_parity(made, runner, lambda n: None)
        assert report.passed, (artifact.format, [c for c in report.checks if not c.passed])


@pytest.mark.parametrize("group_size", [None, 7, 64])
def test_int4_rounds_to_nearest_within_each_group(group_size: int | None) -> None:
    w = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    w[0, :40] = 0
    levels, scales = int4.quantize_rows(w, int4.Config(group_size))
    size = group_size or int4.GROUP_SIZE
    for g in range(-(-100 // size)):
        part, scale = w[:, g * size : (g + 1) * size].numpy(), scales[:, g : g + 1].numpy()
        largest = np.abs(part).max(1, keepdims=True)
        assert (scale * 7 >= largest).all()
        np.testing.assert_allclose(scale * 7, largest, rtol=2**-10)
        expected = np.round(part / np.where(scale == 0, 1, scale))
        np.testing.assert_array_equal(levels[:, g * size : (g + 1) * size].numpy(), expected)


def test_int4_takes_groups_of_32_where_none_are_asked_for() -> None:
    assert int4.Config().group_size == 32
    config = QuantConfig(scheme="int4").config_for("model.layers.0.mlp.up_proj.weight")
    assert config == int4.Config(32)


@pytest.mark.parametrize("name", PLAIN_FORMS)
@pytest.mark.parametrize("n", [1, 7, 8, 4097])
def test_plain_forms_hold_their_levels(name: str, n: int) -> None:
    largest = {"uint2": 1, "int4": 7, "int8": 127}[name]
    drawn = np.random.default_rng(n).integers(-largest, largest + 1, n)
    levels, form = drawn.astype(np.int8), PLAIN_FORMS[name]
    packed = form.pack(levels)
    assert packed.size == form.n_bytes(n) == -(-n * form.bits // 8)
    np.testing.assert_array_equal(form.unpack(packed, n), levels)
    assert plain_form(2 * largest + 1) is form


def test_int4_in_all_packages(model: Path, tmp_path: Path) -> None:
    quantization = QuantConfig(scheme="int4", embedding="int4")
    made = shared.export(model, tmp_path / "out", quantization, formats=FORMATS, context=24)
    assert {t.group_size for t in made.manifest.tensors} == {32}
    program = made.artifact("mlprogram")
    assert {place.form for place in program.places.values()} == {"int4"}
    all_pass(made)


NEW = """
from dataclasses import dataclass
from exporter.quant.tensor import (
    JsonConfig, by_group, dequantize, group_size_problems, round_symmetric
)

NAME, LEVEL_MIN, N_LEVELS = "int5", -15, 31

@dataclass(frozen=True)
class Config(JsonConfig):
    group_size: int | None = None

    def problems(self):
        return group_size_problems(self.group_size)

def expected_entropy(config):
    return 4.6

def quantize_rows(w, config):
    return by_group(w, config.group_size, lambda groups: round_symmetric(groups, 15))
"""


def test_a_scheme_is_added_by_its_file_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else in the tool knows its name: not the backends, the estimate or the parity."""
    folder = tmp_path / "schemes"
    folder.mkdir()
    (folder / "int5.py").write_text(NEW)
    monkeypatch.setattr(quant, "__path__", [*quant.__path__, str(folder)])
    assert "int5" in quant.supported()
    quantization = QuantConfig(scheme="int5", group_size=32)
    config = ExportConfig(quantization, FORMATS)
    planned = estimate_bundle(Checkpoint.open(model), config, 24)
    made = shared.export(model, tmp_path / "out", quantization, formats=FORMATS, context=24)
    for before, after in zip(planned.tensors, made.manifest.tensors, strict=True):
        assert (before.scheme, before.n_levels, before.group_size, before.scales_bytes) == (
            after.scheme,
            after.n_levels,
            after.group_size,
            after.scales_bytes,
        )
    all_pass(made)

"""The public interface: what it refuses, and what its results are."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tinyqmoe
from exporter.bundle import Bundle
from exporter.config import ExportConfig
from exporter.quant.config import QuantConfig


def test_settings_are_the_fields_of_the_configurations() -> None:
    """A new setting is a field, a line in ExportSettings and an option of the command line.

    `rules` are read from the file that `plan` names.
    """
    known = {field.name for kind in (QuantConfig, ExportConfig) for field in fields(kind)}
    assert set(tinyqmoe.ExportSettings.__annotations__) == known - {"quantization", "rules"} | {
        "plan"
    }
    assert tinyqmoe.export_config() == ExportConfig(QuantConfig())


def test_settings_go_where_they_belong() -> None:
    config = tinyqmoe.export_config(
        scheme="int8", group_size=32, formats="custom-op", loss_text="a"
    )
    quantization = QuantConfig(scheme="int8", group_size=32)
    assert config == ExportConfig(quantization, ("custom-op",), loss_text=Path("a"))
    assert tinyqmoe.export_config(config) is config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheme": "float3", "embedding": "x"}, "embedding must be one of"),
        ({"formats": ["pte", "gguf"]}, "a format must be one of pte"),
        ({"formats": []}, "formats must name at least one"),
        ({"codec": "zip", "activations": "int4"}, "activations must be one of int16"),
        ({"chunk_bytes": 0}, "chunk_bytes must be a positive number"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(tinyqmoe.UsageError, match=said):
        tinyqmoe.export("no-such-model", tmp_path / "out", **settings)


def test_a_setting_that_is_unknown_is_a_mistake_in_the_program(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="sparsty"):
        tinyqmoe.export("no-such-model", tmp_path, sparsty=0.5)  # type: ignore[call-arg]


def test_a_config_and_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(tinyqmoe.UsageError, match="scheme besides"):
        tinyqmoe.export("m", tmp_path, config=tinyqmoe.export_config(), scheme="int8")


def test_all_that_is_public_is_there() -> None:
    assert {name for name in tinyqmoe.__all__ if getattr(tinyqmoe, name) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        tinyqmoe.quantise  # noqa: B018


def test_text_comes_in_pieces_and_its_result_ends_it(bundle: Bundle) -> None:
    text = tinyqmoe.generate(bundle, "the cat", max_new_tokens=6)
    first = next(text)
    result = text.result
    assert result.text.startswith(first)
    assert list(text) == []
    again = tinyqmoe.generate(bundle.path, "the cat", max_new_tokens=6)
    assert "".join(again) == result.text
    assert again.result.tokens == result.tokens


def test_a_runner_serves_several_generations(bundle: Bundle) -> None:
    runner = tinyqmoe.open_runner(bundle, residency="expand")
    texts = ["".join(tinyqmoe.generate(bundle, "a", max_new_tokens=4, runner=runner)) for _ in "ab"]
    assert texts[0] == texts[1]
    with pytest.raises(tinyqmoe.UsageError, match="a runner has its backend"):
        tinyqmoe.generate(bundle, "a", runner=runner, backend="pte")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_new_tokens": 0}, tinyqmoe.UsageError),
        ({"temperature": -1.0}, tinyqmoe.UsageError),
        ({"backend": "coreml"}, tinyqmoe.UsageError),
        ({"prompt": "cat " * 99}, tinyqmoe.ContextError),
    ],
)
def test_what_cannot_be_generated_is_refused_at_the_call(
    bundle: Bundle, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        tinyqmoe.generate(bundle, **{"prompt": "the cat", **options})


def test_parity_tells_progress_and_gives_plain_values(bundle: Bundle) -> None:
    stages = []
    parity = tinyqmoe.check_parity(
        bundle, progress=lambda stage, done, total: stages.append((stage, done, total))
    )
    assert parity.passed
    assert [report.backend for report in parity.reports] == ["executorch", "native"]
    assert parity.to_dict()["packages"][0]["passed"] is True
    stage, done, total = stages[-1]
    assert stage == "check parity of native"
    assert done == total > 0


def test_fit_of_a_bundle_and_of_a_model(bundle: Bundle, checkpoint: Path) -> None:
    (verdict,) = tinyqmoe.fit(bundle, devices="iphone-13")
    assert (verdict.device, verdict.format, verdict.fits) == ("iphone-13", "pte", True)
    assert verdict.problems == verdict.advice == []
    before = tinyqmoe.fit(checkpoint, devices=["iphone-13"], context=48)
    assert tuple(v.format for v in before) == tinyqmoe.FORMATS
    with pytest.raises(tinyqmoe.UsageError, match="scheme cannot be given for a bundle"):
        tinyqmoe.fit(bundle, scheme="int8")


def test_devices_are_names_files_and_profiles() -> None:
    every = tinyqmoe.find_devices()
    assert tinyqmoe.find_devices(["all", every[0].name]) == every
    assert tinyqmoe.find_devices([every[0], every[1].name]) == [every[1], every[0]]
    with pytest.raises(tinyqmoe.UsageError, match="there is no file"):
        tinyqmoe.find_devices(Path("no-such.toml"))

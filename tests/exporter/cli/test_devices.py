"""The commands that judge packages on simulated phones, as a user and a CI system meet them."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import Bundle
from runtime_ref.device import profile as device
from tests.support.command_line import one_error, strict_json, tinyqmoe

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="NOT TESTED: memory limits are enforced by the Linux kernel only",
)
FIGURE = '{{ value = {}, source = "a test", confidence = "low" }}'


def phone(folder: Path, name: str, limit_mb: float) -> Path:
    """A file of a device whose apps may have so much."""
    figures = {
        "ram_gb": 4,
        "dram_gb_per_s": 20,
        "page_kib": 16,
        "limit_mb": limit_mb,
        "performance_cores": 2,
    }
    lines = [f'title = "A phone called {name}"', 'platform = "ios"']
    path = folder / f"{name}.toml"
    path.write_text(
        "\n".join([*lines, *(f"{key} = {FIGURE.format(value)}" for key, value in figures.items())])
    )
    return path


# ---- devices


def test_devices_are_listed_and_shown() -> None:
    listed = tinyqmoe("devices")
    assert listed.exit_code == 0
    assert all(profile.name in listed.stdout for profile in device.all_devices())
    shown = tinyqmoe("devices", "iphone-13")
    assert "allenai/OLMoE.swift#38" in shown.stdout
    assert "medium" in shown.stdout


def test_devices_as_json(tmp_path: Path) -> None:
    data = strict_json(tinyqmoe("devices", "--json", "-").stdout)["devices"]
    assert [d["name"] for d in data] == [p.name for p in device.all_devices()]
    (mine,) = strict_json(
        tinyqmoe("devices", "--device-file", phone(tmp_path, "mine", 100), "--json", "-").stdout
    )["devices"]
    assert mine["limit_mb"] == {"value": 100, "source": "a test", "confidence": "low"}


def test_a_device_that_is_not_known_is_told_with_those_alike() -> None:
    for command in (("devices", "iphone-31"), ("fit", "x", "--device", "iphone-31")):
        assert "perhaps iphone-1" in one_error(tinyqmoe(*command), 2)


def test_a_device_file_that_is_wrong_is_told_whole(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text('title = "x"\nplatform = "ios"\nram = 4')
    message = one_error(tinyqmoe("devices", "--device-file", path), 3)
    assert all(
        part in message for part in ("ram is unknown", "ram_gb is missing", "limit_mb is missing")
    )


# ---- fit


def test_fit_of_a_bundle_on_one_device_shows_holders(bundle: Bundle) -> None:
    result = tinyqmoe("fit", bundle.path, "--device", "iphone-13")
    assert result.exit_code == 0
    for what in ("KV cache", "runtime", "most of it", "fits"):
        assert what in result.stdout
    assert "what would help" not in result.stdout


def test_fit_on_all_devices_is_a_table(bundle: Bundle) -> None:
    result = tinyqmoe("fit", bundle.path)
    assert result.exit_code == 0
    assert all(profile.name in result.stdout for profile in device.all_devices())


def test_what_does_not_fit_ends_with_one_and_says_what_would_help(
    bundle: Bundle, tmp_path: Path
) -> None:
    result = tinyqmoe("fit", bundle.path, "--device-file", phone(tmp_path, "tiny", 0.3))
    assert result.exit_code == 1
    assert "does not fit" in result.stdout
    data = strict_json(
        tinyqmoe(
            "fit", bundle.path, "--device-file", phone(tmp_path, "tiny", 0.3), "--json", "-"
        ).stdout
    )["packages"]
    assert [(d["device"], d["fits"]) for d in data] == [("tiny", False)]
    assert "allowed" in data[0]["problems"][0]


def test_fit_of_a_model_before_any_export(checkpoint: Path) -> None:
    result = tinyqmoe(
        "fit",
        checkpoint,
        "--device",
        "iphone-13",
        "--scheme",
        "int8",
        "--context",
        "64",
        "--json",
        "-",
    )
    assert result.exit_code == 0
    data = strict_json(result.stdout)["packages"]
    assert [d["format"] for d in data] == ["pte", "mlprogram", "custom-op"]
    longer = tinyqmoe(
        "fit",
        checkpoint,
        "--device",
        "iphone-13",
        "--scheme",
        "int8",
        "--context",
        "512",
        "--json",
        "-",
    )
    assert (
        strict_json(longer.stdout)["packages"][0]["prediction"]["dirty_bytes"]
        > data[0]["prediction"]["dirty_bytes"]
    )


def test_options_of_an_export_are_refused_for_a_bundle(bundle: Bundle) -> None:
    message = one_error(tinyqmoe("fit", bundle.path, "--scheme", "int8", "--group-size", "32"), 2)
    assert "--scheme, --group-size" in message


def test_the_entitlement_is_of_ios(bundle: Bundle) -> None:
    assert "Android" in one_error(
        tinyqmoe("fit", bundle.path, "--device", "pixel-6a", "--entitlement"), 2
    )
    data = strict_json(
        tinyqmoe("fit", bundle.path, "--device", "all", "--entitlement", "--json", "-").stdout
    )["packages"]
    entitled = {d["device"] for d in data if d["budget"]["entitlement"]}
    assert entitled == {p.name for p in device.all_devices() if p.knows_entitlement}


def test_core_ml_packages_are_for_ios(checkpoint: Path) -> None:
    on_both = ("--device", "pixel-6a", "--device", "iphone-13", "--json", "-")
    data = strict_json(tinyqmoe("fit", checkpoint, "--context", "48", *on_both).stdout)["packages"]
    formats = {
        name: [d["format"] for d in data if d["device"] == name]
        for name in ("pixel-6a", "iphone-13")
    }
    assert formats == {"pixel-6a": ["pte"], "iphone-13": ["pte", "mlprogram", "custom-op"]}
    message = one_error(
        tinyqmoe("fit", checkpoint, "--device", "pixel-6a", "--backend", "coreml"), 2
    )
    assert "do not run on Android" in message


def test_options_that_need_a_device_say_so(bundle: Bundle, tmp_path: Path) -> None:
    for options in (("--entitlement",), ("--plot", tmp_path / "x.png")):
        assert "--device NAME" in one_error(
            tinyqmoe("run", bundle.path, "--prompt", "x", *options), 2
        )


def test_residency_without_a_device(bundle: Bundle) -> None:
    texts = set()
    for mode in ("stream", "expand", "auto"):
        result = tinyqmoe(
            "run", bundle.path, "--prompt", "The cat", "--residency", mode, "--max-new-tokens", "6"
        )
        assert result.exit_code == 0
        texts.add(result.stdout)
    assert len(texts) == 1


# ---- run and parity in the sandbox


@linux
def test_run_on_a_device(bundle: Bundle, tmp_path: Path) -> None:
    figure = tmp_path / "memory.png"
    options = (
        "--prompt",
        "The cat",
        "--max-new-tokens",
        "6",
        "--device-file",
        phone(tmp_path, "roomy", 500),
    )
    result = tinyqmoe("run", bundle.path, *options, "--plot", figure)
    assert result.exit_code == 0
    for what in ("The cat", "fits", "projection, not a measurement", "not on the phone"):
        assert what in result.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
    data = strict_json(tinyqmoe("run", bundle.path, *options, "--json", "-").stdout)
    assert data["report"]["outcome"] == "ok"
    assert data["report"]["result"]["text"] in result.stdout
    assert data["residency"]["mode"] == "auto"
    assert data["projection"]["measured"]["threads"] >= 1


@linux
def test_a_run_that_does_not_fit_is_killed_and_ends_with_four(
    bundle: Bundle, tmp_path: Path
) -> None:
    device_file = phone(tmp_path, "tiny", 0.3)
    result = tinyqmoe("run", bundle.path, "--prompt", "The cat", "--device-file", device_file)
    assert result.exit_code == 4
    assert "killed in phase" in result.stdout
    assert "predicted to hold most: runtime" in result.stdout


def test_an_export_for_a_device_that_is_too_small(checkpoint: Path, tmp_path: Path) -> None:
    """The bundle is made, and the exit code says that it will not do."""
    options = ("--context", "48", "--device-file", phone(tmp_path, "tiny", 0.3))
    result = tinyqmoe("export", checkpoint, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert "does not fit" in result.stdout
    assert Bundle.open(tmp_path / "out").manifest.artifacts


@linux
def test_parity_on_devices_with_reports(bundle: Bundle, tmp_path: Path) -> None:
    """Two phones with the same limit are one run, and a verdict each."""
    files = [phone(tmp_path, name, 500) for name in ("one", "two")]
    reports = {name: tmp_path / f"report.{name}" for name in ("markdown", "junit", "html", "json")}
    options: list[Any] = [part for name, path in reports.items() for part in (f"--{name}", path)]
    options += [part for file in files for part in ("--device-file", file)]
    result = tinyqmoe("parity", bundle.path, *options)
    assert result.exit_code == 0, result.output
    data = strict_json(reports["json"].read_text())
    assert data["passed"]
    first, second = data["devices"]
    assert (first["device"], second["device"]) == ("one", "two")
    assert first["report"] == second["report"]
    assert "A phone called two" in reports["markdown"].read_text()
    assert "data:image/png;base64," in reports["html"].read_text()
    suites = ET.parse(reports["junit"]).getroot().findall("testsuite")
    assert [suite.get("failures") for suite in suites] == ["0", "0"]


@linux
def test_parity_on_a_device_that_is_too_small_fails(bundle: Bundle, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    device_file = phone(tmp_path, "tiny", 0.3)
    result = tinyqmoe("parity", bundle.path, "--device-file", device_file, "--junit", junit)
    assert result.exit_code == 1
    assert "killed in phase" in result.stdout
    assert int(ET.parse(junit).getroot().find("testsuite").get("failures", "0")) > 0  # type: ignore[union-attr]


def test_parity_without_a_device_writes_reports_too(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    assert tinyqmoe("parity", bundle.path, "--markdown", path).exit_code == 0
    assert "executorch" in path.read_text()

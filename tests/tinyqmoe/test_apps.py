"""What `tinyqmoe doctor BUNDLE` finds, well and not well."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import tinyqmoe
from exporter.bundle import Bundle
from exporter.codec.native import ABI_VERSION
from tests.support.bundles import copy, edit_manifest, patch, place, reseal
from tests.support.command_line import one_error, strict_json
from tests.support.command_line import tinyqmoe as command
from tinyqmoe import apps


def wrong(path: Path) -> dict[str, tinyqmoe.Finding]:
    """The findings that are not well, by name."""
    return {f.what: f for f in tinyqmoe.examine_bundle(path) if not f.ok}


def test_a_bundle_that_is_well(bundle: Bundle) -> None:
    found = {f.what: f for f in tinyqmoe.examine_bundle(bundle.path)}
    assert list(found) == ["files", "C++ sources", "chat format", "session", "phones"]
    assert all(f.ok for f in found.values())
    assert f"{bundle.manifest.interface.context} positions" in found["session"].found
    assert re.fullmatch(r"fits (\d+) of \1", found["phones"].found)


def test_a_damaged_file_is_all_that_is_told(copied: Bundle) -> None:
    with copied.file("model.pte").open("ab") as file:
        file.write(b"x")
    findings = wrong(copied.path)
    assert list(findings) == ["files"]
    assert "model.pte" in findings["files"].found
    shutil.rmtree(copied.path)
    assert "not a bundle" in wrong(copied.path)["files"].found


def test_sources_of_another_version_are_told(other_bundle: Bundle, tmp_path: Path) -> None:
    """A bundle that was exported with its sources."""
    other = copy(other_bundle, tmp_path / "copied")
    assert "C++ sources" not in wrong(other.path)
    header = other.path / "native/include/tinyqmoe/tinyqmoe.h"
    text = header.read_text().replace(f"ABI_VERSION {ABI_VERSION}", "ABI_VERSION 1")
    header.write_text(text)
    finding = wrong(reseal(other).path)["C++ sources"]
    assert finding.found == f"ABI version 1 (wanted: {ABI_VERSION})"


def test_a_missing_chat_format_is_told(copied: Bundle) -> None:
    edit_manifest(copied.path, lambda m: m["chat"].update(strings={}, problem="no template"))
    finding = wrong(copied.path)["chat format"]
    assert finding.found == "no template"
    assert "plain completion" in finding.do


def test_a_session_that_does_not_open_is_told(copied: Bundle, other_bundle: Bundle) -> None:
    """Damage that the digests do not show, and activations that a session does not compute."""
    name = "model.layers.1.mlp.up_proj.weight"
    patch(copied, place(copied, name).offset, bytes(4))
    found = wrong(reseal(copied).path)["session"].found
    assert name in found
    assert "BAD_MAGIC" in found
    findings = wrong(other_bundle.path)
    assert {"session", "phones"} <= findings.keys()
    assert "int16" in findings["session"].found


def test_a_bundle_that_fits_no_phone_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = apps.fit

    def too_large(*arguments: object, **settings: object) -> list[SimpleNamespace]:
        verdicts = real(*arguments, **settings)  # type: ignore[arg-type]
        return [SimpleNamespace(device=v.device, fits=False, problems=["no"]) for v in verdicts]

    monkeypatch.setattr(apps, "fit", too_large)
    finding = wrong(bundle.path)["phones"]
    assert finding.found.startswith("fits 0 of ")
    assert "iphone-13: no" in finding.found
    assert "tinyqmoe fit" in finding.do


def test_the_command_has_an_exit_code(bundle: Bundle, copied: Bundle, tmp_path: Path) -> None:
    good = command("doctor", bundle.path, "--json", "-")
    assert good.exit_code == 0
    assert len(strict_json(good.stdout)["findings"]) == 5
    copied.file("tokenizer.json").unlink()
    bad = command("doctor", copied.path)
    assert bad.exit_code == 1
    assert "tokenizer.json" in bad.stdout
    written = command("app-files", bundle.path, tmp_path / "app", "--platform", "ios")
    assert written.exit_code == 0
    assert str(tmp_path / "app/README.md") in written.stdout
    again = command("app-files", bundle.path, tmp_path / "app", "--platform", "ios")
    assert "choose another OUT" in one_error(again, 2)
    assert command("app-files", bundle.path, tmp_path / "b").exit_code == 2


@pytest.mark.parametrize("platform", ["ios", "android"])
def test_the_document_of_app_files(platform: str, bundle: Bundle, tmp_path: Path) -> None:
    result = command(
        "app-files", bundle.path, tmp_path / "app", "--platform", platform, "--json", "-"
    )
    document = strict_json(result.stdout)
    assert document["platform"] == platform
    assert {f["use"] for f in document["bundle_files"]} == {"session", "check"}

"""Doctor finds what is missing, and says what to do, whatever is missing."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from exporter.cli import app
from exporter.codec import native
from exporter.errors import MissingComponentError
from runtime_ref import doctor
from runtime_ref.doctor import Finding
from runtime_ref.executorch import kernels


def finding(what: str) -> Finding:
    (found,) = (f for f in doctor.examine() if f.what == what)
    return found


@pytest.fixture(autouse=True)
def kernels_unless_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading them takes many seconds: only one test does."""
    if "real_kernels" not in request.keywords.get("usefixtures", pytest.mark.usefixtures()).args:
        monkeypatch.setattr(kernels, "load", lambda: None)
        monkeypatch.setattr(kernels, "library_path", lambda: Path("kernels.so"))


@pytest.fixture
def real_kernels() -> None:
    """Asks for the kernels themselves."""


@pytest.mark.usefixtures("real_kernels")
def test_all_is_well_where_the_tests_run() -> None:
    findings = doctor.examine()
    assert [f for f in findings if not f.ok] == []
    assert {
        "Python",
        "tiny-qmoe",
        "torch",
        "executorch",
        "C++ core",
        "C++ compiler",
        "ExecuTorch kernels",
        "disk",
    } <= {f.what for f in findings}
    assert not {"pytest", "mypy"} & {f.what for f in findings}, "extras are not needed to run"
    assert "scalar" in finding("C++ core").found


def test_no_compiler_is_needed_where_the_kernels_came_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not finding("C++ compiler").ok
    monkeypatch.setattr(kernels, "library_path", lambda: kernels.PREBUILT / "of/kernels.so")
    found = finding("C++ compiler")
    assert (found.ok, found.found.split(":")[0]) == (True, "not needed")


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "executorch":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "coremltools" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert finding("executorch") == Finding(
        "executorch", False, "not installed", "pip install 'executorch==1.5.1'"
    )
    old = Finding("coremltools", False, "1.0 (wanted: ==9.0)", "pip install 'coremltools==9.0'")
    assert finding("coremltools") == old
    assert finding("torch").ok, "a local version such as 2.13.0+cpu fits"


def test_a_source_tree_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISTRIBUTION", "tiny-qmoe-that-is-not-there")
    assert finding("tiny-qmoe-that-is-not-there").do == "pip install ."


def test_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_file", lambda: None)
    native.library.cache_clear()
    try:
        found = finding("C++ core")
    finally:
        native.library.cache_clear()
    assert not found.ok
    assert "compiler" in found.do


@pytest.mark.parametrize("cxx", ["no-such-compiler", "false"])
def test_no_compiler_or_a_broken_one(cxx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", cxx)
    found = finding("C++ compiler")
    assert not found.ok
    assert cxx in found.found
    assert "CXX" in found.do


def test_no_executorch() -> None:
    """In a process of its own: executorch cannot be loaded a second time."""
    script = """
import json, sys
sys.modules["executorch"] = None  # an import of it raises ImportError
from runtime_ref.doctor import examine
print(json.dumps([[f.what, f.ok, f.found, f.do] for f in examine()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    ok, found, hint = next(
        rest for what, *rest in json.loads(done.stdout) if what == "ExecuTorch kernels"
    )
    assert not ok
    assert "executorch" in found
    assert hint


def test_kernels_that_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise MissingComponentError(
            "it does not compile", problems=["x.cc:1: error"], hint="look at it"
        )

    monkeypatch.setattr(kernels, "load", load)
    assert finding("ExecuTorch kernels") == Finding(
        "ExecuTorch kernels", False, "it does not compile\nx.cc:1: error", "look at it"
    )


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 80)
    assert not finding("disk").ok


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(doctor, "_cache", lambda: tmp_path / "file" / "tiny-qmoe")
    found = finding("disk")
    assert not found.ok
    assert "XDG_CACHE_HOME" in found.do


def test_the_command_ends_with_5_and_shows_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [
        Finding("Python", True, "3.11"),
        Finding("C++ compiler", False, "none in [/usr]", "install [g++]"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: bad)
    monkeypatch.setattr(app, "out_console", Console(width=100))
    result = CliRunner().invoke(app.app, ["doctor"])
    assert result.exit_code == 5
    assert "none in [/usr]" in result.stdout
    assert "install [g++]" in result.stdout

"""The sdist and the wheel: what is in them, and that each works where nothing of the checkout is at
hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("exporter", "runtime_ref", "tinyqmoe")
MAX_WHEEL_BYTES = 6_000_000
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "*.pyc")
ROUND_TRIP = """
import numpy as np
from exporter.codec import encoder, native, reference
ternary = np.array([-1, 0, 1], np.int8)
levels = np.random.default_rng(0).choice(ternary, (33, 500), p=[0.1, 0.8, 0.1])
encoded = encoder.encode(levels, -1, 3, "lzw")
with native.NativeTensor(encoded.blob, verify=True) as tensor:
    assert np.array_equal(tensor.decode_rows(), levels)
assert len(encoded.blob) < levels.size / 4
import tinyqmoe
assert tinyqmoe.demo_model().is_dir()
assert native.library().tinyqmoe_session_open(None, None, None, 0) == 64  # BAD_ARGUMENT
print(native.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Without the variables by which a developer's shell could help out."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python -m build`: the sdist from a copy of the checkout, then the wheel from the sdist, each
    in isolation."""
    source = tmp_path_factory.mktemp("packaging") / "source"
    for folder in ("exporter", "runtime_ref", "tinyqmoe", "tests", "benchmarks", "docs", ".ci"):
        shutil.copytree(ROOT / folder, source / folder, ignore=NOT_SOURCE)
    for file in ROOT.iterdir():
        if file.is_file() and file.suffix in (".toml", ".md", ".in", ".py", ".cff", ""):
            shutil.copy(file, source)
    out = source.parent / "dist"
    run(sys.executable, "-m", "build", "--outdir", out, source, cwd=source.parent)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


SOURCES = (".cc", ".cpp", ".h", ".txt", ".cmake", ".sh", ".mjs", ".swift", ".modulemap", ".map")


def native_sources() -> Iterator[str]:
    """What an app's own build needs: the core and its kernels, without our tests."""
    for file in sorted((ROOT / "exporter" / "native").rglob("*")):
        relative = file.relative_to(ROOT)
        ours = file.is_file() and file.suffix in SOURCES
        if ours and relative.parts[2] not in ("tests", "fuzz"):
            yield relative.as_posix()


def needed_files() -> list[str]:
    model = [
        f"exporter/demo/model/{n}" for n in ("config.json", "model.safetensors", "tokenizer.json")
    ]
    python = [f for part in PACKAGES for f in (ROOT / part).rglob("*.py")]
    python += [ROOT / part / "py.typed" for part in PACKAGES]
    folders = ("runtime_ref/device/profiles", "runtime_ref/reports/templates")
    folders += ("exporter/apps/android", "exporter/apps/ios")
    data = [f for part in folders for f in (ROOT / part).iterdir()]
    files = (f.relative_to(ROOT).as_posix() for f in [*python, *data])
    formats = ["exporter/cli/documents.schema.json", "exporter/codec/FORMAT.md"]
    formats += ["exporter/native/llm/MANIFEST.md"]
    texts = ["exporter/demo/held_out.txt", "exporter/quant/calibration.txt"]
    texts += ["exporter/reference/loss.txt"]
    return [*formats, *texts, *model, *native_sources(), *files]


def test_the_wheel_holds_what_is_needed(wheel_names: list[str]) -> None:
    assert set(needed_files()) - set(wheel_names) == set()
    assert any(n.startswith("exporter/native/_tinyqmoe") and n.endswith(".so") for n in wheel_names)
    assert any(n.endswith("licenses/LICENSE") for n in wheel_names)
    assert "exporter/native/LICENSE" in wheel_names


def test_the_sources_that_an_app_takes_have_the_licence() -> None:
    licence = (ROOT / "LICENSE").read_bytes()
    assert (ROOT / "exporter" / "native" / "LICENSE").read_bytes() == licence


def test_a_citation_names_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation


def test_the_wheel_holds_nothing_else(wheel: Path, wheel_names: list[str]) -> None:
    tops = {n.split("/")[0] for n in wheel_names}
    assert {t for t in tops if not t.startswith("tiny_qmoe-")} == set(PACKAGES)
    unwanted = ("/tests/", "/fuzz/", "__pycache__", ".pyc", ".o", "test_")
    assert [
        n for n in wheel_names if any(n.endswith(u) or (u in n and u != ".o") for u in unwanted)
    ] == []
    assert sum(n.endswith(".so") for n in wheel_names) == 1
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_the_sdist_holds_sources_tests_and_papers(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {"/".join(n.split("/")[1:]) for n in archive.getnames()}
    papers = {
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
        "SECURITY.md",
        "pyproject.toml",
        "setup.py",
        ".ci/run",
    }
    golden = {
        f.relative_to(ROOT).as_posix()
        for f in (ROOT / "tests" / "golden").rglob("*")
        if f.is_file()
    }
    tests = {f.relative_to(ROOT).as_posix() for f in (ROOT / "tests").glob("*.py")}
    native = {f.relative_to(ROOT).as_posix() for f in (ROOT / "exporter" / "native").rglob("*.cc")}
    assert (papers | golden | tests | native | set(needed_files())) - names == set()
    assert [n for n in names if n.endswith((".so", ".pyc", ".o"))] == []


def test_the_wheel_works_on_its_own(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment that sees the dependencies installed here, and nothing of the
    checkout."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
        ).strip()
    )
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=tmp_path,
    )
    # A line in a .pth file adds the folder and does not follow its own .pth files, so an editable
    # install stays unseen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = tmp_path / "venv" / "bin" / "tinyqmoe"
    assert "export" in run(script, "--help", cwd=tmp_path)
    native_dir = Path(run(script, "native-dir", cwd=tmp_path).strip())
    assert native_dir.resolve() == (packages / "exporter" / "native").resolve()
    assert (native_dir / "include" / "tinyqmoe" / "tinyqmoe.h").is_file()
    assert (native_dir / "include" / "tinyqmoe" / "session.h").is_file()
    assert "iphone-13" in run(script, "devices", cwd=tmp_path)
    assert Path(run(python, "-c", ROUND_TRIP, cwd=tmp_path).strip()).is_relative_to(packages)

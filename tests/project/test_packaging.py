"""The sdist and the wheel: what is in them, and that each works where nothing of the checkout is at
hand, the wheel without a compiler too."""

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

from runtime_ref.executorch import kernels
from tests.support.paths import ROOT

PACKAGES = ("exporter", "runtime_ref", "tinyqmoe")
MAX_WHEEL_BYTES = 6_000_000
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "*.pyc")
ROUND_TRIP = """
import numpy as np
from exporter.codec import encoder, native, native_tensor, reference
ternary = np.array([-1, 0, 1], np.int8)
levels = np.random.default_rng(0).choice(ternary, (33, 500), p=[0.1, 0.8, 0.1])
encoded = encoder.encode(levels, -1, 3, "lzw")
with native_tensor.NativeTensor(encoded.blob, verify=True) as tensor:
    assert np.array_equal(tensor.decode_rows(), levels)
assert len(encoded.blob) < levels.size / 4
import tinyqmoe
assert tinyqmoe.demo_model().is_dir()
assert native.library().tinyqmoe_session_open(None, None, None, 0) == 64  # BAD_ARGUMENT
print(native.__file__)
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Without the variables by which a developer's shell could help out."""
    helpful = ("PYTHONPATH", "VIRTUAL_ENV", "CC", "CXX")
    env = {k: v for k, v in os.environ.items() if k not in helpful} | variables
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python -m build`, in isolation: the sdist from a copy of the checkout, then the wheel from
    the sdist and the kernels, which are those that the other tests load."""
    source = tmp_path_factory.mktemp("packaging") / "source"
    folders = ("exporter", "runtime_ref", "tinyqmoe", "tests", "benchmarks", "docs", ".ci")
    for folder in folders:
        shutil.copytree(ROOT / folder, source / folder, ignore=NOT_SOURCE)
    for file in ROOT.iterdir():
        if file.is_file() and file.suffix in (".toml", ".md", ".in", ".py", ".cff", ""):
            shutil.copy(file, source)
    out, work = source.parent / "dist", source.parent
    run(sys.executable, "-m", "build", "--sdist", "--outdir", out, source, cwd=work)
    (sdist,) = out.glob("*.tar.gz")
    run("tar", "-xf", sdist, cwd=work)  # Python 3.11.2, that of Debian 12, has no filter for it
    tree = work / sdist.name.removesuffix(".tar.gz")
    prebuilt = tree / kernels.PREBUILT.relative_to(ROOT) / kernels.fingerprint()
    prebuilt.mkdir(parents=True)
    shutil.copy(kernels.build(), prebuilt / kernels.library_name())
    run(sys.executable, "-m", "build", "--wheel", "--outdir", out, tree, cwd=work)
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
    libraries = [n for n in wheel_names if n.endswith(".so")]
    assert len(libraries) == 2
    assert f"runtime_ref/executorch/prebuilt/{kernels.fingerprint()}/" in " ".join(libraries)
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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that sees the dependencies installed here, and no checkout."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # A line in a .pth file adds the folder and does not follow its own .pth files, so an editable
    # install stays unseen.
    (packages_of(python) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def packages_of(python: Path) -> Path:
    """The folder into which pip installs for an interpreter."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(python, "-c", code, cwd=python.parent).strip())


def test_the_wheel_works_on_its_own(installed: Path, tmp_path: Path) -> None:
    python, packages = installed / "bin" / "python", packages_of(installed / "bin" / "python")
    script = installed / "bin" / "tinyqmoe"
    assert "export" in run(script, "--help", cwd=tmp_path)
    native_dir = Path(run(script, "native-dir", cwd=tmp_path).strip())
    assert native_dir.resolve() == (packages / "exporter" / "native").resolve()
    assert (native_dir / "include" / "tinyqmoe" / "tinyqmoe.h").is_file()
    assert (native_dir / "include" / "tinyqmoe" / "session.h").is_file()
    assert "iphone-13" in run(script, "devices", cwd=tmp_path)
    assert Path(run(python, "-c", ROUND_TRIP, cwd=tmp_path).strip()).is_relative_to(packages)


def test_the_kernels_of_the_wheel_need_no_compiler(installed: Path, tmp_path: Path) -> None:
    """With an empty cache, and no program at all on the PATH."""
    code = "from runtime_ref.executorch import kernels; print(kernels.load()._name)"
    bare = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    loaded = run(installed / "bin" / "python", "-c", code, cwd=tmp_path, **bare).strip()
    assert Path(loaded).is_relative_to(packages_of(installed / "bin" / "python"))
    assert list(tmp_path.iterdir()) == []


def test_the_builds_of_a_release_take_the_executorch_that_is_required() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (required,) = [d for d in described["project"]["dependencies"] if d.startswith("executorch")]
    before = described["tool"]["cibuildwheel"]["before-build"]
    assert f"pip install --no-deps {required}" in before


@pytest.mark.long
def test_the_demo_runs_from_the_wheel_without_a_compiler(installed: Path, tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said = run(installed / "bin" / "tinyqmoe", "demo", cwd=tmp_path, **bare)
    assert "All packages answer like the quantized models" in said

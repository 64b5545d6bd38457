"""Sessions in an app of C that links ExecuTorch's core runtime, our operators, and nothing else.

Both engines have the exact bits of the reference, on this machine and on AArch64 with the runtime
of its own wheel.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import executorch
import numpy as np
import pytest

from exporter.bundle import Bundle
from exporter.native import native_dir
from tests.native.test_cpp import ARM_CXX, QEMU
from tests.support.bundles import patch
from tests.support.layer_tests import CXX, compile_objects, library_sources
from tests.support.session_app import EXECUTORCH, RUNNER, SOURCE, digest, exact_answers, run

needs_arm = pytest.mark.skipif(
    ARM_CXX is None or QEMU is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"
)
LIBRARIES = ("-lexecutorch", "-lexecutorch_threadpool", "-lpthread")


def build(cxx: str, root: Path, library: list[Path], program: Path) -> Path:
    """The app, linked with objects of the core and of sessions, and with the libraries of an
    executorch package."""
    headers = root / "include"
    types = headers / "executorch/runtime/core/portable_type/c10"
    flags = ["-O1", "-DNDEBUG", "-DET_USE_THREADPOOL", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
    flags += ["-isystem", str(headers), "-isystem", str(types)]
    sources = [SOURCE, *sorted((native_dir() / "executorch").glob("*.cpp"))]
    objects = compile_objects(cxx, flags, sources, program.parent / "objects")
    libraries = ["-L", str(root / "lib"), f"-Wl,-rpath,{root / 'lib'}", *LIBRARIES]
    subprocess.run([cxx, *map(str, [*objects, *library]), "-o", program, *libraries], check=True)
    return program


@pytest.fixture(scope="module")
def app(library_objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert CXX is not None
    root = Path(next(iter(executorch.__path__)))
    return build(CXX, root, library_objects, tmp_path_factory.mktemp("app") / "app")


@pytest.mark.parametrize("engine", [RUNNER, EXECUTORCH])
def test_both_engines_give_the_exact_bits(engine: int, app: Path, bundle: Bundle) -> None:
    for answer in exact_answers(bundle):
        assert digest([app], bundle, engine, answer) == answer.sha256


# More than one call of the program holds, and again after a part was forgotten.
LONG = ("0 " + " ".join(str(i % 100) for i in range(40)), "13 7 8 9", "16 1", "0 5")


def test_both_engines_agree_on_long_prompts_and_after_a_part_was_forgotten(
    app: Path, other_bundle: Bundle, bundle: Bundle
) -> None:
    assert run([app], bundle, RUNNER, LONG).stdout == run([app], bundle, EXECUTORCH, LONG).stdout
    # Activations in float32, which a session of the runner does not compute, in calls of 5 tokens.
    done = run([app], other_bundle, EXECUTORCH, LONG)
    assert len(done.stdout) == 4 * 4 * other_bundle.manifest.interface.vocab_size
    assert b"int16 only" in run([app], other_bundle, RUNNER, LONG, status=1).stderr


def test_both_engines_say_what_they_hold(app: Path, bundle: Bundle) -> None:
    artifact = bundle.artifact("pte")
    told = {e: run([app], bundle, e, LONG).stderr.decode() for e in (RUNNER, EXECUTORCH)}
    for text in told.values():
        assert f"context {bundle.manifest.interface.context}," in text
        assert f"mapped {bundle.file(artifact.path).stat().st_size}, " in text
        assert text.endswith("45 tokens\n")
    assert f"cache {artifact.kv_cache_bytes}, " in told[EXECUTORCH]
    arena = artifact.details["arena_bytes"] + 4 * bundle.manifest.interface.vocab_size
    assert f"buffers {arena - artifact.kv_cache_bytes} bytes" in told[EXECUTORCH]


WRONG_CALLS = {"BAD_ID": "0 1 -1", "BAD_ARGUMENT": "3 1"}


@pytest.mark.parametrize("status", WRONG_CALLS)
@pytest.mark.parametrize("engine", [RUNNER, EXECUTORCH])
def test_wrong_calls_have_the_same_status(
    engine: int, status: str, app: Path, bundle: Bundle
) -> None:
    assert status.encode() in run([app], bundle, engine, [WRONG_CALLS[status]], status=1).stderr


@pytest.mark.parametrize("engine", [RUNNER, EXECUTORCH])
def test_numbers_that_overflow_have_the_same_status(engine: int, app: Path, copied: Bundle) -> None:
    norm = copied.artifact("pte").vectors["model.norm.weight"]
    patch(copied, norm.offset, np.float32("nan").tobytes())
    assert b"NON_FINITE" in run([app], copied, engine, ["0 1 2"], status=1).stderr


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m["artifacts"][0].pop("path"), "no artifact is a pte"),
        (lambda m: m["artifacts"][0].update(path="../model.pte"), "no artifact is a pte"),
        (lambda m: m["artifacts"][0].update(path="absent.pte"), "cannot be read"),
        (lambda m: m["artifacts"][0].update(path="tokenizer.json"), "does not load"),
    ],
    ids=["no path", "outside", "absent", "no program"],
)
def test_a_program_that_is_not_there_is_told(
    change: object, word: str, app: Path, bundle: Bundle, tmp_path: Path
) -> None:
    for file in ("model.pte", "tokenizer.json"):
        (tmp_path / file).symlink_to(bundle.path / file)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    change(manifest)  # type: ignore[operator]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert word.encode() in run([app], tmp_path, EXECUTORCH, [], status=1).stderr


def test_an_engine_that_does_not_exist_is_refused(app: Path, bundle: Bundle) -> None:
    assert b"engine 7 is neither 0" in run([app], bundle, 7, [], status=1).stderr


@needs_arm
@pytest.mark.long
def test_aarch64_with_its_own_runtime_gives_the_exact_bits(bundle: Bundle, tmp_path: Path) -> None:
    """The wheel of executorch for AArch64, run by qemu."""
    assert ARM_CXX is not None
    wheel = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    wheel += ["--platform", "manylinux_2_28_aarch64", "--python-version", "3.11"]
    subprocess.run([*wheel, "executorch==1.5.1", "-d", str(tmp_path)], check=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path)
    root = tmp_path / "executorch"
    library = compile_objects(ARM_CXX, ["-O1"], library_sources(), tmp_path / "library")
    app = build(ARM_CXX, root, library, tmp_path / "app")
    emulated = [QEMU, "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"]
    emulated += ["-E", f"LD_LIBRARY_PATH={root / 'lib'}", app]
    for engine in (RUNNER, EXECUTORCH):
        for answer in exact_answers(bundle):
            assert digest(emulated, bundle, engine, answer) == answer.sha256

"""Programs in an app of C++ that links ExecuTorch's core runtime and our kernels, and nothing else.

They have the exact bits of the reference, on this machine and on AArch64 with the runtime of its
own wheel.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import executorch
import numpy as np
import pytest

from exporter.bundle import Bundle, logits_sha256
from exporter.codec.native import native_dir
from runtime_ref.answers import Answer, load_reference
from runtime_ref.executorch.kernels import compiler
from tests.native.test_cpp import ARM_CXX, QEMU

needs_arm = pytest.mark.skipif(
    ARM_CXX is None or QEMU is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"
)
SOURCE = Path(__file__).with_name("program_logits.cpp")
LIBRARIES = ("-lexecutorch", "-lexecutorch_threadpool", "-lpthread")


def build(cxx: Sequence[str], root: Path, program: Path) -> Path:
    """The app, linked with the libraries of an executorch package."""
    native = native_dir()
    parts = (*native.glob("core/*.cc"), *native.glob("llm/*.cc"), *native.glob("executorch/*.cpp"))
    headers = root / "include"
    types = headers / "executorch/runtime/core/portable_type/c10"
    command = [
        *(*cxx, "-std=c++17", "-O2", "-ffp-contract=off", "-DNDEBUG", "-DET_USE_THREADPOOL"),
        *("-DC10_USING_CUSTOM_GENERATED_MACROS", f"-I{native / 'include'}", f"-I{native / 'core'}"),
        *("-isystem", headers, "-isystem", types, SOURCE, *parts, "-o", program),
        *("-L", root / "lib", f"-Wl,-rpath,{root / 'lib'}", *LIBRARIES),
    ]
    subprocess.run(list(map(str, command)), check=True)
    return program


def digest(command: Sequence[object], bundle: Bundle, answer: Answer) -> bytes:
    """SHA-256 of the logits that an app computes for an answer, fed with its tokens."""
    n = len(answer.prompt)
    calls = [[0, *answer.prompt], *([n + i, t] for i, t in enumerate(answer.tokens[:-1]))]
    text = "".join(" ".join(map(str, call)) + "\n" for call in calls)
    model = bundle.file(bundle.artifact("pte").path)
    done = subprocess.run(
        [*map(str, command), str(model)], input=text.encode(), stdout=subprocess.PIPE, check=True
    )
    rows = np.frombuffer(done.stdout, "<f4").reshape(len(calls), -1)
    return logits_sha256(row.data for row in rows)


def exact_answers(bundle: Bundle) -> list[Answer]:
    answers = load_reference(bundle, bundle.artifact("pte"))
    exact = [a for a in answers if a.sha256 is not None]
    assert len(exact) > 2
    return exact


def test_an_app_of_the_core_runtime_gives_the_exact_bits(bundle: Bundle, tmp_path: Path) -> None:
    root = Path(next(iter(executorch.__path__)))
    app = build(compiler(), root, tmp_path / "app")
    for answer in exact_answers(bundle):
        assert digest([app], bundle, answer) == answer.sha256


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
    app = build([ARM_CXX], root, tmp_path / "app")
    run = [QEMU, "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"]
    for answer in exact_answers(bundle):
        environment = ["-E", f"LD_LIBRARY_PATH={root / 'lib'}"]
        assert digest([*run, *environment, app], bundle, answer) == answer.sha256

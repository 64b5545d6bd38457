"""Compiles the C++ tests and runs them: here with sanitizers, for AArch64 in qemu."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from exporter.native import native_dir
from tests.support.emulation import AVX512_FLAGS, SIMDE, avx512_sources
from tests.support.layer_tests import CXX, SANITIZE, compile_objects, link, run, sources_of
from tests.support.paths import GOLDEN

ARM_CXX = shutil.which("aarch64-linux-gnu-g++")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

needs_compiler = pytest.mark.skipif(
    CXX is None, reason="NO C++ COMPILER: the native tests did not run"
)


def compile_program(compiler: str, flags: list[str], sources: list[Path], out: Path) -> Path:
    """The C++ tests with these sources of the core."""
    objects = compile_objects(compiler, flags, [*sources, *test_sources()], out / "objects")
    return link(compiler, flags, objects, out / "tests")


def core_sources() -> list[Path]:
    return sources_of("core", "encoder")


def test_sources() -> list[Path]:
    return sorted((native_dir() / "tests").glob("*.cc"))


test_sources.__test__ = False  # type: ignore[attr-defined]


@needs_compiler
def test_under_sanitizers(sanitized: list[Path], tmp_path: Path) -> None:
    assert CXX is not None
    objects = compile_objects(CXX, SANITIZE, test_sources(), tmp_path)
    program = link(CXX, SANITIZE, [*sanitized, *objects], tmp_path / "tests")
    assert "0 failures" in run(program, GOLDEN)


@needs_compiler
def test_threads_under_the_thread_sanitizer(tmp_path: Path) -> None:
    """Products while other threads trim, change the budgets and the folder, and open and close
    tensors."""
    assert CXX is not None
    program = compile_program(CXX, ["-O1", "-fsanitize=thread"], core_sources(), tmp_path)
    assert "0 failures" in run(program, "--threads")


@needs_compiler
@pytest.mark.long
def test_same_bits_when_fma_is_allowed(tmp_path: Path) -> None:
    """A user's own -mfma or -march=native must not change a bit: -ffp-contract=off stands against
    it."""
    assert CXX is not None
    if os.uname().machine != "x86_64" or "fma" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no FMA on this machine")
    program = compile_program(CXX, ["-O3", "-mavx2", "-mfma"], core_sources(), tmp_path)
    assert "0 failures" in run(program, GOLDEN)


@pytest.mark.skipif(
    ARM_CXX is None or QEMU is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"
)
@pytest.mark.parametrize(
    ("cpu", "isas"),
    [
        ("max", "1 3 4 7"),
        # Minutes each: a processor that has all sets runs each of them.
        pytest.param("cortex-a76", "1 3 4", marks=pytest.mark.long),
        pytest.param("cortex-a53", "1 3", marks=pytest.mark.long),
    ],
)
def test_on_aarch64(cpu: str, isas: str, tmp_path: Path) -> None:
    """NEON with smmla, with sdot, and of Armv8.0 alone."""
    assert ARM_CXX is not None
    assert QEMU is not None
    program = compile_program(ARM_CXX, ["-O1", "-static"], core_sources(), tmp_path)
    assert f"0 failures, instruction sets: {isas}\n" in run(QEMU, "-cpu", cpu, program, GOLDEN)


@needs_compiler
@pytest.mark.skipif(not SIMDE.exists(), reason="NO SIMDe (libsimde-dev): AVX-512 not emulated")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the other kernels are of x86")
def test_avx512_in_emulation(library_objects: list[Path], tmp_path: Path) -> None:
    """On any x86, by intrinsics in plain C++; where AVX-512 is, the other tests run it too."""
    assert CXX is not None
    emulated = avx512_sources(tmp_path)
    replaced = {f"core_{file.stem}.o" for file in emulated}
    objects = [obj for obj in library_objects if obj.name not in replaced]
    assert len(objects) == len(library_objects) - len(emulated)
    own = [*sources_of("encoder"), *test_sources()]
    objects += compile_objects(CXX, ["-O1"], own, tmp_path / "objects")
    objects += compile_objects(CXX, ["-O1", *AVX512_FLAGS], emulated, tmp_path / "emulated")
    program = link(CXX, ["-O1"], objects, tmp_path / "tests")
    assert "0 failures, instruction sets: 1 2 5\n" in run(program, GOLDEN)


def test_cmake_builds_the_kernels_of_an_app(tmp_path: Path) -> None:
    """As an app's own CMake would, with the headers of ExecuTorch."""
    import executorch

    include = Path(next(iter(executorch.__path__))) / "include"
    cmake = str(Path(sys.executable).parent / "cmake")  # of the test extra
    run(cmake, "-S", native_dir(), "-B", tmp_path, f"-DTINYQMOE_EXECUTORCH_INCLUDE={include}")
    run(cmake, "--build", tmp_path, "--target", "tinyqmoe_executorch", "--parallel", "2")
    symbols = run("nm", "-C", tmp_path / "libtinyqmoe_executorch.a")
    assert all(f"{name}_out" in symbols for name in ("lzw_linears", "attention", "rms_norm"))


def test_an_app_links_no_encoder(tmp_path: Path) -> None:
    """The library of an app holds no encoder, and a program that has one links it by name."""
    cmake = str(Path(sys.executable).parent / "cmake")  # of the test extra
    run(cmake, "-S", native_dir(), "-B", tmp_path)
    run(cmake, "--build", tmp_path, "--parallel", "2")
    assert "tinyqmoe_encode" not in run("nm", tmp_path / "libtinyqmoe_core.a")
    assert not (tmp_path / "libtinyqmoe_encoder.a").exists()
    run(cmake, "--build", tmp_path, "--target", "tinyqmoe_encoder")
    assert "tinyqmoe_encode_lzw" in run("nm", tmp_path / "libtinyqmoe_encoder.a")

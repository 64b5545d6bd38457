"""The core and sessions as an app links them: a shared library by CMake on Linux, the same for both
ABIs of Android, and the flags and the module map of the Swift package.

What needs an NDK, Xcode or a phone does not run here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import executorch
import pytest

from exporter.bundle import Bundle
from exporter.native import native_dir
from tests.support.families import Model
from tests.support.layer_tests import compile_objects, library_sources, llm_test_sources
from tests.support.layer_tests import digest as bits
from tests.support.layer_tests import run as run_program
from tests.support.session_app import EXECUTORCH, RUNNER, SOURCE, digest, exact_answers

CMAKE = str(Path(sys.executable).parent / "cmake")  # of the test extra
CLANG = shutil.which("clang++-19")
ARM_HEADERS = Path("/usr/aarch64-linux-gnu/include/c++")
STAND_IN = Path(__file__).with_name("android_stand_in.cmake")
PAGE_BYTES = 16384

needs_clang = pytest.mark.skipif(CLANG is None, reason="NO clang-19: nothing was built by it")
needs_lld = pytest.mark.skipif(
    shutil.which("ld.lld-19") is None, reason="NO lld-19: nothing was linked for Android"
)


def build(source: Path, folder: Path, target: str, *options: str) -> None:
    """What CMake makes of a project, as it is released."""
    release = "-DCMAKE_BUILD_TYPE=Release"
    run_program(CMAKE, "-S", source, "-B", folder, release, *options)
    run_program(CMAKE, "--build", folder, "--target", target, "--parallel", "2")


def check_segments(library: Path) -> None:
    """Checks that every segment of a library lies on pages of 16 KiB."""
    lines = run_program("readelf", "-lW", library).splitlines()
    aligned = [int(line.split()[-1], 16) for line in lines if line.split()[:1] == ["LOAD"]]
    assert len(aligned) > 1
    assert all(bytes_ % PAGE_BYTES == 0 for bytes_ in aligned)


def exports(library: Path) -> set[str]:
    """Names that a library shows to others."""
    lines = run_program("nm", "-D", "--defined-only", library).splitlines()
    return {line.split()[-1] for line in lines}


INCLUDED = [f"include/tinyqmoe/{name}.h" for name in ("tinyqmoe", "llm", "session")]
OF_EXECUTORCH = "executorch/open_tensors.h"  # for a host that calls ExecuTorch itself


def declared(*more: str) -> set[str]:
    """Functions of the headers that an app includes, and of others of the sources."""
    headers = (native_dir() / name for name in (*INCLUDED, *more))
    return {
        name
        for header in headers
        for name in re.findall(r"^TINYQMOE_API [^(;]*?(tinyqmoe_\w+)\(", header.read_text(), re.M)
    }


# ---- Linux ----


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an app of C and of the shared library with both engines, built by CMake."""
    project = tmp_path_factory.mktemp("cmake_app")
    root = Path(next(iter(executorch.__path__)))
    libraries = [root / "lib" / f"lib{n}.so" for n in ("executorch", "executorch_threadpool")]
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\n"
        "project(app LANGUAGES C CXX)\n"
        f'add_subdirectory("{native_dir()}" tinyqmoe)\n'
        f'add_executable(app "{SOURCE}")\n'
        "target_link_libraries(app PRIVATE tinyqmoe_session)\n"
    )
    engine = f"-DTINYQMOE_EXECUTORCH_LIBRARIES={';'.join(map(str, libraries))}"
    build(project, project / "out", "app", f"-DTINYQMOE_EXECUTORCH_INCLUDE={root}/include", engine)
    return project / "out"


@pytest.mark.long
@pytest.mark.parametrize("engine", [RUNNER, EXECUTORCH])
def test_an_app_of_c_over_the_shared_library_gives_the_exact_bits(
    engine: int, built: Path, bundle: Bundle
) -> None:
    for answer in exact_answers(bundle):
        assert digest([built / "app"], bundle, engine, answer) == answer.sha256


@pytest.mark.long
def test_the_shared_library_shows_the_c_interface_alone(built: Path) -> None:
    library = built / "tinyqmoe/libtinyqmoe_session.so"
    assert exports(library) == declared(OF_EXECUTORCH)
    check_segments(library)


# ---- Android ----


@pytest.mark.long
@needs_clang
@needs_lld
@pytest.mark.parametrize("abi", ["arm64-v8a", "x86_64"])
def test_the_library_links_for_android(abi: str, tmp_path: Path) -> None:
    """With glibc's headers and libraries as stand-ins for Android's, and lld alone."""
    if abi == "arm64-v8a" and not ARM_HEADERS.is_dir():
        pytest.skip("NO g++-aarch64-linux-gnu: its headers stand in for Android's")
    options = ["--toolchain", str(STAND_IN), f"-DANDROID_ABI={abi}"]
    build(native_dir(), tmp_path, "tinyqmoe_session", *options)
    library = tmp_path / "libtinyqmoe_session.so"
    assert exports(library) == declared()
    check_segments(library)
    header = run_program("readelf", "-h", library)
    assert ("AArch64" if abi == "arm64-v8a" else "X86-64") in header


# ---- Swift ----


def test_the_swift_package_names_what_is_there_and_no_unsafe_flags() -> None:
    text = (native_dir() / "Package.swift").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("//"))
    assert "unsafeFlags" not in code
    (sources,) = (json.loads(f"[{names}]") for names in re.findall(r"sources: \[(.*)\]", code))
    (excluded,) = (json.loads(f"[{names}]") for names in re.findall(r"exclude: \[(.*)\]", code))
    # What CMake and setup.py build for an app.
    assert sources == ["core", "llm"]
    assert all(any((native_dir() / name).glob("*.cc")) for name in sources)
    assert all((native_dir() / name).is_file() for name in excluded)


@needs_clang
def test_the_module_map_gives_the_c_interface(tmp_path: Path) -> None:
    """As Swift's importer does, clang makes a module of the headers."""
    source = tmp_path / "import.c"
    calls = "".join(f"  (void)&{name};\n" for name in sorted(declared()))
    source.write_text(f"#pragma clang module import TinyQMoECore\nvoid use(void) {{\n{calls}}}\n")
    cache = f"-fmodules-cache-path={tmp_path / 'cache'}"
    include = f"-I{native_dir() / 'include'}"
    command = [CLANG, "-x", "c", "-fmodules", cache, include, "-fsyntax-only", str(source)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@needs_clang
def test_the_flags_of_the_swift_package_give_the_same_bits(
    models: dict[str, Model], digests: tuple[str, str], tmp_path: Path
) -> None:
    """SwiftPM has no -ffp-contract=off, and fused products are allowed here: the pragmas keep each
    rounding. The tests compute what they expect without them."""
    assert CLANG is not None
    fused = ["-O2", "-ffp-contract=on", "-mfma"]
    objects = compile_objects(CLANG, fused, library_sources(), tmp_path / "library")
    objects += compile_objects(CLANG, ["-O1"], llm_test_sources(), tmp_path / "tests")
    program = tmp_path / "llm_tests"
    run_program(CLANG, "-pthread", *objects, "-o", program)
    assert bits(run_program(program)) == digests[0]
    assert bits(run_program(program, *(m.bundle for m in models.values()))) == digests[1]

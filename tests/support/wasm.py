"""What WebAssembly is built and run with."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from exporter.native import native_dir
from tests.support.layer_tests import run

LIBRARIES = Path("/usr/lib/wasm32-wasi")
BUILTINS = "/usr/lib/llvm-19/lib/clang/19/lib/wasi/libclang_rt.builtins-wasm32.a"
NEEDED = {  # by Debian's package
    "clang-19": shutil.which("clang++-19"),
    "lld-19": shutil.which("wasm-ld-19"),
    "wasi-libc": (LIBRARIES / "libc.a").is_file(),
    "libc++-19-dev-wasm32": (LIBRARIES / "libc++.a").is_file(),
    "libclang-rt-19-dev-wasm32": Path(BUILTINS).is_file(),
    "nodejs": shutil.which("node"),
}
MISSING = [name for name, there in NEEDED.items() if not there]

needed = pytest.mark.skipif(
    bool(MISSING), reason=f"NO {', '.join(MISSING)}: WebAssembly was not tested"
)


def node() -> str:
    """Path of node."""
    found = shutil.which("node")
    assert found is not None
    return found


def build(folder: Path) -> None:
    """Builds tinyqmoe.wasm, as wasm/build.sh does, and the C++ tests."""
    cmake = str(Path(sys.executable).parent / "cmake")  # of the test extra
    toolchain = native_dir() / "wasm" / "toolchain.cmake"
    options = ["--toolchain", str(toolchain), "-DTINYQMOE_BUILD_TESTS=ON"]
    run(cmake, "-S", native_dir(), "-B", folder, *options, "-DCMAKE_BUILD_TYPE=Release")
    targets = ["tinyqmoe", "tinyqmoe_tests", "tinyqmoe_llm_tests"]
    run(cmake, "--build", folder, "--parallel", "2", "--target", *targets)

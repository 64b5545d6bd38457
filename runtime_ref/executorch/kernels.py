"""Library of ExecuTorch kernels, which a wheel brings, or which is compiled on first need.

It is compiled against the installed executorch, and loaded from one path. The operators register
themselves when the library is loaded, and a second copy of it would abort the process: hence one
canonical path, named by a hash of the sources, the flags and the versions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from exporter.codec.native import declare
from exporter.errors import MissingComponentError
from exporter.native import native_dir
from exporter.quiet import quiet
from runtime_ref.executorch import library_cache
from runtime_ref.executorch.runtime import Runtime

OPERATORS = tuple(
    f"tinyqmoe::{name}.out"
    for name in (
        *("lzw_decode", "lzw_linear", "lzw_linears", "lzw_embedding"),
        *("rms_norm", "rope_angles", "attention", "swiglu", "add", "last"),
    )
)
# Functions of executorch/open_tensors.h, less their prefix.
OPEN_TENSORS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "program_tensors_new": (ctypes.c_void_p, ()),
    "program_tensors_use": (None, (ctypes.c_void_p,)),
    "program_tensors_free": (None, (ctypes.c_void_p,)),
}
HEADERS = ("include", "core", "llm", "executorch")  # folders that a wheel has too
PREBUILT = Path(__file__).parent / "prebuilt"  # what `prebuilt.py` makes, in a folder of its name
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-DNDEBUG",
    "-DC10_USING_CUSTOM_GENERATED_MACROS",
    "-DET_USE_THREADPOOL",
    "-DET_EVENT_TRACER_ENABLED",
)


@dataclass(frozen=True)
class Platform:
    """The names and flags of shared libraries on a platform.

    suffix: of a library that a program is linked with. flags: how the linker makes one that is
    loaded, and finds its own libraries. origin: the folder of a library, in its own search path.
    """

    suffix: str
    flags: tuple[str, ...]
    origin: str


LINUX = Platform(".so", ("-shared",), "$ORIGIN")
MACOS = Platform(".dylib", ("-dynamiclib", "-undefined", "dynamic_lookup"), "@loader_path")


def platform() -> Platform:
    """The platform of this process: all that is not macOS names libraries as Linux does."""
    return MACOS if sys.platform == "darwin" else LINUX


def compiler() -> list[str]:
    """Command of the C++ compiler: $CXX, or c++, g++ or clang++ of the PATH.

    Raises MissingComponentError.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX", "").strip() else ["c++", "g++", "clang++"]
    for words in map(shlex.split, wanted):
        if path := shutil.which(words[0]):
            return [path, *words[1:]]
    raise MissingComponentError(
        f"no C++ compiler: looked for {', '.join(wanted)}",
        hint="install one (Debian: `apt-get install g++`; macOS: `xcode-select --install`) or set "
        "CXX",
    )


def sources() -> list[Path]:
    """C++ files of the kernel library. Raises MissingComponentError."""
    found = [
        *sorted((native_dir() / "core").glob("*.cc")),
        *sorted((native_dir() / "llm").glob("*.cc")),
        *sorted((native_dir() / "executorch").glob("*.cpp")),
    ]
    if not found:
        raise MissingComponentError(
            f"{native_dir()} holds no C++ sources", hint="install tiny-qmoe again"
        )
    return found


def library_name() -> str:
    """Name of the library's file on this platform."""
    return f"libtinyqmoe_executorch{platform().suffix}"


def fingerprint() -> str:
    """Hexadecimal digits of a hash of the sources, the flags and the version of executorch."""
    digest = hashlib.sha256(" ".join((*FLAGS, *platform().flags)).encode())
    digest.update(f"executorch {importlib.metadata.version('executorch')}".encode())
    headers = [h for name in HEADERS for h in sorted((native_dir() / name).rglob("*.h"))]
    for file in [*sources(), *headers]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def library_path() -> Path:
    """Path of the library for these sources, flags and versions, where it lies or will lie.

    It is the one that came with the package if that was made of the same.
    """
    root, ours = executorch_root(), fingerprint()
    shipped = PREBUILT / ours / library_name()
    if shipped.is_file():
        return shipped
    others = f"{ours} torch {importlib.metadata.version('torch')} {root.as_posix()}"
    folder = hashlib.sha256(others.encode()).hexdigest()[:16]
    return platformdirs.user_cache_path("tiny-qmoe") / "kernels" / folder / library_name()


def is_prebuilt() -> bool:
    """Whether the package brings the library, so that no compiler is needed."""
    return library_path().is_relative_to(PREBUILT)


def build() -> Path:
    """Path of the library, which is compiled unless it is there.

    Raises MissingComponentError with the compiler's words.
    """
    target = library_path()
    if is_prebuilt():
        return target  # as safe from others as this file is
    library_cache.make_private(target.parent)
    with library_cache.locked(target.parent):
        if not target.is_file():
            with tempfile.TemporaryDirectory(dir=target.parent) as work:
                built = Path(work) / target.name
                compile_library(built, str(executorch_root() / "lib"))
                library_cache.put(built, target)
        library_cache.check_unchanged(target)
    return target


def compile_library(built: Path, search_path: str) -> None:
    """Compiles the library to `built`; executorch's are looked for in `search_path` when it loads.

    As many files at a time as there are processors. Raises MissingComponentError.
    """
    command = [*compiler(), *FLAGS]
    root = executorch_root()
    headers = _include(root)
    with tempfile.TemporaryDirectory(dir=built.parent) as work:
        objects = {s: f"{work}/{s.parent.name}_{s.stem}.o" for s in sources()}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = [[*command, *headers, "-c", str(s), "-o", o] for s, o in objects.items()]
            for _ in pool.map(_compile, compiled):
                pass  # the first that failed raises, and cancels what did not begin
        link = [*platform().flags, *objects.values(), f"-Wl,-rpath,{search_path}"]
        libraries = ["-L", str(root / "lib"), "-lexecutorch", "-lexecutorch_threadpool"]
        _compile([*command, *link, *libraries, "-o", str(built)])


def _compile(command: list[str]) -> None:
    """Runs a command of the compiler. Raises MissingComponentError with the compiler's words."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=library_cache.LONGEST_SECONDS,
    )
    if done.returncode != 0:
        raise MissingComponentError(
            f"the kernel library does not compile: {command[0]} ended with {done.returncode}",
            problems=done.stderr.strip().splitlines()[-8:],
            hint="run `tinyqmoe doctor`",
        )


def _include(root: Path) -> list[str]:
    """Folders of headers, of which those of executorch are below `root`."""
    include = root / "include"
    return [
        *("-I", str(native_dir() / "include")),
        *("-I", str(native_dir() / "core")),
        *("-I", str(native_dir() / "llm")),
        *("-isystem", str(include)),
        *("-isystem", str(include / "executorch/runtime/core/portable_type/c10")),
    ]


@functools.cache
def load() -> ctypes.CDLL:
    """Handle of the library, whose operators the ExecuTorch runtime of this process then knows.

    Raises MissingComponentError.
    """
    with quiet():  # the pool logs which files about the processor it cannot read
        registry = Runtime.get().operator_registry
        Runtime.get().start_threads()
    if set(OPERATORS) & registry.operator_names:
        raise MissingComponentError(
            "another copy of the Tiny-QMoE kernels is loaded in this process",
            hint="load one copy only: a second would abort it",
        )
    library = build()
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        what = f"{library} does not load: {error}"
        raise MissingComponentError(what, hint=f"delete {library.parent} and try again") from error
    declare(loaded, OPEN_TENSORS, "run `tinyqmoe doctor`")
    if missing := set(OPERATORS) - registry.operator_names:
        what = f"{library} did not register {', '.join(sorted(missing))}"
        raise MissingComponentError(what, hint="run `tinyqmoe doctor`")
    return loaded


def executorch_root() -> Path:
    """Folder of the installed executorch. Raises MissingComponentError."""
    library = f"libexecutorch{platform().suffix}"
    found = importlib.util.find_spec("executorch")
    for folder in (found and found.submodule_search_locations) or []:
        root = Path(folder).resolve()
        if (root / "lib" / library).is_file():
            return root
    what = f"executorch is not installed, or lacks its C++ library lib/{library}"
    raise MissingComponentError(what, hint="pip install executorch==1.5.1")

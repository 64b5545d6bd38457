"""The C++ tests of native/llm: compiled for a processor, run, and the digest of their results."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from exporter.native import native_dir

CXX = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = ["-std=c++17", "-g1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread"]


def compile_objects(compiler: str, flags: list[str], sources: list[Path], out: Path) -> list[Path]:
    """Into the folder `out`, two files at a time."""
    out.mkdir(exist_ok=True)
    root = native_dir()
    include = [f"-I{root / name}" for name in ("include", "core", "llm", "tests")]
    objects = [out / f"{s.parent.name}_{s.stem}.o" for s in sources]
    pending = [
        [compiler, *FLAGS, *flags, *include, "-c", str(source), "-o", str(obj)]
        for source, obj in zip(sources, objects, strict=True)
    ]
    while pending:
        running = [
            subprocess.Popen(pending.pop(), stderr=subprocess.PIPE, text=True) for _ in pending[-2:]
        ]
        for process in running:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
    return objects


def sources_of(*folders: str) -> list[Path]:
    return [s for name in folders for s in sorted((native_dir() / name).glob("*.cc"))]


def library_sources() -> list[Path]:
    return sources_of("core", "llm")


def llm_test_sources() -> list[Path]:
    return sorted((native_dir() / "tests" / "llm").glob("*.cc"))


def compile_tests(compiler: str, flags: list[str], out: Path) -> Path:
    objects = compile_objects(compiler, flags, [*library_sources(), *llm_test_sources()], out)
    return link(compiler, flags, objects, out / "tests")


def link(compiler: str, flags: list[str], objects: list[Path], program: Path) -> Path:
    subprocess.run([compiler, *FLAGS, *flags, *map(str, objects), "-o", str(program)], check=True)
    return program


def run(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def digest(output: str) -> str:
    return output.split("digest ")[1].split(",")[0]

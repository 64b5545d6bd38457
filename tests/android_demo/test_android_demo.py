"""android_demo: what can be seen without a compiler, and check.sh, which compiles and runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DEMO = ROOT / "android_demo"
SOURCES = sorted(f for part in ("core", "native") for f in (DEMO / part).rglob("*.kt"))
MAX_LINES, MAX_FUNCTION = 400, 60


def functions(file: Path) -> list[tuple[int, str]]:
    """(lines, name) of every function of a Kotlin file, by its indentation."""
    found, lines = [], file.read_text("utf-8").splitlines()
    for i, line in enumerate(lines):
        head = re.match(r"( *)(?:[a-z]+ )*fun (?:<.*?> )?([\w.<>]+)\(", line)
        if head:
            end = re.compile(rf" {{0,{len(head[1])}}}\S")
            rest = lines[i + 1 :]
            n = next((k for k, other in enumerate(rest, 1) if end.match(other)), len(rest))
            found.append((n + 1, f"{file.name}:{head[2]}"))
    return found


def test_files_and_functions_are_short() -> None:
    assert len(SOURCES) > 40
    assert [f.name for f in SOURCES if len(f.read_text("utf-8").splitlines()) > MAX_LINES] == []
    sizes = sorted(f for file in SOURCES for f in functions(file))
    assert len(sizes) > 200
    assert [f for f in sizes if f[0] > MAX_FUNCTION] == []
    assert sizes[int(0.9 * len(sizes))][0] <= 35


def test_every_call_of_kotlin_is_in_the_library() -> None:
    kotlin = (DEMO / "native/src/main/kotlin/com/tinyqmoe/engine/Native.kt").read_text("utf-8")
    library = (DEMO / "native/jni.cc").read_text("utf-8")
    declared = re.findall(r"external fun (\w+)\(", kotlin)
    assert sorted(declared) == sorted(re.findall(r"^TINYQMOE_JNI\(\w+, (\w+)\)", library, re.M))
    assert len(declared) == 10


def test_the_library_calls_the_whole_interface() -> None:
    """A call that session.h gets must be here too, or be left out on purpose."""
    header = (ROOT / "exporter/native/include/tinyqmoe/session.h").read_text("utf-8")
    calls = set(re.findall(r"tinyqmoe_session_\w+(?=\()", header))
    assert len(calls) >= 6
    library = (DEMO / "native/jni.cc").read_text("utf-8")
    assert {call for call in calls if f"{call}(" not in library} == set()


@pytest.mark.long
def test_check_sh_passes(tmp_path: Path) -> None:
    """Some minutes: it compiles Kotlin and the core, and exports the demo model."""
    if shutil.which("javac") is None:
        pytest.skip("NOT TESTED: there is no JDK; apt install openjdk-17-jdk-headless")
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    done = subprocess.run([DEMO / "check.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    if "SKIPPED  everything" in done.stdout:
        pytest.skip(f"NOT TESTED: {done.stdout.splitlines()[0]}")
    assert "0 failed" in done.stdout

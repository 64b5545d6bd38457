"""The fuzz targets of the C++ core: a short run of fixed inputs, and by `-m long` libFuzzer."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import fuzzing
from tests.support.fuzzing import CLANG, TARGETS
from tests.support.layer_tests import CXX, SANITIZE, compile_objects, link, native_dir, sources_of

LONG_RUNS = 10_000_000  # of all targets together
SHORT_RUNS = {
    "open_decode": 300,
    "cache_file": 300,
    "encode": 10_000,
    "json": 5_000,
    "session": 200,
}


@pytest.fixture
def replay(
    sanitized: list[Path], library_objects: list[Path], tmp_path: Path
) -> Callable[[str], Path]:
    """Builds a target with a main of its own, which makes the same inputs every time.

    Under the sanitizers, all but "session": the network is built with them in long tests only.
    """

    def build(name: str) -> Path:
        assert CXX is not None
        whole = name == "session"
        flags = ["-O1"] if whole else SANITIZE
        support = ["tests/support.cc", "fuzz/replay.cc", f"fuzz/fuzz_{name}.cc"]
        parts = [native_dir() / part for part in support]
        parts += [native_dir() / "llm" / "json.cc"] if name == "json" else []
        parts += sources_of("encoder") if whole else []  # the others' library has it
        objects = compile_objects(CXX, flags, parts, tmp_path / "objects")
        library = library_objects if whole else sanitized
        return link(CXX, flags, [*objects, *library], tmp_path / "replay")

    return build


@pytest.mark.parametrize("name", TARGETS)
def test_replay(name: str, replay: Callable[[str], Path], tmp_path: Path) -> None:
    inputs = fuzzing.seeds(name)
    assert inputs
    command = [replay(name), str(SHORT_RUNS[name]), *inputs]
    env = fuzzing.environment(tmp_path)
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == f"{SHORT_RUNS[name] + len(inputs)} runs\n"


@pytest.mark.long
@pytest.mark.skipif(CLANG is None, reason="NO CLANG: libFuzzer did not run")
def test_fuzz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All targets, guided by coverage; the counts are printed."""
    for name, program in fuzzing.libfuzzer_programs(tmp_path).items():
        runs, begin = round(TARGETS[name].share * LONG_RUNS), time.monotonic()
        said = fuzzing.fuzz(name, program, tmp_path / f"{name}-work", f"-runs={runs}")
        done = re.search(r"number_of_executed_units: (\d+)", said)
        assert done is not None
        assert int(done[1]) >= runs
        with capsys.disabled():
            seconds = time.monotonic() - begin
            print(f"\nfuzz_{name}: {int(done[1]):,} executions in {seconds:.0f} s", end="")

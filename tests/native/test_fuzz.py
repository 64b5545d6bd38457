"""The fuzz targets of the C++ core: a short run of fixed inputs, and by `-m long` libFuzzer."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import fuzz_seeds, fuzzing, soak
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
    """Good seeds are accepted, so that inputs like them reach all of what is behind a check."""
    program, env = replay(name), fuzzing.environment(tmp_path)
    inputs, good = fuzzing.seeds(name), fuzzing.good_seeds(name)
    assert good
    assert set(good) <= set(inputs)
    assert accepted(program, env, 0, good) == (len(good), len(good), 0, 0)
    runs = SHORT_RUNS[name]
    seeds, of_seeds, changes, of_changes = accepted(program, env, runs, inputs)
    assert (of_seeds, of_changes) == (len(inputs), runs)
    assert seeds >= len(good)
    assert 0 < changes < runs


def accepted(program: Path, env: dict[str, str], runs: int, inputs: list[Path]) -> tuple[int, ...]:
    """What a replay of inputs and `runs` changes of them says: good ones and number of each."""
    command = [program, str(runs), *inputs]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return tuple(map(int, re.findall(r"\d+", result.stdout)))


@pytest.mark.parametrize(
    ("folder", "write"),
    [(fuzz_seeds.BUNDLE, fuzz_seeds.write_bundle), (fuzz_seeds.ENCODE, fuzz_seeds.write_encode)],
)
def test_good_seeds_are_of_this_format(
    folder: Path, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }


@pytest.mark.long
@pytest.mark.skipif(CLANG is None, reason="NO CLANG: libFuzzer did not run")
def test_fuzz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All targets, guided by coverage. libFuzzer draws a seed of its own for each slice."""
    for name, program in fuzzing.libfuzzer_programs(tmp_path).items():
        runs = soak.share(round(TARGETS[name].share * LONG_RUNS))
        said = fuzzing.fuzz(name, program, tmp_path / f"{name}-work", f"-runs={runs}")
        done = re.search(r"number_of_executed_units: (\d+)", said)
        assert done is not None
        assert int(done[1]) >= runs
        soak.add(capsys, f"executions of fuzz_{name}", int(done[1]))

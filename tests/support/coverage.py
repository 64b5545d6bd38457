"""Lines of native/core that the C++ tests and the corpus of the fuzz targets reach, by gcov.

`python -m tests.support.coverage` prints the share of each file and the lines that are left, and
ends with exit code 1 below 90 % of all. Files for other processors have no lines here.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.native import native_dir
from tests.support import fuzzing
from tests.support.emulation import AVX512_FLAGS, SIMDE, avx512_sources
from tests.support.layer_tests import CXX, compile_objects, link, llm_test_sources, run, sources_of
from tests.support.paths import GOLDEN

LEAST = 0.9  # of the lines of native/core
COUNTED = ["-O0", "--coverage"]
RANDOM_CHANGES = 300  # of the inputs of each fuzz target
Reached = dict[str, dict[int, bool]]  # by file of native/core and line


def run_tests(objects: list[Path], folder: Path) -> None:
    """The tests of the core and of the network."""
    assert CXX is not None
    own = sorted((native_dir() / "tests").glob("*.cc"))
    tests = compile_objects(CXX, ["-O0"], own, folder / "tests")
    run(link(CXX, COUNTED, [*objects, *tests], folder / "core_tests"), GOLDEN)
    tests = compile_objects(CXX, ["-O0"], llm_test_sources(), folder / "llm_tests")
    run(link(CXX, COUNTED, [*objects, *tests], folder / "network_tests"))


def run_emulated_avx512(folder: Path) -> None:
    """The tests of the core with AVX-512 in plain C++, as most machines have none."""
    assert CXX is not None
    folder.mkdir()
    emulated = avx512_sources(folder / "core")
    replaced = {source.name for source in emulated}
    core = [s for s in sources_of("core", "encoder") if s.name not in replaced]
    tests = sorted((native_dir() / "tests").glob("*.cc"))
    flags = [*COUNTED, *AVX512_FLAGS]
    objects = compile_objects(CXX, flags, [*core, *emulated, *tests], folder / "objects")
    run(link(CXX, flags, objects, folder / "emulated_tests"), GOLDEN)


def run_corpus(objects: list[Path], folder: Path) -> None:
    """All inputs of the fuzz targets in the repository, and some random changes of them."""
    assert CXX is not None
    support = [native_dir() / part for part in ("fuzz/replay.cc", "tests/support.cc")]
    for name in fuzzing.TARGETS:
        sources = [*support, fuzzing.target_source(name)]
        own = compile_objects(CXX, ["-O0"], sources, folder / name)
        program = link(CXX, COUNTED, [*objects, *own], folder / f"replay_{name}")
        command = [program, str(RANDOM_CHANGES), *fuzzing.seeds(name)]
        env = fuzzing.environment(folder / name)
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)


def counts(objects: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files that the objects in a folder were made of, each with gcov's account of it."""
    found = sorted(str(file) for file in objects.glob("*.gcda"))
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(["gcov", "--json-format", *found], cwd=out, check=True, capture_output=True)
        for file in Path(out).glob("*.gcov.json.gz"):
            for part in json.loads(gzip.decompress(file.read_bytes()))["files"]:
                yield Path(part["file"]), part


def reached_lines(folder: Path) -> Reached:
    """Of all runs of the objects in `folder`; a header's lines over all that include it."""
    reached: Reached = defaultdict(dict)
    for objects in sorted({file.parent for file in folder.rglob("*.gcda")}):
        for file, account in counts(objects):
            if file.parent.name == "core":
                lines = reached[file.name]
                for line in account["lines"]:
                    number = line["line_number"]
                    lines[number] = lines.get(number, False) or line["count"] > 0
    return reached


def measure(folder: Path) -> Reached:
    """Compiles and runs everything in an empty folder."""
    assert CXX is not None
    sources = sources_of("core", "encoder", "llm")
    objects = compile_objects(CXX, COUNTED, sources, folder / "objects")
    run_tests(objects, folder)
    run_corpus(objects, folder)
    if os.uname().machine == "x86_64" and SIMDE.exists():
        run_emulated_avx512(folder / "avx512")
    return reached_lines(folder)


def table(reached: Reached) -> tuple[str, float]:
    """A line for each file, and one for all; the share of all."""
    said, total, there = [], 0, 0
    for name, lines in sorted(reached.items()):
        missing = [str(number) for number, was in sorted(lines.items()) if not was]
        total, there = total + len(lines), there + len(lines) - len(missing)
        share = 100 * (len(lines) - len(missing)) / len(lines)
        said.append(f"{share:6.1f} % of {len(lines):4} lines  {name}  {' '.join(missing)}".rstrip())
    share = there / total
    return "\n".join([*said, f"{100 * share:6.1f} % of {total:4} lines  in all"]), share


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        said, share = table(measure(Path(folder)))
    print(said)
    sys.exit(share < LEAST)


if __name__ == "__main__":
    main()

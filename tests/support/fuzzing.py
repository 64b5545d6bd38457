"""The fuzz targets of the C++ core: their seeds, their programs, and the corpus in tests/fuzz.

`python -m tests.support.fuzzing SECONDS` runs each with libFuzzer for so long, and keeps the small
inputs that reach what no other does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from exporter.native import native_dir
from tests.support.fuzz_seeds import BUNDLE, CORPUS
from tests.support.layer_tests import SANITIZE, compile_objects, link, sources_of
from tests.support.paths import ROOT

TESTS = ROOT / "tests"
CLANG = shutil.which("clang++-19") or shutil.which("clang++")


@dataclass(frozen=True)
class Target:
    """A program in exporter/native/fuzz.

    parts: what it needs of native/, "core" or "llm/json.cc". good: patterns of files in tests/ that
    it accepts. others: of more seeds. longest: of an input, in bytes. share: of the executions of a
    long run, by its speed. kept: bytes of an input in the corpus, and number of inputs, at most.
    """

    parts: tuple[str, ...]
    good: tuple[str, ...]
    others: tuple[str, ...]
    longest: int
    share: float
    kept: tuple[int, int] = (256, 50)

    def sources(self) -> list[Path]:
        """What it is linked with, its own files left out."""
        root = native_dir()
        return [s for p in self.parts for s in ([root / p] if "." in p else sources_of(p))]


CODEC = ("core", "encoder", "tests/support.cc")
TARGETS = {
    "open_decode": Target(CODEC, ("golden/decode/*",), ("golden/errors/*",), 8192, 0.02),
    "cache_file": Target(CODEC, ("fuzz/good/cache_file/*",), ("fuzz/cache_file/*",), 1024, 0.03),
    "encode": Target(CODEC, ("fuzz/good/encode/*",), ("fuzz/encode/*",), 1024, 0.55),
    "json": Target(
        ("llm/json.cc",),
        good=("golden/manifest/good.json", "fuzz/bundle/*.json"),
        others=("golden/manifest/*", "fuzz/json/*"),
        longest=4096,
        share=0.35,
    ),
    "session": Target(
        ("core", "llm"), ("fuzz/bundle/*.json",), ("fuzz/session/*",), 4096, 0.05, (4096, 20)
    ),
}


def _files(patterns: tuple[str, ...]) -> list[Path]:
    return sorted({file for pattern in patterns for file in TESTS.glob(pattern)})


def good_seeds(name: str) -> list[Path]:
    """Inputs of a target that it accepts."""
    return _files(TARGETS[name].good)


def seeds(name: str) -> list[Path]:
    """All inputs of a target that are in the repository."""
    return _files(TARGETS[name].good + TARGETS[name].others)


def environment(folder: Path) -> dict[str, str]:
    """Of a target's process: with a bundle of its own, which is copied into `folder`.

    A manifest may ask for more memory than there is, which is an error and not a fault.
    """
    shutil.copytree(BUNDLE, folder / "bundle")
    ours = {
        "TINYQMOE_FUZZ_BUNDLE": str(folder / "bundle"),
        "TMPDIR": str(folder),
        "ASAN_OPTIONS": "allocator_may_return_null=1",
    }
    return os.environ | ours


def target_source(name: str) -> Path:
    return native_dir() / "fuzz" / f"fuzz_{name}.cc"


def libfuzzer_programs(folder: Path) -> dict[str, Path]:
    """All targets with libFuzzer and the sanitizers, by name."""
    assert CLANG is not None
    flags = [*SANITIZE, "-fsanitize=fuzzer-no-link"]
    files = sorted({source for target in TARGETS.values() for source in target.sources()})
    objects = dict(
        zip(files, compile_objects(CLANG, flags, files, folder / "objects"), strict=True)
    )
    programs = {}
    for name, target in TARGETS.items():
        own = compile_objects(CLANG, flags, [target_source(name)], folder / name)
        linked = [*own, *(objects[source] for source in target.sources())]
        with_main = [*SANITIZE, "-fsanitize=fuzzer"]
        programs[name] = link(CLANG, with_main, linked, folder / f"fuzz_{name}")
    return programs


def fuzz(name: str, program: Path, work: Path, *limits: str) -> str:
    """What libFuzzer says of a run; `work` is a folder for what it finds, with the seeds in it."""
    (work / "inputs").mkdir(parents=True)
    for i, file in enumerate(seeds(name)):
        shutil.copy(file, work / "inputs" / str(i))
    longest = f"-max_len={TARGETS[name].longest}"
    command = [program, longest, "-print_final_stats=1", *limits, "inputs"]
    result = subprocess.run(
        command, cwd=work, env=environment(work), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{name}: {result.stderr[-4000:]}"
    return result.stderr


def grow(name: str, program: Path, work: Path, seconds: int) -> None:
    """Fuzzes a target, and writes its part of the corpus anew."""
    fuzz(name, program, work, f"-max_total_time={seconds}")
    kept = work / "kept"
    kept.mkdir()
    merge = [program, "-set_cover_merge=1", kept, work / "inputs"]
    subprocess.run(merge, cwd=work, check=True, capture_output=True)
    foreign = {file.read_bytes() for file in seeds(name) if file.parent != CORPUS / name}
    shutil.rmtree(CORPUS / name, ignore_errors=True)
    (CORPUS / name).mkdir()
    largest, most = TARGETS[name].kept
    small = [f for f in kept.iterdir() if f.stat().st_size <= largest]
    new = sorted(
        (f for f in small if f.read_bytes() not in foreign), key=lambda f: f.stat().st_size
    )
    for file in new[:: 1 + len(new) // most]:
        shutil.copy(file, CORPUS / name)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, program in libfuzzer_programs(Path(folder)).items():
            grow(name, program, Path(folder, f"{name}-work"), int(sys.argv[1]))


if __name__ == "__main__":
    main()

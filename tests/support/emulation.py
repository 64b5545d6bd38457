"""The core as on a machine with AVX-512, by SIMDe's intrinsics in plain C++."""

from __future__ import annotations

from pathlib import Path

from exporter.native import native_dir

SIMDE = Path("/usr/include/simde")
AVX512_FLAGS = ["-mavx2", "-Wno-psabi", "-Wno-unused-parameter"]


def avx512_sources(folder: Path) -> list[Path]:
    """What replaces the files of the core with the same names; copies are written into `folder`."""
    folder.mkdir(exist_ok=True)
    emulation = native_dir() / "tests" / "emulation"
    for file in sorted((native_dir() / "core").glob("kernels_avx512*")):
        (folder / file.name).write_text(file.read_text())
    shared = folder / "kernels_avx512.h"
    text, targets = shared.read_text(), "avx512f,avx512bw,avx512vl,avx512vnni"
    assert text.count(targets) == 2
    text = text.replace(targets, "avx2")  # its lines keep their numbers, which gcov counts by
    shared.write_text(f'#include "{emulation / "avx512.h"}"\n#line 1\n{text}')
    return [*sorted(folder.glob("kernels_avx512*.cc")), emulation / "isa.cc"]

"""The core as on a machine with AVX-512, by SIMDe's intrinsics in plain C++."""

from __future__ import annotations

from pathlib import Path

from exporter.codec.native import native_dir

SIMDE = Path("/usr/include/simde")
AVX512_FLAGS = ["-mavx2", "-Wno-psabi", "-Wno-unused-parameter"]


def avx512_sources(folder: Path) -> list[Path]:
    """What replaces the files of the core with the same names; one is written into `folder`."""
    folder.mkdir(exist_ok=True)
    kernels = folder / "kernels_avx512.cc"
    text = (native_dir() / "core" / kernels.name).read_text()
    targets = "avx512f,avx512bw,avx512vl,avx512vnni"
    assert text.count(targets) == 2
    emulation = native_dir() / "tests" / "emulation"
    text = text.replace(targets, "avx2")  # its lines keep their numbers, which gcov counts by
    kernels.write_text(f'#include "{emulation / "avx512.h"}"\n#line 1\n{text}')
    return [kernels, emulation / "isa.cc"]

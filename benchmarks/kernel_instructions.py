"""Counts the instructions of products: `python benchmarks/kernel_instructions.py [--check]`.

Callgrind counts, so what else the machine does changes nothing. A figure is instructions for 64
products of a weight and an activation, by the built library on this machine; valgrind knows AVX2
and no AVX-512. With --check the exit code is 1 where a kernel takes over a tenth more than the
table below, which is of g++ 12 with AVX2: what makes one slower shows in any CI.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from codec_speed import Blob, machine, raw_blob, ternary
from residency_speed import normal

from exporter.codec import native
from exporter.codec.encoder import encode

ROWS = 64
ALLOWED = 1.1
# By kind: with one token and with 32, of rows of 576 and of 2048 columns.
COUNTS = {
    "raw, 8 bits": (35.7, 18.9, 26.3, 16.4),
    "raw, 4 bits": (50.7, 20.0, 37.5, 17.2),
    "raw, 2 bits": (43.2, 23.5, 28.4, 17.2),
    "base-3": (104.9, 21.1, 57.2, 17.5),
    "lzw, 4.4 bits": (514.8, 33.8, 457.8, 29.9),
    "lzw, 3.3 bits": (464.8, 32.3, 396.6, 28.0),
    "lzw, ternary, 70 % zeros": (231.6, 25.1, 168.6, 21.0),
}


def blobs(cols: int) -> dict[str, Blob]:
    """Blobs of all forms that products read."""
    rate44, rate33 = normal(ROWS, cols, 5.1, 127), normal(ROWS, cols, 2.38, 127)
    third, half = ternary(ROWS, cols, 33), ternary(ROWS, cols, 70)
    return {
        "raw, 8 bits": raw_blob(rate44, -127, 255, 8),
        "raw, 4 bits": raw_blob(normal(ROWS, cols, 2.0, 7), -7, 15, 4),
        "raw, 2 bits": raw_blob(third, -1, 3, 2),
        "base-3": encode(third, -1, 3, "base3").blob,
        "lzw, 4.4 bits": encode(rate44, -127, 255, "lzw").blob,
        "lzw, 3.3 bits": encode(rate33, -127, 255, "lzw").blob,
        "lzw, ternary, 70 % zeros": encode(half, -1, 3, "lzw").blob,
    }


def instructions(program: Path, blob: Path, n_tokens: int) -> int:
    """Number of instructions of one product."""
    counts = blob.with_suffix(".counts")
    collect = ["--toggle-collect=tinyqmoe_linear_x16", f"--callgrind-out-file={counts}"]
    library = next(native.native_dir().glob("_tinyqmoe*.so"))
    command = ["valgrind", "--tool=callgrind", *collect, program, library, blob, str(n_tokens)]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    totals = [line for line in counts.read_text().splitlines() if line.startswith("totals:")]
    return int(totals[0].split()[1])


def compiled(folder: Path) -> Path:
    """Program that makes one product, compiled."""
    program = folder / "product"
    source = Path(__file__).with_suffix(".cpp")
    flags = ["-std=c++17", "-O1", f"-I{native.native_dir() / 'include'}", "-ldl"]
    subprocess.run(["g++", str(source), "-o", str(program), *flags], check=True)
    return program


def measured() -> dict[str, list[float]]:
    """Instructions for 64 products, by kind, as in COUNTS."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        program = compiled(Path(scratch))
        for cols in (576, 2048):
            for kind, blob in blobs(cols).items():
                file = Path(scratch) / "blob"
                file.write_bytes(bytes(blob))
                for n_tokens in (1, 32):
                    n = instructions(program, file, n_tokens)
                    found.setdefault(kind, []).append(64 * n / (ROWS * cols * n_tokens))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    print(f"{machine()}; instructions for 64 products")
    print(f"{'':26}{'576, 1':>10}{'576, 32':>10}{'2048, 1':>10}{'2048, 32':>10}")
    worse = []
    for kind, counts in measured().items():
        print(f"{kind:26}" + "".join(f"{count:10.1f}" for count in counts))
        limits = COUNTS[kind]
        if any(n > ALLOWED * limit for n, limit in zip(counts, limits, strict=True)):
            worse.append(f"{kind}: {counts}, the table has {limits}")
    if check and worse:
        sys.exit("more instructions than before:\n" + "\n".join(worse))


if __name__ == "__main__":
    main()

"""Counts the instructions of products: `python benchmarks/kernel_instructions.py [--check]`.

Callgrind counts, so what else the machine does changes nothing. A figure is instructions for 64
products of a weight and an activation, by the built library on this machine; valgrind knows AVX2
and no AVX-512. With --check the exit code is 1 where a kernel takes over a tenth more than the
table below, which is of g++ 12 with AVX2: what makes one slower shows in any CI.

With --cpu max, cortex-a76 or cortex-a53 it counts smmla, sdot or Armv8.0 kernels instead, cross
compiled by --compiler and run by qemu, which notes every instruction: that takes minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from codec_speed import Blob, machine, raw_blob, ternary
from residency_speed import normal, peaked

from exporter.codec.encoder import encode
from exporter.codec.native_residency import UNLIMITED
from exporter.native import native_dir

ROWS = 64
ALLOWED = 1.1
WHOLE_ROW = 65535
# By kind: with one token and with 32, of rows of 576 and of 2048 columns.
COUNTS = {
    "raw, 8 bits": (33.0, 15.5, 26.4, 13.9),
    "raw, 4 bits": (38.0, 16.6, 30.9, 14.6),
    "raw, 2 bits": (29.4, 17.0, 21.2, 14.6),
    "raw, 4 bits, groups of 32": (37.6, 18.5, 31.0, 17.1),
    "raw, 2 bits, groups of 64": (34.7, 17.4, 25.2, 15.6),
    "base-3": (41.5, 17.8, 32.1, 14.9),
    "lzw, 4.4 bits": (429.7, 27.9, 400.4, 25.5),
    "lzw, 3.3 bits": (393.2, 26.8, 340.0, 23.7),
    "lzw, ternary, 70 % zeros": (216.5, 21.4, 186.5, 19.0),
    "clipped to 4 bits, 3.3 bits": (32.2, 17.3, 24.1, 15.3),
    "clipped to 5 bits, 4.3 bits": (40.5, 17.7, 32.5, 15.5),
    "clipped to 6 bits, 4.9 bits": (42.2, 17.4, 33.2, 15.1),
}


def blobs(cols: int) -> dict[str, Blob]:
    """Blobs of all forms that products read."""
    rate44, rate33 = normal(ROWS, cols, 5.1, 127), normal(ROWS, cols, 2.38, 127)
    third, half = ternary(ROWS, cols, 33), ternary(ROWS, cols, 70)
    return {
        "raw, 8 bits": raw_blob(rate44, -127, 255, 8),
        "raw, 4 bits": raw_blob(normal(ROWS, cols, 2.0, 7), -7, 15, 4),
        "raw, 2 bits": raw_blob(third, -1, 3, 2),
        "raw, 4 bits, groups of 32": raw_blob(normal(ROWS, cols, 2.0, 7), -7, 15, 4),
        "raw, 2 bits, groups of 64": raw_blob(third, -1, 3, 2),
        "base-3": encode(third, -1, 3, "base3").blob,
        "lzw, 4.4 bits": encode(rate44, -127, 255, "lzw").blob,
        "lzw, 3.3 bits": encode(rate33, -127, 255, "lzw").blob,
        "lzw, ternary, 70 % zeros": encode(half, -1, 3, "lzw").blob,
        "clipped to 4 bits, 3.3 bits": encode(peaked(ROWS, cols, 1.81), -127, 255, "lzw").blob,
        "clipped to 5 bits, 4.3 bits": encode(peaked(ROWS, cols, 3.5), -127, 255, "lzw").blob,
        "clipped to 6 bits, 4.9 bits": encode(peaked(ROWS, cols, 5.4), -127, 255, "lzw").blob,
    }


@dataclass(frozen=True)
class Call:
    """A product: number of tokens, bytes for expanded forms, and columns of a group."""

    n_tokens: int
    budget: int
    group_size: int

    @classmethod
    def of(cls, kind: str, n_tokens: int) -> Call:
        """The call for a kind of COUNTS. Codes become clipped levels before what is counted."""
        _, _, group = kind.partition("groups of ")
        budget = UNLIMITED if kind.startswith("clipped") else 0
        return cls(n_tokens, budget, int(group or WHOLE_ROW))

    def arguments(self, n_products: int) -> list[int]:
        """What follows the blob on the command line of the program."""
        return [self.n_tokens, n_products, self.budget, self.group_size]


class Callgrind:
    """The built library on this machine, by valgrind."""

    def __init__(self, folder: Path) -> None:
        self._library = next(native_dir().glob("_tinyqmoe*.so"))
        self._program = compiled("g++", folder)

    def instructions(self, blob: Path, call: Call) -> int:
        """Number of instructions of one product."""
        counts = blob.with_suffix(".counts")
        collect = ["--toggle-collect=tinyqmoe_linear_x16", f"--callgrind-out-file={counts}"]
        command = ["valgrind", "--tool=callgrind", *collect, self._program, self._library, blob]
        command += call.arguments(n_products=1)
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        totals = [line for line in counts.read_text().splitlines() if line.startswith("totals:")]
        return int(totals[0].split()[1])


class Qemu:
    """The core for AArch64, by qemu with one instruction a block and a line for each block."""

    def __init__(self, folder: Path, compiler: str, cpu: str) -> None:
        self._library = folder / "core.so"
        flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared"]
        include = [f"-I{native_dir() / name}" for name in ("include", "core")]
        sources = sorted((native_dir() / "core").glob("*.cc"))
        build = [compiler, *flags, *include, *map(str, sources), "-o", str(self._library)]
        subprocess.run(build, check=True)
        self._program = compiled(compiler, folder)
        self._emulator = ["qemu-aarch64", "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu"]
        self._emulator += ["-singlestep", "-d", "exec,nochain", "-D", "/dev/stdout"]

    def instructions(self, blob: Path, call: Call) -> int:
        """What a second product adds to one."""
        once, twice = (self._lines(blob, call.arguments(n)) for n in (1, 2))
        return twice - once

    def _lines(self, blob: Path, arguments: list[int]) -> int:
        command = [*self._emulator, self._program, self._library, blob, *arguments]
        with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE) as process:
            assert process.stdout
            pieces = iter(partial(process.stdout.read, 1 << 20), b"")
            lines = sum(piece.count(b"\n") for piece in pieces)
        if process.returncode:
            sys.exit(f"qemu ended with {process.returncode}")
        return lines


def compiled(compiler: str, folder: Path) -> Path:
    """Program that makes products, compiled."""
    program = folder / "product"
    source = Path(__file__).with_suffix(".cpp")
    flags = ["-std=c++17", "-O1", f"-I{native_dir() / 'include'}", "-ldl"]
    subprocess.run([compiler, str(source), "-o", str(program), *flags], check=True)
    return program


def measured(counter: Callgrind | Qemu, scratch: Path) -> dict[str, list[float]]:
    """Instructions for 64 products, by kind, as in COUNTS."""
    found: dict[str, list[float]] = {}
    for cols in (576, 2048):
        for kind, blob in blobs(cols).items():
            file = scratch / "blob"
            file.write_bytes(bytes(blob))
            for n_tokens in (1, 32):
                n = counter.instructions(file, Call.of(kind, n_tokens))
                found.setdefault(kind, []).append(64 * n / (ROWS * cols * n_tokens))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--cpu", help="of qemu")
    parser.add_argument("--compiler", default="aarch64-linux-gnu-g++")
    args = parser.parse_args()
    if args.check and args.cpu:
        parser.error("--check is for this machine")
    print(f"{args.cpu or machine()}; instructions for 64 products")
    print(f"{'':28}{'576, 1':>10}{'576, 32':>10}{'2048, 1':>10}{'2048, 32':>10}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        counter = Qemu(folder, args.compiler, args.cpu) if args.cpu else Callgrind(folder)
        found = measured(counter, folder)
    worse = []
    for kind, counts in found.items():
        print(f"{kind:28}" + "".join(f"{count:10.1f}" for count in counts))
        limits = COUNTS[kind]
        if any(n > ALLOWED * limit for n, limit in zip(counts, limits, strict=True)):
            worse.append(f"{kind}: {counts}, the table has {limits}")
    if args.check and worse:
        sys.exit("more instructions than before:\n" + "\n".join(worse))


if __name__ == "__main__":
    main()

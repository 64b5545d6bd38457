"""Prints what a clean budget brings when memory is short: `sudo python
benchmarks/pinned_prefix.py`.

Tokens go through a file of coded weights that is memory-mapped, in a control group (v1) whose limit
is a quarter below the file's size: without a clean budget, with one, and without a limit. Needs
root and Linux.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from codec_speed import Levels, machine, ternary

from exporter.codec import native_residency, native_tensor
from exporter.codec.encoder import encode

GROUPS = Path("/sys/fs/cgroup/memory")
ROOM = 16 << 20  # of the limit, for all that is not weights


def write_weights(path: Path, n_tensors: int, rows: int, cols: int) -> list[int]:
    """Tensors of the shapes of a layer, one wide one in three; returns the offsets of their blobs,
    and the end."""
    offsets = [0]
    with path.open("wb") as file:
        for i in range(n_tensors):
            levels: Levels = np.roll(ternary(rows * (4 if i % 3 == 0 else 1), cols, 50), i, axis=0)
            blob = encode(levels, -1, 3, "lzw").blob
            file.write(blob.tobytes())
            offsets.append(file.tell())
        os.fsync(file.fileno())
    return offsets


def drop_from_cache(path: Path) -> None:
    """Pages that were read before the limit held would be free of charge."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def major_faults() -> int:
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[9])


def disk_bytes() -> int:
    """Read from disk by this process."""
    return int(Path("/proc/self/io").read_text().split("read_bytes:")[1].split()[0])


def tokens_in_group(
    path: Path, offsets: list[int], limit: int, clean_budget: int, tokens: int
) -> None:
    """Prints one line: seconds, bytes read and major faults a token, medians but for the first two
    tokens."""
    manager = native_residency.ResidencyManager()
    manager.set_clean_budget(clean_budget)
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    scales = np.ones((1 << 16, 1), np.float32)
    group = GROUPS / f"tinyqmoe-{os.getpid()}"
    if limit:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        tensors = [native_tensor.NativeTensor(mapped[a:b]) for a, b in itertools.pairwise(offsets)]
        x = np.random.default_rng(0).standard_normal((1, tensors[0].info.cols), np.float32)
        seconds, read, faults = [], [], []
        for _ in range(tokens):
            start = time.perf_counter(), disk_bytes(), major_faults()
            for tensor in tensors:
                tensor.linear_x16(x, scales[: tensor.info.rows], x.shape[1], threads=2)
            seconds.append(time.perf_counter() - start[0])
            read.append(disk_bytes() - start[1])
            faults.append(major_faults() - start[2])
        middle = [statistics.median(values[2:]) for values in (seconds, read, faults)]
        pinned = manager.stats().pinned_bytes
        print(
            f"{middle[0]:9.3f} s {middle[1] / 1e6:9.1f} MB read {middle[2]:8.0f} faults a token",
            end="",
        )
        print(f"{pinned / 1e6:9.1f} MB stay", flush=True)
    finally:
        if limit:
            (GROUPS / "cgroup.procs").write_text(str(os.getpid()))
            group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=int, default=48)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--dir", type=Path, help="where the weights are written")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        path, limit, clean_budget, *offsets = args.child
        tokens_in_group(
            Path(path), [int(o) for o in offsets], int(limit), int(clean_budget), args.tokens
        )
        return
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        path = Path(folder) / "weights"
        offsets = write_weights(path, args.tensors, args.rows, args.cols)
        limit = offsets[-1] * 3 // 4
        print(
            f"{machine()}; {offsets[-1] / 1e6:.0f} MB of weights, limit {limit / 1e6:.0f} MB, 2 "
            "threads"
        )
        cases = {
            "no limit": (0, native_residency.UNLIMITED),
            "limit, system decides": (limit, native_residency.UNLIMITED),
            "limit, clean budget": (limit, limit - ROOM),
        }
        for name, numbers in cases.items():
            drop_from_cache(path)
            print(f"{name:24}", end="", flush=True)
            child = [sys.executable, __file__, "--tokens", str(args.tokens), "--child", str(path)]
            subprocess.run([*child, *map(str, (*numbers, *offsets))], check=True)


if __name__ == "__main__":
    main()

"""The machine that something is measured on: its name, and how fast it reads memory."""

from __future__ import annotations

import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

READ_BYTES = 256 << 20  # more than a cache holds
PIECE_BYTES = 64 << 20
SECONDS = 0.2


def read_bandwidth(threads: int) -> float:
    """Memory that so many threads read together at best, in bytes a second.

    The best of many short pieces: other work disturbs some.
    """
    pieces = np.ones((READ_BYTES // PIECE_BYTES, threads, PIECE_BYTES // threads), np.uint8)
    best, end = float("inf"), time.perf_counter() + SECONDS
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() < end:
            for piece in pieces:
                start = time.perf_counter()
                list(pool.map(np.max, piece))
                best = min(best, time.perf_counter() - start)
    return PIECE_BYTES / best


def name() -> str:
    """Name of the processor, with the number of cores that this process may use."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.processor() or platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {processor}, {platform.system()}"

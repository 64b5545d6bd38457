"""The memory of this process, and sizes as people write them."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
from pathlib import Path

from exporter.errors import UsageError

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
GROUPS, GROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}}
UNITS |= {f"{p}IB": 1024**i for i, p in enumerate("KMGT", 1)}


def parse_size(text: str) -> int:
    """Size in bytes of a text such as "2GB", "900 MB", "1.5GiB" or "2000000000".

    Raises UsageError.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper(), re.ASCII)
    n_bytes = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if n_bytes <= 0:
        raise UsageError(
            f"got {text!r}, expected a size such as 2GB, 900MB, 1.5 GiB or a number of bytes"
        )
    return n_bytes


def peak_bytes() -> int:
    """The most memory that this process has had so far, in bytes.

    Files that it has mapped are included.
    """
    if STATUS.is_file():
        return _status("VmHWM")  # what getrusage says on Linux is inherited from the parent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The memory that this process has now, in bytes.

    It is the peak where the system does not say.
    """
    return _status("VmRSS") if STATUS.is_file() else peak_bytes()


def available_bytes() -> int:
    """The memory that this process could still take, in bytes.

    It is what the system can free without swapping, at most the limits of the control groups that
    the process is in. Where the system does not say, it is half of the machine's memory.
    """
    if not MEMINFO.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    line = next(line for line in MEMINFO.read_text().splitlines() if "MemAvailable" in line)
    return min(int(line.split()[1]) * 1024, *_group_limits())


def _group_limits() -> list[int]:
    """Limits of the control groups of this process and of those above them, in bytes."""
    group = next((g for g in GROUPS.read_text().splitlines() if g.startswith("0::/")), "0::/")
    folders = [GROUP_ROOT / group[4:], *(GROUP_ROOT / group[4:]).parents]
    files = [folder / "memory.max" for folder in folders if folder.is_relative_to(GROUP_ROOT)]
    files.append(GROUP_ROOT / "memory" / "memory.limit_in_bytes")
    found = [file.read_text().strip() for file in files if file.is_file()]
    return [int(limit) for limit in found if limit.isdigit()] or [sys.maxsize]


def release_free_memory() -> None:
    """Frees what nothing refers to, and returns it to the system.

    The C library would keep it for later.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def return_large_blocks() -> None:
    """Makes the C library return each freed block of 1 MiB or more to the system at once.

    By itself glibc comes to keep blocks of up to 32 MB for later, with holes between them that no
    estimate foretells: one export took 547, 574 or 636 MB, and so 456.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024

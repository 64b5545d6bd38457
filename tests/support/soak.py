"""Long runs of tests that attack at random, in slices that add up.

TINYQMOE_SOAK_SHARE is the share of a long run that `pytest -m long` makes (1 if it is not set). The
counts are kept in build/soak.tsv, or the file that TINYQMOE_SOAK names. A slice begins where the
slices before it ended, so that no input is made twice. `python -m tests.support.soak` prints all.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DEFAULT = ROOT / "build" / "soak.tsv"


def _file() -> Path:
    return Path(os.environ.get("TINYQMOE_SOAK", DEFAULT))


def share(n: int) -> int:
    """The part of a long run of `n` that this slice makes, one at least."""
    return max(1, round(n * float(os.environ.get("TINYQMOE_SOAK_SHARE", "1"))))


def totals() -> Counter[str]:
    """Counts of all slices, by what was done."""
    file, sums = _file(), Counter[str]()
    for line in file.read_text().splitlines() if file.exists() else []:
        what, n, _ = line.split("\t")
        sums[what] += int(n)
    return sums


def add(capsys: pytest.CaptureFixture[str], what: str, n: int) -> None:
    """Notes that a slice did something `n` times, and prints its count and that of all slices."""
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(f"{what}\t{n}\t{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    with capsys.disabled():
        print(f"\n{what}: {n:,}, with earlier slices {totals()[what]:,}", end="")


if __name__ == "__main__":
    for done, count in sorted(totals().items()):
        print(f"{count:12,}  {done}")

"""Instructions of each kernel, counted by callgrind: what makes one slower fails here."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from exporter.codec.native import available_isas
from tests.support.paths import ROOT

COUNTED = shutil.which("valgrind") and shutil.which("g++") and "avx2" in available_isas()


@pytest.mark.long
@pytest.mark.skipif(not COUNTED, reason="needs valgrind, g++ and AVX2: the counts are theirs")
def test_no_kernel_takes_more_instructions_than_before() -> None:
    command = [sys.executable, "benchmarks/kernel_instructions.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

"""What the C++ tests and the corpus of the fuzz targets reach of native/core, by gcov."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import coverage
from tests.support.layer_tests import CXX


@pytest.mark.long
@pytest.mark.skipif(
    CXX is None or shutil.which("gcov") is None, reason="NO COMPILER WITH GCOV: nothing was counted"
)
def test_most_lines_of_the_core_are_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, share = coverage.table(coverage.measure(tmp_path))
    with capsys.disabled():
        print(f"\n{said}", end="")
    assert share >= coverage.LEAST


def test_the_table_names_the_lines_that_are_left() -> None:
    said, share = coverage.table({"b.cc": {4: True, 3: False, 5: True}, "a.h": {1: True}})
    assert share == 0.75
    assert said.splitlines() == [
        " 100.0 % of    1 lines  a.h",
        "  66.7 % of    3 lines  b.cc  3",
        "  75.0 % of    4 lines  in all",
    ]

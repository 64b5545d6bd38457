"""The tables of tests/golden, as its README describes them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt


def crc(array: npt.NDArray[np.generic]) -> str:
    """CRC-32 of the array's bytes in row-major order."""
    return f"{zlib.crc32(np.ascontiguousarray(array)):08x}"


def write_table(path: Path, columns: str, lines: list[tuple[object, ...]]) -> None:
    """A .tsv as the README describes."""
    text = "\n".join(
        "\t".join(str(value) for value in line) for line in [tuple(columns.split()), *lines]
    )
    path.write_bytes((text + "\n").encode("ascii"))

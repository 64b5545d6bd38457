"""Prints how many bits per weight the codec takes, beside the entropy and plain LZW.

The weights are drawn at random. To a codec, trained weights are as good as independent of each
other, so the order-0 entropy is the yardstick for both. Scales are not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exporter.codec.encoder import encode

Levels = npt.NDArray[np.int8]
Record = dict[str, str | float]

SPARSITIES = (33, 50, 70, 80, 90)  # percent of zeros
LZW_NAMES = ("lzw8", "lzw12", "lzw16")


def plain_lzw_bits(levels: Levels, code_bits: int = 16) -> int:
    """Size in bits under plain LZW: first come, first coded, until the table is full; then it stays
    as it is.

    Codewords grow with the table, as in compress(1). One stream for the whole matrix: no row can be
    read on its own.
    """
    alphabet, indices = np.unique(levels, return_inverse=True)
    n, size = len(alphabet), len(alphabet)
    table: dict[int, int] = {}  # phrase * n + level -> the longer phrase
    stream = iter(indices.ravel().tolist())
    phrase, bits = next(stream), 0
    for level in stream:
        longer = table.get(phrase * n + level)
        if longer is not None:
            phrase = longer
            continue
        bits += max(1, (size - 1).bit_length())
        if size < 2**code_bits:
            table[phrase * n + level] = size
            size += 1
        phrase = level
    return bits + max(1, (size - 1).bit_length())


def ternary(shape: tuple[int, int], zeros: float, rng: np.random.Generator) -> Levels:
    """int8 [rows, cols] with a share of zeros, the rest in equal parts -1 and 1."""
    u = rng.random(shape, np.float32)
    return (u >= zeros).astype(np.int8) - 2 * (u >= (1 + zeros) / 2).astype(np.int8)


def int8_rows(shape: tuple[int, int], rng: np.random.Generator) -> Levels:
    """int8 [rows, cols]: Gaussian weights scaled by the largest of each row."""
    weights = rng.standard_normal(shape, np.float32)
    return np.rint(weights * (127 / np.abs(weights).max(axis=1, keepdims=True))).astype(np.int8)


def matrices(shape: tuple[int, int]) -> Iterator[tuple[str, Levels, int, int]]:
    """Name, levels, level_min and n_levels of every matrix of the table."""
    rng = np.random.default_rng(0)
    for percent in SPARSITIES:
        yield f"ternary, {percent} % zeros", ternary(shape, percent / 100, rng), -1, 3
    yield "int8, Gaussian rows", int8_rows(shape, rng), -127, 255


def measure(name: str, levels: Levels, level_min: int, n_levels: int) -> Record:
    """One line of the table, sizes in bits per weight."""
    started = time.process_time()
    coded = encode(levels, level_min, n_levels)
    seconds = time.process_time() - started
    record: Record = {"levels": name, "entropy": coded.entropy_bits}
    for candidate, n_bytes in coded.sizes_bytes.items():
        column = "raw" if candidate.startswith("raw") else candidate
        record[column] = n_bytes * 8 / levels.size
    record["auto"] = coded.bits_per_weight
    record["chosen"] = f"{coded.codec}{coded.code_bits}" + (f"/{coded.cap}" if coded.cap else "")
    record["plain_lzw"] = plain_lzw_bits(levels) / levels.size
    record["encode_mw_s"] = levels.size / seconds / 1e6
    return record


def as_table(records: list[Record]) -> str:
    """Markdown, one line a matrix."""
    columns = ("levels", "entropy", "raw", *LZW_NAMES, "auto", "chosen", "plain_lzw", "encode_mw_s")

    def cell(value: str | float | None) -> str:
        return "-" if value is None else value if isinstance(value, str) else f"{value:.3f}"

    lines = [
        columns,
        ("---",) * len(columns),
        *([cell(r.get(c)) for c in columns] for r in records),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument(
        "--json", metavar="FILE", help="write the numbers there; `-` for standard output"
    )
    options = parser.parse_args()
    shape = (options.rows, options.cols)
    records = [measure(*matrix) for matrix in matrices(shape)]
    machine = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    if options.json:
        text = (
            json.dumps({"shape": shape, "machine": machine, "bits_per_weight": records}, indent=1)
            + "\n"
        )
        if options.json == "-":
            sys.stdout.write(text)
            return
        Path(options.json).write_text(text, "utf-8")
    print(f"{shape[0]} x {shape[1]} weights, bits per weight; one core of {machine}\n")
    print(as_table(records))


if __name__ == "__main__":
    main()

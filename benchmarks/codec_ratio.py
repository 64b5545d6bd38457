"""Prints what every codec makes of levels: bits per weight over the entropy, and decode speed.

The levels are drawn at random, or, with --model, those of a checkpoint's matrices at several steps.
To a codec, trained weights are as good as independent of each other, so the order-0 entropy is the
yardstick for both. Scales are not counted; headers, tables, row index and padding are. One thread;
speeds are the best of many short runs, in 10^9 weights a second.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exporter.codec.encoder import Codec, encode
from exporter.codec.native_tensor import NativeTensor

Levels = npt.NDArray[np.int8]
Record = dict[str, str | float]
Draw = Callable[[tuple[int, int]], Levels]

SPARSITIES = (33, 40, 50, 60, 70, 80, 90)  # percent of zeros
ENTROPIES = (1.9, 2.5, 3.3, 4.4, 5.0, 6.0, 7.0, 7.5)
COLUMNS = (576, 1536, 2048, 8192)
STEPS = (1.5, 0.7, 0.35, 0.15)  # of a row, over the deviation of its weights
MEASURED_ROWS = 64  # decoded at a time: they stay in the caches
MEASURED_SECONDS = 0.3


def ternary(zeros: float) -> Draw:
    """Draws levels with a share of zeros, the rest in equal parts -1 and 1."""

    def draw(shape: tuple[int, int]) -> Levels:
        u = np.random.default_rng(0).random(shape, np.float32)
        return (u >= zeros).astype(np.int8) - 2 * (u >= (1 + zeros) / 2).astype(np.int8)

    return draw


def entropy(levels: Levels) -> float:
    """Order-0 entropy in bits."""
    counts = np.bincount(levels.ravel().astype(np.int64) + 128)
    shares = counts[counts > 0] / levels.size
    return float(-(shares * np.log2(shares)).sum())


def rounded(weights: npt.NDArray[np.float32], deviation: float) -> Levels:
    """Weights of deviation 1 as levels of this deviation."""
    return np.clip(np.rint(weights * deviation), -127, 127).astype(np.int8)


def with_entropy(kind: str, bits: float) -> Draw:
    """Draws levels of a distribution, scaled so that their entropy is `bits`."""

    def draw(shape: tuple[int, int]) -> Levels:
        rng = np.random.default_rng(0)
        if kind == "Gaussian":
            weights = rng.standard_normal(shape, np.float32)
        else:
            weights = rng.laplace(0, 2**-0.5, shape).astype(np.float32)
        low, high = 0.01, 127.0
        for _ in range(20):
            middle = (low * high) ** 0.5
            if entropy(rounded(weights[:256], middle)) < bits:
                low = middle
            else:
                high = middle
        return rounded(weights, middle)

    return draw


def drawn(columns: list[int], weights: int) -> Iterator[tuple[str, Levels, int, int]]:
    """Name, levels, level_min and n_levels of every matrix that is drawn."""
    kinds: list[tuple[str, Draw, int, int]] = [
        (f"ternary, {percent} % zeros", ternary(percent / 100), -1, 3) for percent in SPARSITIES
    ]
    for kind in ("Gaussian", "Laplace"):
        kinds += [
            (f"{kind}, {bits} bits", with_entropy(kind, bits), -127, 255) for bits in ENTROPIES
        ]
    for cols in columns:
        for name, draw, level_min, n_levels in kinds:
            yield name, draw((weights // cols, cols)), level_min, n_levels


def of_model(folder: Path) -> Iterator[tuple[str, Levels, int, int]]:
    """The same of some matrices of a checkpoint, each row with a step of its own."""
    from exporter.checkpoint.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    layer = checkpoint.config.num_hidden_layers // 2
    for part in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        name = f"model.layers.{layer}.{part}.weight"
        rows, _ = checkpoint.shape(name)
        weights = checkpoint.rows(name, 0, rows).float().numpy()
        weights = weights / weights.std(axis=1, keepdims=True)
        for step in STEPS:
            yield f"{part}, step {step}", rounded(weights, 1 / step), -127, 255


def decode_speed(blob: npt.NDArray[np.uint8]) -> float:
    """10^9 weights a second."""
    with NativeTensor(blob) as tensor:
        rows = min(MEASURED_ROWS, tensor.info.rows)
        begins = range(0, tensor.info.rows - rows + 1, rows)
        best, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
        while time.perf_counter() < end:
            for begin in begins:
                start = time.perf_counter()
                tensor.decode_rows(begin, begin + rows)
                best = min(best, time.perf_counter() - start)
        return rows * tensor.info.cols / best / 1e9


def measure(name: str, levels: Levels, level_min: int, n_levels: int) -> Record:
    """One line of the table: bits over the entropy, and 10^9 weights a second."""
    record: Record = {"levels": name, "columns": str(levels.shape[1])}
    codecs: list[Codec] = ["raw", "lzw"] if n_levels > 3 else ["raw", "base3", "lzw"]
    for codec in codecs:
        coded = encode(levels, level_min, n_levels, codec)
        record["entropy"] = coded.entropy_bits
        record[codec] = coded.bits_per_weight / coded.entropy_bits
        record[f"{codec} Gw/s"] = decode_speed(coded.blob)
    started = time.process_time()
    chosen = encode(levels, level_min, n_levels)
    record["auto"] = chosen.codec
    record["encode MB/s"] = levels.size / (time.process_time() - started) / 1e6
    return record


def as_table(records: list[Record]) -> str:
    """Markdown, one line a matrix."""
    columns = ("levels", "columns", "entropy", "raw", "base3", "lzw", "auto")
    columns += ("raw Gw/s", "base3 Gw/s", "lzw Gw/s", "encode MB/s")

    def cell(record: Record, column: str) -> str:
        value = record.get(column, "-")
        if isinstance(value, str):
            return value
        places = 0 if column.endswith("MB/s") else 2 if column.endswith("Gw/s") else 4
        return f"{value:.{places}f}"

    lines = [columns, ("---",) * len(columns), *([cell(r, c) for c in columns] for r in records)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=int, default=1 << 22, help="of every matrix drawn")
    parser.add_argument("--columns", type=int, nargs="*", default=list(COLUMNS))
    parser.add_argument("--model", type=Path, help="measure matrices of this checkpoint instead")
    parser.add_argument(
        "--json", metavar="FILE", help="write the numbers there; `-` for standard output"
    )
    options = parser.parse_args()
    matrices = of_model(options.model) if options.model else drawn(options.columns, options.weights)
    records = [measure(*matrix) for matrix in matrices]
    machine = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    if options.json:
        text = json.dumps({"machine": machine, "records": records}, indent=1) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
            return
        Path(options.json).write_text(text, "utf-8")
    print(f"bits per weight over the entropy, decode speed; one core of {machine}\n")
    print(as_table(records))


if __name__ == "__main__":
    main()

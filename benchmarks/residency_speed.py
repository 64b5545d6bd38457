"""Prints what expanding saves: `python benchmarks/residency_speed.py`.

A product of one token with one scale a row, on one thread, straight from the codes and from the
expanded form. Every round measures all of them once, so that what else the machine does meets all
alike; a figure is the median over the rounds of processor time. The table in
exporter/native/core/entries.cc and runtime_ref/residency.py is from here.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import numpy.typing as npt
from codec_speed import Blob, Levels, machine, raw_blob, ternary

from exporter.codec import native, native_encoder
from exporter.codec.dictionary import Dictionary
from exporter.codec.encoder import encode_with


def normal(rows: int, cols: int, deviation: float, largest: int) -> Levels:
    """Rounded normal levels, as weights are."""
    drawn = np.random.default_rng(largest).standard_normal((rows, cols), np.float32)
    return np.clip(np.rint(drawn * deviation), -largest, largest).astype(np.int8)


def blobs(rows: int, cols: int) -> dict[str, tuple[Blob, Blob]]:
    """Coded blobs and raw ones of the same levels."""
    kinds = {
        "ternary": (ternary(rows, cols, 50), 1, 2, (8, 12, 16)),
        "15 levels": (normal(rows, cols, 2.0, 7), 7, 4, (8, 12, 16)),
        "63 levels": (normal(rows, cols, 8.0, 31), 31, 8, (8,)),
        "int8": (normal(rows, cols, 32.0, 127), 127, 8, (12, 16)),
    }
    made = {}
    for kind, (levels, largest, raw_bits, widths) in kinds.items():
        n_levels = 2 * largest + 1
        counts = native_encoder.count_levels(levels)[128 - largest :][:n_levels]
        raw = raw_blob(levels, -largest, n_levels, raw_bits)
        for bits in widths:
            coded = encode_with(levels, Dictionary.grow(counts, -largest, n_levels, bits, 16))
            made[f"{kind} lzw{bits}"] = (coded, raw)
    return made


def seconds(
    tensor: native.NativeTensor, x: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]
) -> float:
    """Processor time of one product."""
    start = time.thread_time()
    tensor.linear_x16(x, scales, x.shape[1])
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(f"{machine()}; {args.rows} x {args.cols}, one token, one thread")
    x = np.random.default_rng(0).standard_normal((1, args.cols), np.float32)
    scales = np.ones((args.rows, 1), np.float32)
    pairs = {
        name: tuple(native.NativeTensor(blob) for blob in both)
        for name, both in blobs(args.rows, args.cols).items()
    }
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for round_number in range(args.rounds + 1):
        for name, (coded, raw) in pairs.items():
            times = seconds(coded, x, scales), seconds(raw, x, scales)
            if round_number > 0:  # the first is a warm-up
                taken[name][0].append(times[0])
                taken[name][1].append(times[1])
    weights = args.rows * args.cols
    print(f"{'':16}{'codes ns/w':>12}{'expanded':>12}{'ratio':>8}{'bits/w':>8}{'expanded':>10}")
    for name, (codes, forms) in taken.items():
        coded_s, form_s = statistics.median(codes), statistics.median(forms)
        ratio = statistics.median(c / f for c, f in zip(codes, forms, strict=True))
        bits = [8 * tensor.info.total_bytes / weights for tensor in pairs[name]]
        speeds = f"{coded_s / weights * 1e9:12.3f}{form_s / weights * 1e9:12.3f}{ratio:8.2f}"
        print(f"{name:16}{speeds}{bits[0]:8.2f}{bits[1]:10.2f}")


if __name__ == "__main__":
    main()

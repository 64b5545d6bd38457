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
from codec_speed import Blob, Levels, machine, ternary

from exporter.codec import native, native_tensor
from exporter.codec.encoder import encode
from exporter.codec.native_residency import UNLIMITED, ResidencyManager


def normal(rows: int, cols: int, deviation: float, largest: int) -> Levels:
    """Rounded normal levels, as weights are."""
    drawn = np.random.default_rng(largest).standard_normal((rows, cols), np.float32)
    return np.clip(np.rint(drawn * deviation), -largest, largest).astype(np.int8)


def peaked(rows: int, cols: int, spread: float) -> Levels:
    """Rounded Laplace levels, as weights at a low rate are."""
    drawn = np.random.default_rng(1).laplace(0, spread, (rows, cols))
    return np.clip(np.rint(drawn), -127, 127).astype(np.int8)


def blobs(rows: int, cols: int) -> dict[str, Blob]:
    """Coded blobs."""
    kinds = {
        "ternary, 33 % zeros": (ternary(rows, cols, 33), 1, "base3"),
        "ternary, 50 % zeros": (ternary(rows, cols, 50), 1, "lzw"),
        "ternary, 90 % zeros": (ternary(rows, cols, 90), 1, "lzw"),
        "15 levels": (normal(rows, cols, 2.0, 7), 7, "lzw"),
        "255, 3.3 bits": (peaked(rows, cols, 1.81), 127, "lzw"),
        "255, 4.3 bits": (peaked(rows, cols, 3.5), 127, "lzw"),
        "255, 4.9 bits": (peaked(rows, cols, 5.4), 127, "lzw"),
        "255, 5.9 bits": (peaked(rows, cols, 11.0), 127, "lzw"),
    }
    return {
        f"{kind}, {codec}": encode(levels, -largest, 2 * largest + 1, codec).blob  # type: ignore[arg-type]
        for kind, (levels, largest, codec) in kinds.items()
    }


def seconds(
    tensor: native_tensor.NativeTensor, x: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]
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
    tensors = {
        name: native_tensor.NativeTensor(b) for name, b in blobs(args.rows, args.cols).items()
    }
    manager = ResidencyManager(native.library())
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in tensors}
    form_bytes = dict.fromkeys(tensors, 0)
    for round_number in range(args.rounds + 1):
        for name, tensor in tensors.items():
            manager.set_budget(0)
            streamed = seconds(tensor, x, scales)
            manager.set_budget(UNLIMITED)
            seconds(tensor, x, scales)  # which expands it
            form_bytes[name] = manager.stats().dirty_bytes
            if round_number > 0:  # the first is a warm-up
                taken[name][0].append(streamed)
                taken[name][1].append(seconds(tensor, x, scales))
    weights = args.rows * args.cols
    print(f"{'':26}{'codes ns/w':>12}{'expanded':>12}{'ratio':>8}{'bits/w':>8}{'expanded':>10}")
    for name, (codes, forms) in taken.items():
        coded_s, form_s = statistics.median(codes), statistics.median(forms)
        ratio = statistics.median(c / f for c, f in zip(codes, forms, strict=True))
        bits = [8 * n / weights for n in (tensors[name].info.total_bytes, form_bytes[name])]
        speeds = f"{coded_s / weights * 1e9:12.3f}{form_s / weights * 1e9:12.3f}{ratio:8.2f}"
        print(f"{name:26}{speeds}{bits[0]:8.2f}{bits[1]:10.2f}")


if __name__ == "__main__":
    main()

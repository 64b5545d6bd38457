"""Prints how fast the codec encodes, decodes and multiplies: `python benchmarks/codec_speed.py`.

One thread. A figure is the median over repeats of 10^9 weights a second of processor time, so that
other work on the machine disturbs it less. Matrices are larger than the caches unless --rows says
otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exporter.codec import native, native_encoder, native_tensor
from exporter.codec.encoder import Codec, encode
from exporter.codec.format import CodecId, Header, new_blob, seal

Levels = npt.NDArray[np.int8]
Blob = npt.NDArray[np.uint8]

SPARSITIES = (33, 50, 70, 80, 90)  # percent of zeros
DEVIATIONS = (1.0, 2.3, 5.1, 16.0)  # of levels: 2, 3.2, 4.4 and 6 bits of entropy
COLUMNS = ("encode", "decode", "gemv", "gemm", "gemv f32")


def machine() -> str:
    """Processor, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
    )
    return f"{model or platform.processor()}, {platform.machine()}, {native.available_isas()[-1]}"


def ternary(rows: int, cols: int, percent_zero: int) -> Levels:
    """Random levels -1, 0, 1."""
    rng = np.random.default_rng(percent_zero)
    draws = rng.integers(0, 200, (rows, cols), dtype=np.uint8)
    return (
        (draws >= 2 * percent_zero).astype(np.int8) * ((draws % 2).astype(np.int8) * 2 - 1)
    ).astype(np.int8)


def raw_blob(levels: Levels, level_min: int, n_levels: int, code_bits: int) -> Blob:
    """A raw blob of `levels`."""
    rows, cols = levels.shape
    part = native_encoder.encode_raw(levels, level_min, n_levels, code_bits)
    header = Header(CodecId.RAW, code_bits, 0, level_min, n_levels, rows, cols, 0, part.size)
    blob, payload = new_blob(header)
    payload[:] = part
    seal(blob, header)
    return blob


def speed(weights: int, repeats: int, run: Callable[[], object]) -> float:
    """Median of 10^9 weights a second."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        run()
        seconds.append(time.thread_time() - start)
    return weights / statistics.median(seconds) / 1e9


def measure(blob: Blob, encode: Callable[[], object], batch: int, repeats: int) -> dict[str, float]:
    """Speeds of everything done with one blob; products with `batch` tokens count each token's
    weights."""
    with native_tensor.NativeTensor(blob) as tensor:
        rows, cols = tensor.info.rows, tensor.info.cols
        weights = rows * cols
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, cols), np.float32)
        scales = np.ones((rows, 1), np.float32)
        few = min(rows, 2048)  # rows decoded to memory that is already mapped
        return {
            "bits": blob.size * 8 / weights,
            "encode": speed(weights, max(1, repeats // 3), encode),
            "decode": speed(few * cols, 3 * repeats, lambda: tensor.decode_rows(0, few)),
            "gemv": speed(weights, repeats, lambda: tensor.linear_x16(x[:1], scales, cols)),
            "gemm": speed(
                weights * batch, max(1, repeats // 3), lambda: tensor.linear_x16(x, scales, cols)
            ),
            "gemv f32": speed(
                weights, max(1, repeats // 3), lambda: tensor.linear_f32(x[:1], scales, cols)
            ),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    where = machine()
    print(
        f"{where}; {args.rows} x {args.cols}, batch {args.batch}, 10^9 weights/s on one thread",
        flush=True,
    )
    print(
        f"{'':16}{'bits/w':>8}"
        + "".join(f"{name:>10}" for name in COLUMNS)
        + f"{'raw2 gemv/this':>16}",
        flush=True,
    )
    records: list[dict[str, str | float]] = []

    def report(name: str, blob: Blob, encode: Callable[[], object]) -> None:
        figures = measure(blob, encode, args.batch, args.repeats)
        records.append({"name": name, **figures})
        baseline = next(float(r["gemv"]) for r in records if r["name"] == "raw 2-bit")
        values = "".join(f"{figures[column]:10.2f}" for column in COLUMNS)
        print(
            f"{name:16}{figures['bits']:8.3f}{values}{baseline / figures['gemv']:16.2f}", flush=True
        )

    dense = ternary(args.rows, args.cols, 33)
    report(
        "raw 2-bit", raw_blob(dense, -1, 3, 2), lambda: native_encoder.encode_raw(dense, -1, 3, 2)
    )
    int8 = np.random.default_rng(1).integers(-127, 128, dense.shape, dtype=np.int8)
    int4 = int8 // 16
    report(
        "raw 4-bit", raw_blob(int4, -8, 16, 4), lambda: native_encoder.encode_raw(int4, -8, 16, 4)
    )
    report(
        "raw 8-bit",
        raw_blob(int8, -127, 255, 8),
        lambda: native_encoder.encode_raw(int8, -127, 255, 8),
    )
    coded: list[tuple[str, Levels, int, int, Codec]] = []
    for percent in SPARSITIES:
        levels = ternary(args.rows, args.cols, percent)
        codecs: tuple[Codec, ...] = ("base3", "lzw") if percent < 50 else ("lzw",)
        coded += [(f"{percent} % {codec}", levels, -1, 3, codec) for codec in codecs]
    for deviation in DEVIATIONS:
        drawn = np.random.default_rng(2).standard_normal(dense.shape, np.float32) * deviation
        levels = np.clip(np.rint(drawn), -127, 127).astype(np.int8)
        coded.append((f"int8, {deviation} lzw", levels, -127, 255, "lzw"))
    for name, levels, level_min, n_levels, codec in coded:
        arguments = (levels, level_min, n_levels, codec)
        report(name, encode(*arguments).blob, lambda arguments=arguments: encode(*arguments))  # type: ignore[misc]
    if args.json:
        args.json.write_text(json.dumps({"machine": where, "figures": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()

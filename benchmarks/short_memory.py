"""Prints how speed falls when memory is short: `python -m benchmarks.short_memory BUNDLE`.

A package streams its weights: without a limit that it reaches, and under one of a share of what it
took, once with a part of the weights pinned and the rest passing through, once as the system evicts
by itself. With `--gguf FILE` llama.cpp decodes that file, mapped, without a limit and under the
same one; then PYTHONPATH has to name this repository. Rounds alternate; figures are medians. Linux,
with a memory control group.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from exporter.bundle import Bundle
from runtime_ref.device import prediction as ledger
from runtime_ref.device import run as device_run
from runtime_ref.device import sandbox, sandbox_report
from runtime_ref.device.profile import MemoryBudget
from runtime_ref.device.run import DevicePlan, run
from runtime_ref.memory import MB
from runtime_ref.residency import Residency

ROOMY_BYTES = 20 << 30


def placed(bundle: Bundle, wanted: str, limit_bytes: int, *, pinned: bool) -> DevicePlan:
    """A package that streams under a limit, on no device in particular."""
    from runtime_ref.device.profile import load

    artifact = bundle.artifact(wanted)
    budget = MemoryBudget("limit", False, "anonymous", limit_bytes, limit_bytes, None)
    prediction = ledger.predict(bundle.manifest, artifact, Residency())
    room = limit_bytes - prediction.dirty_bytes - device_run.reserve(prediction.dirty_bytes)
    residency = replace(Residency(), clean_budget_bytes=max(0, room)) if pinned else Residency()
    return DevicePlan(load("iphone-13"), budget, artifact, residency, prediction)


def speed(
    bundle: Bundle, place: DevicePlan, tokens: int
) -> tuple[float, sandbox_report.SandboxReport]:
    """Tokens a second after the first, and the run."""
    arguments = {"prompt": [1, 2, 3, 4], "limits": {"max_new_tokens": tokens}, "sampling": {}}
    report = run(bundle, place, "generate", arguments, lambda *_: None).report
    if report.result is None:
        raise SystemExit(f"{report.outcome} in {report.phase}: {report.detail}")
    return (len(report.result["tokens"]) - 1) * 1e3 / report.result["decode_ms"], report


def speed_of_llama_cpp(file: Path, limit_bytes: int, tokens: int) -> float:
    """Tokens a second after the first, of a file that is mapped."""
    arguments = {"file": str(file), "threads": len(os.sched_getaffinity(0)), "tokens": tokens}
    task = "benchmarks.llama_cpp_speed:decode_alone"
    report = sandbox.run(task, arguments, limit_bytes, [file], lambda *_: None)
    if report.result is None:
        raise SystemExit(f"{report.outcome} in {report.phase}: {report.detail}")
    return float(report.result["decode"])


def ways(args: argparse.Namespace, limit: int) -> dict[str, Callable[[], float]]:
    """What measures each row of the table, in tokens a second."""
    bundle = Bundle.open(args.bundle)

    def ours(limit_bytes: int, *, pinned: bool) -> Callable[[], float]:
        place = placed(bundle, args.backend, limit_bytes, pinned=pinned)
        return lambda: speed(bundle, place, args.tokens)[0]

    found = {
        "no shortage": ours(ROOMY_BYTES, pinned=False),
        "pinned in part": ours(limit, pinned=True),
        "as the system evicts": ours(limit, pinned=False),
    }
    if args.gguf is not None:
        for name, most in (("llama.cpp", ROOMY_BYTES), ("llama.cpp, same limit", limit)):
            found[name] = partial(speed_of_llama_cpp, args.gguf, most, args.tokens)
    return found


def needed_bytes(args: argparse.Namespace) -> int:
    """Memory that the package takes where none is short."""
    bundle = Bundle.open(args.bundle)
    place = placed(bundle, args.backend, ROOMY_BYTES, pinned=False)
    _, report = speed(bundle, place, args.tokens)
    return report.peak_group_bytes or report.peak_dirty_bytes + report.peak_clean_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="executorch")
    parser.add_argument("--share", type=float, default=0.75)
    parser.add_argument("--limit-mb", type=int, help="instead of a share")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    needed = needed_bytes(args)
    limit = int(args.share * needed) if args.limit_mb is None else args.limit_mb * MB
    speeds: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for name, measure in ways(args, limit).items():
            speeds[name].append(measure())
    whole = statistics.median(speeds["no shortage"])
    print(f"{needed / 1e6:,.0f} MB taken, limit {limit / 1e6:,.0f} MB")
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(f"{name:22}{middle:8.2f} tokens/s{100 * middle / whole:8.0f} %")


if __name__ == "__main__":
    main()

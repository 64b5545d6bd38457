"""Prints how speed falls when memory is short: `python benchmarks/short_memory.py BUNDLE [--share
0.75]`.

A package streams its weights: without a limit that it reaches, and under one of that share of what
it took, once with a part of the weights pinned and the rest passing through, once as the system
evicts by itself. Rounds alternate; figures are medians. Linux, with a memory control group.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from exporter.bundle import Bundle
from runtime_ref.device import prediction as ledger
from runtime_ref.device import run as device_run
from runtime_ref.device import sandbox_report
from runtime_ref.device.profile import MemoryBudget
from runtime_ref.device.run import DevicePlan, run
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="executorch")
    parser.add_argument("--share", type=float, default=0.75)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    _, report = speed(bundle, placed(bundle, args.backend, ROOMY_BYTES, pinned=False), args.tokens)
    needed = report.peak_group_bytes or report.peak_dirty_bytes + report.peak_clean_bytes
    limit = int(args.share * needed)
    places = {
        "no shortage": placed(bundle, args.backend, ROOMY_BYTES, pinned=False),
        "pinned in part": placed(bundle, args.backend, limit, pinned=True),
        "as the system evicts": placed(bundle, args.backend, limit, pinned=False),
    }
    speeds: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(args.rounds):
        for name, place in places.items():
            speeds[name].append(speed(bundle, place, args.tokens)[0])
    whole = statistics.median(speeds["no shortage"])
    print(f"{needed / 1e6:,.0f} MB taken, limit {limit / 1e6:,.0f} MB")
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(f"{name:22}{middle:8.2f} tokens/s{100 * middle / whole:8.0f} %")


if __name__ == "__main__":
    main()

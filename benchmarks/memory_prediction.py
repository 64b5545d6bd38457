"""Prints predicted against measured memory (docs/devices.md): `python
benchmarks/memory_prediction.py BUNDLE...`.

Each package of each bundle fills its context in a sandbox under a limit that it does not reach, for
each residency that its format knows. Memory is sampled, so a run may miss its peak, which small
models reach for about a millisecond: the run with the highest is shown. Linux, with a memory
control group.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exporter.bundle import NATIVE, Artifact, Bundle
from runtime_ref import runners
from runtime_ref.device import prediction as ledger
from runtime_ref.device import sandbox, sandbox_tasks
from runtime_ref.native import package as native
from runtime_ref.residency import Residency

LIMIT_BYTES = 20 << 30
COLUMNS = (
    "bundle",
    "package",
    "residency",
    "dirty, predicted MB",
    "measured",
    "difference",
    "clean, predicted MB",
    "measured",
)


def residencies(artifact: Artifact, folder: Path) -> Iterator[Residency]:
    """Those a format knows."""
    yield Residency()
    if artifact.format != "mlprogram":
        yield Residency("expand")
        yield Residency("file", cache_dir=folder)


def measure(
    bundle: Bundle, artifact: Artifact, residency: Residency, new_tokens: int, rounds: int
) -> tuple[str, ...]:
    """One row of the table."""
    prediction = ledger.predict(bundle.manifest, artifact, residency)
    interface = bundle.manifest.interface
    new_tokens = min(new_tokens, interface.context // 2)
    arguments = {
        "bundle": str(bundle.path),
        "format": artifact.format,
        "residency": sandbox_tasks.plain(residency),
        "prompt": [
            3 + i % (interface.vocab_size - 3) for i in range(interface.context - new_tokens)
        ],
        "limits": {"max_new_tokens": new_tokens},
        "sampling": {},
    }
    files = sandbox_tasks.files_to_drop(bundle, artifact, residency)
    task = "runtime_ref.device.sandbox_tasks:generate"
    reports = [
        sandbox.run(task, arguments, LIMIT_BYTES, files, lambda *_: None) for _ in range(rounds)
    ]
    report = max(reports, key=lambda r: r.peak_dirty_bytes)
    if report.outcome != "ok":
        raise SystemExit(f"{artifact.format}: {report.outcome} in {report.phase}: {report.detail}")
    dirty, measured = prediction.dirty_bytes, report.peak_dirty_bytes
    figures = (dirty, measured, prediction.clean_bytes, report.peak_clean_bytes)
    texts = [f"{n / 1e6:,.1f}" for n in figures]
    difference = f"{100 * (dirty / measured - 1):+.1f} %"
    return bundle.path.name, artifact.format, residency.mode, *texts[:2], difference, *texts[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--new-tokens", type=int, default=100, help="generated one by one at the end of the context"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--formats", nargs="+", default=["native", "pte", "custom-op", "mlprogram"])
    args = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for bundle in map(Bundle.open, args.bundles):
            there = {a.format for a in bundle.manifest.artifacts}
            if native.find(bundle.manifest):
                there.add(NATIVE)
            for name in (name for name in args.formats if name in there):
                artifact = runners.package(bundle.manifest, name)
                for residency in residencies(artifact, Path(folder)):
                    row = measure(bundle, artifact, residency, args.new_tokens, args.rounds)
                    print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()

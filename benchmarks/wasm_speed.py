"""Prints the speed of a session in WebAssembly against a native one, each on one thread.

`python benchmarks/wasm_speed.py BUNDLE FOLDER`: FOLDER is what exporter/native/wasm/build.sh made.
A round measures both, first from the codes and then with all weights expanded, so that what else
the machine does meets all alike. A figure is the median over the rounds of processor time, after a
round that does not count. Exit status 1: the logits differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import time
from pathlib import Path

from exporter.codec.native_residency import UNLIMITED, ResidencyManager
from exporter.session import Session

SCRIPT = Path(__file__).with_suffix(".mjs")
PROMPT = [i * 37 % 1000 for i in range(64)]
STEPS = 32
BATCH_TOKENS = 128


class Native:
    """A native session, measured."""

    def __init__(self, bundle: Path) -> None:
        self._session = Session(bundle, 1, BATCH_TOKENS)
        self._manager = ResidencyManager()

    def measure(self, expanded: bool) -> tuple[float, float, str]:
        """Seconds of the prompt and of the steps, and the SHA-256 of all logits."""
        self._manager.set_budget(UNLIMITED if expanded else 0)
        self._session.trim(0)
        sha256, start = hashlib.sha256(), time.process_time()
        sha256.update(self._session.feed(PROMPT).data)
        middle = time.process_time()
        for token in range(STEPS):
            sha256.update(self._session.feed([token]).data)
        return middle - start, time.process_time() - middle, sha256.hexdigest()


class Wasm:
    """The same in node, by benchmarks/wasm_speed.mjs."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["node", SCRIPT, folder, bundle, json.dumps(PROMPT), str(STEPS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, expanded: bool) -> tuple[float, float, str]:
        """As that of Native."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{json.dumps(expanded)}\n")
        self._process.stdin.flush()
        prompt, steps, sha256 = json.loads(self._process.stdout.readline())
        return prompt, steps, sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sides = {"native": Native(args.bundle), "wasm": Wasm(args.bundle, args.folder)}
    for expanded in (False, True):
        rounds: dict[str, list[tuple[float, float, str]]] = {name: [] for name in sides}
        for _ in range(args.rounds + 1):
            for name, side in sides.items():
                rounds[name].append(side.measure(expanded))
        if len({m[2] for measured in rounds.values() for m in measured}) != 1:
            raise SystemExit("the logits differ")
        print("expanded" if expanded else "from the codes")
        for name, measured in rounds.items():
            prompt = statistics.median(m[0] for m in measured[1:])
            steps = statistics.median(m[1] for m in measured[1:])
            rates = f"prompt {len(PROMPT) / prompt:6.1f} tokens/s, then {STEPS / steps:6.1f}"
            print(f"  {name:8}{rates}, SHA-256 {measured[-1][2][:16]}")


if __name__ == "__main__":
    main()

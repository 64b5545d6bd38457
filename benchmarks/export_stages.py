"""Processor and wall time of each stage of an export to a `.pte` in int8.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/export_stages.py MODEL OUT [CONTEXT]

The command line sets that variable, before PyTorch is loaded. OUT must not exist. The table of
docs/measurements.md is what this prints.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from exporter.config import ExportConfig
from exporter.pipeline import export
from exporter.quant.config import QuantConfig


class Stages:
    """Seconds of processor and wall time by stage, from the reports of an export's progress."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}
        self._stage, self._at = "open the checkpoint", self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.process_time(), time.monotonic()

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == self._stage:
            return
        (cpu, wall), now = self.seconds.get(self._stage, (0.0, 0.0)), self._now()
        spent = cpu + now[0] - self._at[0], wall + now[1] - self._at[1]
        self.seconds[self._stage] = spent
        self._stage, self._at = stage, now


def main() -> None:
    model, out, context = (*sys.argv[1:], "512")[:3]
    stages = Stages()
    config = ExportConfig(QuantConfig(scheme="int8"), context=int(context), formats=("pte",))
    export(model, Path(out), config, stages.progress)
    stages.progress("end", 0, 0)
    for stage, (cpu, wall) in stages.seconds.items():
        print(f"{stage:<28} {cpu:7.1f} s of processor time {wall:7.1f} s")


if __name__ == "__main__":
    main()

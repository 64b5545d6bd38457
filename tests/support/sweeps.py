"""A plan of 24 small cells, which our own commands make in a few seconds each."""

from __future__ import annotations

import json
from pathlib import Path

import tinyqmoe
from tests.support.bundles import TEXT

DEVICES = ("iphone-13", "iphone-15", "iphone-16", "iphone-se-3")
RATES = (6, 5, 4, 3)
CELLS = len(RATES) * (1 + len(DEVICES) + 1)  # export, fits, parity
PLAN = """
[sweep]
devices = {devices}
tasks = ["parity"]
target = "ios"
coreml-format = "custom-op"
context = 48
calibration = "text.txt"
[[model]]
name = "small"
model = "{model}"
[[scheme]]
name = "int8"
bits-per-weight = {rates}
[[rule]]
name = "phone"
device = "iphone-13"
max-kl = 0.25
"""


def write_plan(folder: Path, model: Path, *, rates: tuple[int, ...] = RATES) -> Path:
    """The file of a plan, which is calibrated on a text beside it."""
    (folder / "text.txt").write_text(TEXT * 3)
    plan = folder / "plan.toml"
    devices = json.dumps(DEVICES[: len(rates)])
    plan.write_text(PLAN.format(devices=devices, model=model, rates=[*rates]))
    return plan


def finished(out: Path) -> dict[str, int]:
    """Finished cells with the time at which each was published, in ns."""
    return {p.name: p.stat().st_ctime_ns for p in (out / "cells").glob("[!.]*")}


def table_bytes(out: Path) -> bytes:
    """The table in the results of a sweep, which has to have no failure."""
    table = tinyqmoe.read_sweep(out)
    assert [row.message for row in table.failed] == []
    return json.dumps(table.to_dict()).encode()

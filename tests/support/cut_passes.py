"""Passes through the layers of a model that are cut off while they write what goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exporter.quant.calibration_passes import States


def cut_off(monkeypatch: pytest.MonkeyPatch, call: int, work: Callable[[], None]) -> None:
    """Does `work`, which is interrupted in the given call of `States.write`, counted from 1."""
    real, calls = States.write, 0

    def write(self: Any, values: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            next(iter(values))
            raise KeyboardInterrupt
        real(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(States, "write", write)
        with pytest.raises(KeyboardInterrupt):
            work()

"""How far a sweep is, and how long the rest may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from tinyqmoe.sweep_tasks import CellTask, Made


@dataclass(frozen=True)
class CellEvent:
    """The begin or the end of a cell, for those who watch: what it is, and how far the sweep is.

    Of an end, message says why it failed, empty where it did not, and seconds how long it took.
    left_seconds: an estimate of what is left, None before anything is known.
    """

    label: str
    ended: bool
    message: str
    seconds: float
    done: int
    total: int
    left_seconds: float | None


@dataclass
class SweepProgress:
    """The cells that a sweep has to make, by address with their kinds, and those that have ended.

    seconds: what cells of each kind took before. told: hears of each begin and end.
    """

    kinds: Mapping[str, str]
    seconds: dict[str, list[float]]
    told: Callable[[CellEvent], None]
    _begun: float = field(default_factory=time.monotonic)
    _spent: float = 0.0
    _ended: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, task: CellTask) -> None:
        """Says that a cell is begun, or waits where it is made."""
        with self._lock:
            self.told(self._event(task, False, Made("", 0.0)))

    def end(self, task: CellTask, made: Made, skipped: Collection[str]) -> None:
        """Notes the end of a cell, and with it of those that cannot be made without its result."""
        with self._lock:
            self._ended |= {task.cell.address, *skipped} & self.kinds.keys()
            if made.seconds:
                self.seconds.setdefault(task.cell.kind, []).append(made.seconds)
                self._spent += made.seconds
            self.told(self._event(task, True, made))

    def _event(self, task: CellTask, ended: bool, made: Made) -> CellEvent:
        done, total = len(self._ended), len(self.kinds)
        left = self._left_seconds()
        return CellEvent(task.label, ended, made.message, made.seconds, done, total, left)

    def _left_seconds(self) -> float | None:
        """What is left by the means of its kinds, as far side by side as what was made."""
        known = [s for of_kind in self.seconds.values() for s in of_kind]
        if not known:
            return None
        means = {kind: fmean(of_kind) for kind, of_kind in self.seconds.items()}
        left = sum(
            means.get(kind, fmean(known))
            for address, kind in self.kinds.items()
            if address not in self._ended
        )
        passed = time.monotonic() - self._begun
        return left / max(1.0, self._spent / max(passed, 1e-9))

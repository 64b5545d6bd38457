"""Table of a sweep: a row for each package on each device, the best of them, and those of rules.

Nothing is run here. Rows are plain values, so that the same cells give the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from exporter.errors import UsageError

SMALLEST = {"bytes": "n_bytes", "kl": "kl", "memory": "dirty_bytes"}  # what a rule may ask for


@dataclass(frozen=True)
class SweepRow:
    """A package on a device, or without one where a plan has none.

    What a cell has not measured, or not yet, is None. bits: the rate that was asked for, in bits
    per weight. n_bytes: of the files of the package. kl: mean KL(original || quantized) in nats.
    top1: share of positions with the original's best token. dirty_bytes: predicted dirty memory.
    speed: projected tokens a second, the lower end. parity: whether the package passed. tasks: the
    accuracy of each. message: why a cell of this row failed, or that it is not finished.
    """

    model: str
    scheme: str
    bits: float | None
    format: str | None = None
    device: str | None = None
    n_bytes: int | None = None
    kl: float | None = None
    top1: float | None = None
    perplexity_ratio: float | None = None
    dirty_bytes: int | None = None
    fits: bool | None = None
    speed: float | None = None
    parity: bool | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def name(self) -> str:
        """Name of the model with its settings, as a person would say it."""
        rate = "" if self.bits is None else f" at {self.bits:g} b"
        return f"{self.model} {self.scheme}{rate}"


@dataclass(frozen=True)
class Rule:
    """A rule that chooses a row: the smallest of those within limits, None being no limit.

    With a device the package has to fit it. A row that lacks the figure of a limit is not chosen.
    """

    name: str
    smallest: str = "bytes"
    device: str | None = None
    format: str | None = None
    max_bytes: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    max_dirty: float | None = None
    min_speed: float | None = None

    def __post_init__(self) -> None:
        if self.smallest not in SMALLEST:
            what = f"the rule {self.name}: smallest is {self.smallest!r}"
            raise UsageError(what, hint=f"choose one of {', '.join(SMALLEST)}")

    @property
    def words(self) -> str:
        """The rule as a sentence says it."""
        on = f" that fits {self.device}" if self.device else ""
        limits = (
            ("format", "", self.format),
            ("bytes", "<= ", self.max_bytes),
            ("KL", "<= ", self.max_kl),
            ("best token", ">= ", self.min_top1),
            ("dirty bytes", "<= ", self.max_dirty),
            ("tokens/s", ">= ", self.min_speed),
        )
        said = [f"{what} {sign}{value}" for what, sign, value in limits if value is not None]
        return f"smallest {self.smallest}{on}" + (f" with {', '.join(said)}" if said else "")

    def allows(self, row: SweepRow) -> bool:
        """Whether a row is within all limits."""
        if row.message or getattr(row, SMALLEST[self.smallest]) is None:
            return False
        if self.device is not None and not (row.device == self.device and row.fits):
            return False
        if self.format is not None and row.format != self.format:
            return False
        return all(
            (self.max_bytes is None or _at_most(row.n_bytes, self.max_bytes))
            and (self.max_kl is None or _at_most(row.kl, self.max_kl))
            and (self.max_dirty is None or _at_most(row.dirty_bytes, self.max_dirty))
            and (low is None or (value is not None and value >= low))
            for low, value in ((self.min_top1, row.top1), (self.min_speed, row.speed))
        )


def _at_most(value: float | None, most: float) -> bool:
    return value is not None and value <= most


@dataclass(frozen=True)
class SweepTable:
    """All rows of a sweep in the order of its plan, and its rules."""

    rows: Sequence[SweepRow]
    rules: Sequence[Rule]

    @property
    def failed(self) -> list[SweepRow]:
        """Rows with a cell that failed or is not finished."""
        return [row for row in self.rows if row.message]

    @property
    def best(self) -> list[bool]:
        """For each row whether no other on its device is as good in everything and better in one.

        What counts are bytes, KL, memory and projected speed.
        """
        return [
            _scores(row) is not None and not any(_is_better(other, row) for other in self.rows)
            for row in self.rows
        ]

    def chosen(self, rule: Rule) -> SweepRow | None:
        """The row that a rule chooses; of equal ones the first. None where no row is allowed."""
        allowed = [row for row in self.rows if rule.allows(row)]
        return min(allowed, key=lambda row: getattr(row, SMALLEST[rule.smallest]), default=None)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values."""
        rows = [asdict(row) | {"best": b} for row, b in zip(self.rows, self.best, strict=True)]
        chosen = [(rule, self.chosen(rule)) for rule in self.rules]
        places = [None if row is None else list(self.rows).index(row) for _, row in chosen]
        rules = [asdict(rule) | {"row": at} for (rule, _), at in zip(chosen, places, strict=True)]
        return {"rows": rows, "rules": rules}


def _scores(row: SweepRow) -> tuple[float, ...] | None:
    """Figures of a row, of which less is better; None where size or loss are not known."""
    if row.n_bytes is None or row.kl is None or row.message:
        return None
    return row.n_bytes, row.kl, row.dirty_bytes or 0, -(row.speed or 0.0)


def _is_better(other: SweepRow, row: SweepRow) -> bool:
    """Whether another row of the same device is as good in everything, and better in something."""
    theirs, own = _scores(other), _scores(row)
    if theirs is None or own is None or other.device != row.device:
        return False
    return theirs != own and all(a <= b for a, b in zip(theirs, own, strict=True))

"""Gates of a team's CI: limits on the facts of a bundle, and on what changed since a baseline.

A fact is a number that an export measured or that follows from the manifest. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from exporter.bundle import QuantizationLoss
from exporter.errors import DataError
from runtime_ref.memory import MB

SMALLER = "export with --bits-per-weight or --size, or with another --scheme"
LESS_LOSS = "export with more --bits-per-weight, or with --scheme int8"
LESS_MEMORY = "export with a shorter --context, or with --kv-cache int8"
RENEW = "if the change is meant, take this bundle or its report as the new baseline"


@dataclass(frozen=True)
class Gate:
    """A gate with its limit, what was measured, and what to do where it failed.

    share: how much of the limit is used, 1 at the limit and more where it failed; None where the
    limit is no single number, or 0. seconds: time on the clock of what was run for it.
    """

    name: str
    limit: str
    measured: str
    passed: bool
    remedy: str
    seconds: float = 0.0
    share: float | None = None


@dataclass(frozen=True)
class PackageFacts:
    """The size of a package's files, and the dirty memory of a run that streams its weights.

    Both are in bytes. The memory is predicted for a full context, whatever the device.
    """

    n_bytes: int
    dirty_bytes: int


@dataclass(frozen=True)
class Facts:
    """The facts of a bundle that gates and comparisons are about.

    `bits` is the SHA-256 of the exact logits of all prompts; None where no package has them.
    """

    model: str
    created: str
    loss: QuantizationLoss
    bits: str | None
    packages: dict[str, PackageFacts]  # by format

    @property
    def perplexity_ratio(self) -> float:
        """Ratio of the perplexity of the quantized model to that of the original."""
        return self.loss.perplexity_quantized / self.loss.perplexity_original

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Limits on the facts of a bundle; None is no limit. Sizes are in bytes, KL in nats."""

    max_bytes: int | None = None
    max_dirty: int | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    max_perplexity_ratio: float | None = None


@dataclass(frozen=True)
class Tolerance:
    """What may be lost since a baseline: a share of bytes and memory in percent, KL in nats."""

    percent: float
    kl: float


@dataclass(frozen=True)
class Change:
    """A fact before and now, as texts, and the difference."""

    name: str
    before: str
    now: str
    difference: str


# ---- limits


def limit_gates(facts: Facts, limits: Limits) -> list[Gate]:
    """A gate for each limit that is given, those of size and memory for each package."""
    gates = []
    for name, package in facts.packages.items():
        if limits.max_bytes is not None:
            gates.append(_at_most(f"bytes of {name}", limits.max_bytes, package.n_bytes, SMALLER))
        if limits.max_dirty is not None:
            gates.append(
                _at_most(f"memory of {name}", limits.max_dirty, package.dirty_bytes, LESS_MEMORY)
            )
    loss = facts.loss
    if limits.max_kl is not None:
        gates.append(_kl_gate("KL", f"{limits.max_kl:g} nats", limits.max_kl, loss, LESS_LOSS))
    if limits.min_top1 is not None:
        least, top1 = limits.min_top1, loss.top1_agreement
        text, measured = f"at least {least:g}", f"{top1:.4f}"
        share = share_of(least, top1)
        gates.append(Gate("best token", text, measured, top1 >= least, LESS_LOSS, share=share))
    if limits.max_perplexity_ratio is not None:
        most, ratio = limits.max_perplexity_ratio, facts.perplexity_ratio
        text, share = f"at most {most:g}", share_of(ratio, most)
        name, measured = "perplexity ratio", f"{ratio:.4f}"
        gates.append(Gate(name, text, measured, ratio <= most, LESS_LOSS, share=share))
    return gates


def share_of(used: float, limit: float) -> float | None:
    """Part of a limit that is used; None of nothing."""
    return used / limit if limit > 0 else None


def _at_most(name: str, limit: int, measured: int, remedy: str) -> Gate:
    passed, share = measured <= limit, share_of(measured, limit)
    return Gate(name, f"at most {_bytes(limit)}", _bytes(measured), passed, remedy, share=share)


def _kl_gate(name: str, limit: str, most: float, loss: QuantizationLoss, remedy: str) -> Gate:
    passed, share = loss.kl_mean <= most, share_of(loss.kl_mean, most)
    return Gate(name, f"at most {limit}", loss.kl_words, passed, remedy, share=share)


# ---- the baseline


def baseline_gates(before: Facts, now: Facts, tolerance: Tolerance) -> list[Gate]:
    """A gate for each fact that may not get worse, and for each package that is gone.

    Raises DataError where the losses are those of different texts.
    """
    a, b = before.loss, now.loss
    if (a.text, a.positions) != (b.text, b.positions):
        texts = " and ".join(f"{x.text} ({x.positions:,} positions)" for x in (a, b))
        raise DataError(
            f"the losses of the baseline and of the bundle are those of different texts: {texts}",
            hint="export both with the same --loss-text",
        )
    most = a.kl_mean + tolerance.kl
    limit = f"{a.kl_mean:.4f} + {tolerance.kl:g} nats"
    gates = [_kl_gate("KL since the baseline", limit, most, b, f"{LESS_LOSS}; {RENEW}")]
    for name, old in before.packages.items():
        if name not in now.packages:
            lack = f"{name} since the baseline"
            remedy = f"export with the --target that makes it; {RENEW}"
            gates.append(Gate(lack, "is there", "is gone", False, remedy))
            continue
        new = now.packages[name]
        pairs = (
            ("bytes", old.n_bytes, new.n_bytes, SMALLER),
            ("memory", old.dirty_bytes, new.dirty_bytes, LESS_MEMORY),
        )
        for what, was, is_now, remedy in pairs:
            limit = f"at most {_bytes(was)} + {tolerance.percent:g} %"
            measured = f"{_bytes(is_now)} ({_percent(was, is_now)})"
            most = was * (1 + tolerance.percent / 100)
            label, todo = f"{what} of {name} since the baseline", f"{remedy}; {RENEW}"
            passed, share = is_now <= most, share_of(is_now, most)
            gates.append(Gate(label, limit, measured, passed, todo, share=share))
    return gates


def changes(before: Facts, now: Facts) -> list[Change]:
    """What changed since the baseline: loss, bits, and size and memory of each package."""
    found = list(_loss_changes(before, now))
    same = "-" if now.bits is None else "the same" if before.bits == now.bits else "changed"
    found.append(Change("bits", _short(before.bits), _short(now.bits), same))
    for name in dict.fromkeys([*before.packages, *now.packages]):
        pair = before.packages.get(name), now.packages.get(name)
        for what, key in (("bytes", "n_bytes"), ("memory", "dirty_bytes")):
            was, is_now = (None if p is None else int(getattr(p, key)) for p in pair)
            old, new = ("-" if n is None else _bytes(n) for n in (was, is_now))
            difference = "-" if was is None or is_now is None else _percent(was, is_now)
            found.append(Change(f"{what} of {name}", old, new, difference))
    return found


def _loss_changes(before: Facts, now: Facts) -> Iterator[Change]:
    """Change of each figure of the loss."""
    figures = (
        ("KL", before.loss.kl_mean, now.loss.kl_mean),
        ("best token", before.loss.top1_agreement, now.loss.top1_agreement),
        ("perplexity ratio", before.perplexity_ratio, now.perplexity_ratio),
    )
    for name, was, is_now in figures:
        yield Change(name, f"{was:.4f}", f"{is_now:.4f}", f"{is_now - was:+.4f}")


def _bytes(n_bytes: int) -> str:
    """Text of a size in MB, or in bytes where that says more."""
    return f"{n_bytes / MB:,.2f} MB" if n_bytes >= MB // 10 else f"{n_bytes:,} bytes"


def _percent(before: int, now: int) -> str:
    """Text of a relative difference."""
    return f"{100 * (now / before - 1):+.2f} %" if before else "from nothing"


def _short(digest: str | None) -> str:
    """The first digits of a digest."""
    return "-" if digest is None else digest[:12]

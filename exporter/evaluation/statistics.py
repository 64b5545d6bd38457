"""Means, ratios and shares with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
Z95 = 1.959964  # standard deviations around a mean that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error, and the interval that holds it with 95 % confidence.

    They are None where one item alone says nothing of its spread.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None


def share(hits: Sequence[bool]) -> Estimate:
    """Share of hits among independent items.

    The standard error is that of lm-evaluation-harness, sqrt(p (1 - p) / (n - 1)); the interval is
    Wilson's (1927), which stays within 0 and 1.
    """
    n = len(hits)
    p = sum(hits) / n
    stderr = math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None
    z2 = Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, stderr, max(0.0, middle - half), min(1.0, middle + half))


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """Sum over all items of `sums` over that of `counts`: a mean over what the items hold.

    The uncertainty is a bootstrap over items, RESAMPLES times with a fixed seed: what lies in one
    item is not independent.
    """
    s, c = np.array(sums, np.float64), np.array(counts, np.float64)
    value = float(s.sum() / c.sum())
    if s.size < 2:
        return Estimate(value, None, None, None)
    drawn = np.random.default_rng(0).integers(0, s.size, (RESAMPLES, s.size))
    means = s[drawn].sum(1) / c[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(value, float(means.std(ddof=1)), float(low), float(high))


def exponential(of: Estimate) -> Estimate:
    """exp of an estimate, as perplexity is of a mean; the standard error is to first order."""
    value = math.exp(of.value)
    ends = [None if end is None else math.exp(end) for end in (of.low, of.high)]
    return Estimate(value, None if of.stderr is None else value * of.stderr, *ends)

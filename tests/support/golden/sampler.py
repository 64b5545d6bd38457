"""Sampling as both apps do it, and its vectors: sampler.json. tests/golden/README.md defines it.

Plain sums and products of doubles in a given order: no library's `exp` and no library's random
numbers, so every language draws the same tokens.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tests.support.golden.numbers import bell

MASK = (1 << 64) - 1
INVERSE_LN2 = float.fromhex("0x1.71547652b82fep0")
LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
N_DRAWS = 40


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. top_k 0: all."""

    temperature: float
    top_k: int
    top_p: float
    seed: int


class SplitMix64:
    """Random numbers of 64 bits."""

    def __init__(self, seed: int) -> None:
        self._state = seed & MASK

    def uniform(self) -> float:
        """The next number in [0, 1): the 53 highest bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def exp(x: float) -> float:
    """The exponential of a number that is not positive; 0 below -700."""
    if x < -700:
        return 0.0
    n = float(int(x * INVERSE_LN2 - 0.5))  # towards zero
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = 1.0
    for divisor in range(13, 0, -1):  # Taylor's series by Horner's rule
        p = 1.0 + p * r / divisor
    return p * 2.0**n


def choose(logits: Sequence[float], sampling: Sampling, random: SplitMix64) -> int:
    """A token for logits, which are float32 values."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if sampling.temperature == 0:
        return order[0]
    kept = order[: sampling.top_k] if sampling.top_k else order
    weights = [exp((logits[i] - logits[order[0]]) / sampling.temperature) for i in kept]
    total = 0.0
    for weight in weights:
        total += weight
    enough, mass, n = sampling.top_p * total, 0.0, 0
    while n < len(kept) and (n == 0 or mass < enough):
        mass += weights[n]
        n += 1
    wanted, sum_ = random.uniform() * mass, 0.0
    for token, weight in zip(kept[:n], weights, strict=False):
        sum_ += weight
        if wanted < sum_:
            return token
    return kept[n - 1]


def as_float32(values: Sequence[float]) -> list[float]:
    """The nearest float32 of each, as a double."""
    return [struct.unpack("<f", struct.pack("<f", value))[0] for value in values]


def cases() -> list[tuple[list[float], Sampling]]:
    """Logits with the sampling of each case."""
    small = as_float32((bell(7, 40) * 3).tolist())
    large = as_float32((bell(8, 300) * 2 - 40).tolist())
    ties = [1.0, 5.5, 5.5, -2.0, 5.5, 0.0]
    far = [0.0, -1000.0, -0.125, 3.0e38, -3.0e38]
    return [
        (small, Sampling(0.0, 0, 1.0, 1)),
        (small, Sampling(1.0, 0, 1.0, 0)),
        (small, Sampling(1.0, 0, 1.0, 2**63 + 5)),
        (small, Sampling(0.7, 0, 0.9, 42)),
        (small, Sampling(0.7, 5, 1.0, 42)),
        (small, Sampling(1.5, 12, 0.8, 7)),
        (small, Sampling(0.01, 0, 1.0, 3)),
        (large, Sampling(2.0, 0, 0.95, 11)),
        (large, Sampling(1.0, 400, 0.5, 12)),
        (ties, Sampling(0.0, 0, 1.0, 0)),
        (ties, Sampling(0.5, 2, 1.0, 9)),
        (ties, Sampling(0.5, 0, 0.1, 9)),
        (far, Sampling(1.0, 0, 1.0, 1)),
    ]


def vectors() -> list[dict[str, Any]]:
    """What sampler.json holds: N_DRAWS tokens for each case."""
    found = []
    for logits, sampling in cases():
        random = SplitMix64(sampling.seed)
        tokens = [choose(logits, sampling, random) for _ in range(N_DRAWS)]
        # A seed of 64 bits is no number that every reader of JSON keeps.
        found.append(
            {**asdict(sampling), "seed": str(sampling.seed), "logits": logits, "tokens": tokens}
        )
    return found


def probabilities(logits: Sequence[float], sampling: Sampling) -> np.ndarray[Any, Any]:
    """Probabilities float64 [V] by NumPy, to compare with."""
    p = np.exp((np.array(logits) - max(logits)) / sampling.temperature)
    order = np.argsort(-np.array(logits), kind="stable")
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= sampling.top_p]] = 0
    return p / p.sum()

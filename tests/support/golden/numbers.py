"""Random numbers of our own, which no library version changes, and levels drawn with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def uniform(seed: int, n: int) -> npt.NDArray[np.float64]:
    """`n` numbers in [0, 1): splitmix64, which no library version changes."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def bell(seed: int, n: int) -> npt.NDArray[np.float64]:
    """`n` numbers of mean 0 and deviation 1: sums of twelve uniform ones, without a library's
    logarithm."""
    total = np.full(n, -6.0)
    for i in range(12):
        total = total + uniform(1000 * seed + i, n)
    return total


def draw_levels(
    seed: int, shape: tuple[int, int], low: int, n_levels: int, kind: str
) -> npt.NDArray[np.int8]:
    """Levels int8 [rows, cols]. kind: `zerosNN` ternary-like with NN % zeros, `flat`, `bell`, or
    `same`."""
    n = shape[0] * shape[1]
    if kind.startswith("zeros"):
        u = uniform(seed, 2 * n)
        others = np.array([v for v in range(low, low + n_levels) if v != 0])
        drawn = np.where(
            u[:n] < int(kind[5:]) / 100, 0, others[(u[n:] * len(others)).astype(np.int64)]
        )
    elif kind == "flat":
        drawn = low + (uniform(seed, n) * n_levels).astype(np.int64)
    elif kind == "bell":
        middle = low + (n_levels - 1) / 2
        drawn = np.clip(np.rint(bell(seed, n) * n_levels / 8 + middle), low, low + n_levels - 1)
    else:
        drawn = np.full(n, max(low, 0))
    return drawn.astype(np.int8).reshape(shape)

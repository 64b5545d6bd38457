"""How our encoder grows a dictionary (FORMAT.md section 7).

The core, the tree and the lengths of the codewords follow from the number of times that each level
occurs.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from exporter.codec.dictionary import MAX_CODE_BITS, MAX_ENTRIES, Dictionary
from exporter.codec.format import LZW_CAPS

Counts = npt.NDArray[np.integer]

# A level is in the core where its share is at least 2 to the minus one of these, or lies between
# two that are.
CORE_BITS = range(5, 15)
# Entries of the smaller dictionaries that are tried too where a full one would weigh something:
# below this number of levels.
SMALL_ENTRIES = (16, 64)
SMALL_MATRIX = 1 << 18
ESCAPE_BITS = 8
LONGER_CAP_GAIN = 0.005  # share that the longer cap must save: its tables are twice as large


@dataclass(frozen=True)
class Grown:
    """A dictionary without codewords, and what it is expected to make of the levels.

    `share` is the probability of each entry, for independent levels.
    """

    dictionary: Dictionary
    share: npt.NDArray[np.float64]

    @property
    def mean_length(self) -> float:
        """Levels per codeword."""
        lengths = [phrase.length for phrase in self.dictionary.phrases()]
        return float(self.share @ np.array(lengths))

    def expected_bits(self, n: int) -> float:
        """Size of `n` levels and the dictionary, in bits."""
        codewords = n / self.mean_length
        counts = np.rint(self.share * codewords).astype(np.int64)
        escapes = [phrase.is_escape for phrase in self.dictionary.phrases()]
        lengths = np.frombuffer(code_lengths(counts), np.uint8) + ESCAPE_BITS * np.array(escapes)
        return float(lengths @ counts) + 5 * len(counts)


def best_tree(counts: Counts, level_min: int) -> Dictionary:
    """The dictionary for levels that occur `counts` times, [n_levels] from level_min up.

    It has no codewords yet (`with_codewords`).
    """
    n = int(counts.sum())
    limits = (*SMALL_ENTRIES, MAX_ENTRIES) if n < SMALL_MATRIX else (MAX_ENTRIES,)
    best: tuple[float, Dictionary] | None = None
    for first, n_core in cores(counts):
        for limit in limits:
            for cap in LZW_CAPS:
                grown = grow(counts, level_min, (first, n_core), cap, limit)
                if grown is None:
                    continue
                bits = grown.expected_bits(n) * (1 + LONGER_CAP_GAIN * (cap > LZW_CAPS[0]))
                if best is None or bits < best[0]:
                    best = bits, grown.dictionary
                if max(map(len, grown.dictionary.paths())) < cap:
                    break  # a longer cap makes the same tree
    assert best is not None  # the level that occurs most is a core that fits
    return best[1]


def cores(counts: Counts) -> list[tuple[int, int]]:
    """The cores worth a try: first offset and number of levels."""
    total = max(1, int(counts.sum()))
    found = []
    for bits in CORE_BITS:
        common = np.flatnonzero(counts.astype(np.float64) * 2.0**bits >= total)
        if len(common) == 0:
            common = np.array([int(np.argmax(counts))])
        core = int(common[0]), int(common[-1] - common[0] + 1)
        if core not in found:
            found.append(core)
    return found


def grow(
    counts: Counts, level_min: int, core: tuple[int, int], cap: int, max_entries: int
) -> Grown | None:
    """A tree of at most `max_entries` leaves; None where not even the core's levels fit.

    LZW's growth, run to its end on the expected data: as long as there is room the most probable
    leaf is split, among equals the one that was made first.
    """
    first, n_core = core
    n_levels = len(counts)
    inside = counts[first : first + n_core].astype(np.float64)
    rest = float(counts.sum()) - inside.sum()
    shares = [*inside, rest] if n_core < n_levels else list(inside)
    total = max(1.0, sum(shares))
    n_children = len(shares)
    if n_children > max_entries:
        return None
    first_child: dict[int, int] = {}
    probability, depth = [1.0], [0]
    heap = [(-1.0, 0)]
    while heap and len(first_child) * (n_children - 1) + n_children <= max_entries:
        node = heapq.heappop(heap)[1]
        first_child[node] = len(probability)
        for child, share in enumerate(shares):
            if child < n_core and depth[node] + 1 < cap:
                heapq.heappush(heap, (-probability[node] * share / total, len(probability)))
            probability.append(probability[node] * share / total)
            depth.append(depth[node] + 1)
    tree = bytearray()
    share_of_leaf = []
    pending = [0]
    while pending:
        node = pending.pop()
        inner = node in first_child
        tree.append(inner)
        if inner:
            pending.extend(reversed(range(first_child[node], first_child[node] + n_children)))
        else:
            share_of_leaf.append(probability[node])
    dictionary = Dictionary(
        *(level_min, n_levels, first, n_core, cap), bytes(tree), bytes(len(share_of_leaf))
    )
    return Grown(dictionary, np.array(share_of_leaf))


def with_codewords(dictionary: Dictionary, counts: Counts) -> Dictionary:
    """The same tree with codewords for entries that occur `counts` times, [n_entries]."""
    return replace(dictionary, code_bits=code_lengths(counts))


def code_lengths(counts: Counts) -> bytes:
    """The lengths of the best prefix code of at most MAX_CODE_BITS bits; 0 where a count is 0.

    At least two entries get a codeword, so that the code is complete. Package-merge (Larmore and
    Hirschberg 1990).
    """
    used = np.flatnonzero(counts)
    if len(used) < 2:
        others = [entry for entry in range(len(counts)) if entry not in used]
        used = np.concatenate([used, others[: 2 - len(used)]]).astype(np.int64)
    used = used[np.argsort(counts[used], kind="stable")]
    weights = counts[used].astype(np.int64)
    n = len(used)
    packages = np.zeros(0, np.int64)
    merges = []  # for every length, which of the merged items are single entries
    for _ in range(MAX_CODE_BITS):
        merged = np.concatenate([weights, packages])
        order = np.argsort(merged, kind="stable")
        merges.append(order < n)
        pairs = len(merged) // 2 * 2
        packages = merged[order][:pairs:2] + merged[order][1:pairs:2]
    lengths = np.zeros(len(counts), np.uint8)
    taken = 2 * n - 2
    for is_single in reversed(merges):
        singles = int(is_single[:taken].sum())
        lengths[used[:singles]] += 1
        taken = 2 * (taken - singles)
    return lengths.tobytes()

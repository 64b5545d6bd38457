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
# Sizes that are tried: what is lost because codewords have whole bits goes up and down with them.
ENTRIES = (16, 64, 96, 128, 160, 192, 224)
ESCAPE_BITS = 8
# Bits of a look-up's window that are codewords which end in it, about.
FILLED_BITS = 9


@dataclass(frozen=True)
class Grown:
    """A dictionary without codewords, and what it is expected to make of the levels.

    By entry: `share`, the probability for independent levels, and the length with what an escape
    adds.
    """

    dictionary: Dictionary
    share: npt.NDArray[np.float64]
    length: npt.NDArray[np.int64]
    is_escape: npt.NDArray[np.bool_]

    def expected_bits(self, n: int) -> float:
        """Size of `n` levels and the dictionary, in bits."""
        codewords = n / float(self.share @ self.length)
        counts = np.rint(self.share * codewords).astype(np.int64)
        bits = np.frombuffer(code_lengths(counts), np.uint8) + ESCAPE_BITS * self.is_escape
        return float(bits @ counts) + 8 * len(self.dictionary.to_bytes())


def best_tree(counts: Counts, level_min: int) -> Dictionary:
    """The dictionary for levels that occur `counts` times, [n_levels] from level_min up.

    It has no codewords yet (`with_codewords`). First the core is chosen and then the number of
    entries, both by the size that they are expected to lead to.
    """
    n, cap = int(counts.sum()), best_cap(entropy_bits(counts))

    def best(trees: list[Grown]) -> Grown:
        return min(trees, key=lambda grown: grown.expected_bits(n))

    largest = best([grow(counts, level_min, core, cap, MAX_ENTRIES) for core in cores(counts)])
    core = largest.dictionary.core_first, largest.dictionary.n_core
    sizes = [entries for entries in ENTRIES if entries > core[1]]
    smaller = [grow(counts, level_min, core, cap, entries) for entries in sizes]
    return best([*smaller, largest]).dictionary


def best_cap(entropy: float) -> int:
    """The cap of the fastest decoder for levels of this entropy in bits.

    It is the shortest that holds what a window holds on average.
    """
    levels = FILLED_BITS / max(1e-9, entropy)
    return next((cap for cap in LZW_CAPS if cap >= levels), LZW_CAPS[-1])


def entropy_bits(counts: Counts) -> float:
    """Order-0 entropy in bits per level of levels that occur `counts` times."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no negative zero


def cores(counts: Counts) -> list[tuple[int, int]]:
    """The cores worth a try: first offset and number of levels."""
    total = max(1, int(counts.sum()))
    found = []
    for bits in CORE_BITS:
        common = np.flatnonzero(counts.astype(np.float64) * 2.0**bits >= total)
        if len(common) == 0:
            common = np.array([int(np.argmax(counts))])
        first, n_core = int(common[0]), int(common[-1] - common[0] + 1)
        n_children = n_core + (n_core < len(counts))
        if n_children <= MAX_ENTRIES and (first, n_core) not in found:
            found.append((first, n_core))
    return found


def grow(
    counts: Counts, level_min: int, core: tuple[int, int], cap: int, max_entries: int
) -> Grown:
    """A tree of at most `max_entries` leaves.

    LZW's growth, run to its end on the expected data: as long as there is room the most probable
    leaf is split, among equals the one that was made first.
    """
    first, n_core = core
    n_levels = len(counts)
    inside = counts[first : first + n_core].astype(np.float64)
    rest = float(counts.sum()) - inside.sum()
    shares = (np.append(inside, rest) if n_core < n_levels else inside) / max(1, counts.sum())
    n_children = len(shares)
    first_child: dict[int, int] = {}
    probability, depth = [1.0], [0]
    heap = [(-1.0, 0)]
    while heap and (len(first_child) + 1) * (n_children - 1) + 1 <= max_entries:
        node = heapq.heappop(heap)[1]
        n_nodes = len(probability)
        first_child[node] = n_nodes
        probability.extend((probability[node] * shares).tolist())
        depth.extend([depth[node] + 1] * n_children)
        if depth[-1] < cap:
            for child in range(n_nodes, n_nodes + n_core):
                heapq.heappush(heap, (-probability[child], child))
    tree, leaves = _pre_order(first_child, n_children)
    return Grown(
        Dictionary(*(level_min, n_levels, first, n_core, cap), tree, bytes(len(leaves))),
        np.array(probability)[leaves],
        np.array(depth)[leaves],
        (np.array(leaves) - 1) % n_children == n_core,
    )


def _pre_order(first_child: dict[int, int], n_children: int) -> tuple[bytes, list[int]]:
    """A tree in pre-order, one byte a node, 1 an inner node; and its leaves."""
    tree, leaves, pending = bytearray(), [], [0]
    while pending:
        node = pending.pop()
        tree.append(node in first_child)
        if node in first_child:
            children = range(first_child[node], first_child[node] + n_children)
            pending.extend(reversed(children))
        else:
            leaves.append(node)
    return bytes(tree), leaves


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

"""The dictionary of the `lzw` codec: a frozen tree of phrases (FORMAT.md sections 3 and 7).

The phrases are the leaves of a tree whose inner nodes have one child per level. `Dictionary.tree`
holds it in pre-order, one byte a node: 1 an inner node, 0 a leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exporter.codec.format import packed_bytes
from exporter.errors import CodecError

SHARE_UNITS = 256


@dataclass(frozen=True)
class Dictionary:
    """Phrases of 1 to `cap` levels; codeword k stands for the k-th leaf of `tree`."""

    level_min: int
    n_levels: int
    code_bits: int
    cap: int
    tree: bytes

    @classmethod
    def grow(
        cls,
        counts: npt.NDArray[np.integer],
        level_min: int,
        n_levels: int,
        code_bits: int,
        cap: int,
    ) -> Dictionary:
        """The dictionary for levels that occur `counts` times; counts: [n_levels], of level_min
        upwards."""
        if len(counts) != n_levels:
            raise CodecError(
                "BAD_ARGUMENT",
                f"got {len(counts)} counts, expected one for each of {n_levels} levels",
            )
        return cls.from_shares(round_shares(counts), level_min, code_bits, cap)

    @classmethod
    def from_shares(
        cls, shares: tuple[int, ...], level_min: int, code_bits: int, cap: int
    ) -> Dictionary:
        """The dictionary for levels with these shares, as `round_shares` gives them."""
        return cls(level_min, len(shares), code_bits, cap, _grow_tree(shares, code_bits, cap))

    @property
    def n_internal(self) -> int:
        """Number of inner nodes."""
        return len(self.tree) // self.n_levels

    @property
    def n_entries(self) -> int:
        """Number of phrases."""
        return len(self.tree) - self.n_internal

    def to_bits(self) -> bytes:
        """The dictionary section of a blob: a bit a node, the first in the lowest bit."""
        return np.packbits(np.frombuffer(self.tree, np.uint8), bitorder="little").tobytes()

    @classmethod
    def from_bits(
        cls, bits: bytes, *, level_min: int, n_levels: int, code_bits: int, cap: int, n_entries: int
    ) -> Dictionary:
        """Reads a dictionary section back. Raises `BAD_DICTIONARY` unless the bits are exactly one
        tree."""
        n_nodes = n_entries + (n_entries - 1) // (n_levels - 1)
        if len(bits) != packed_bytes(n_nodes, 1):
            raise CodecError(
                "BAD_DICTIONARY",
                f"got {len(bits)} bytes, expected {packed_bytes(n_nodes, 1)} for {n_nodes} nodes",
            )
        nodes = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        dictionary = cls(level_min, n_levels, code_bits, cap, nodes[:n_nodes].tobytes())
        dictionary._check_tree()
        if nodes[n_nodes:].any():
            raise CodecError(
                "BAD_DICTIONARY", "got a one among the unused bits of the last byte, expected zeros"
            )
        return dictionary

    def _check_tree(self) -> None:
        if self.tree[0] != 1:
            raise CodecError("BAD_DICTIONARY", "the root is a leaf, expected an inner node")
        open_children: list[int] = []  # children still to come, for each node on the path
        last = len(self.tree) - 1
        for at, inner in enumerate(self.tree):
            if inner:
                open_children.append(self.n_levels)
                if len(open_children) > self.cap:
                    raise CodecError(
                        "BAD_DICTIONARY", f"node {at} has phrases longer than the cap of {self.cap}"
                    )
                continue
            while open_children:
                open_children[-1] -= 1
                if open_children[-1]:
                    break
                open_children.pop()
            if not open_children and at != last:
                raise CodecError("BAD_DICTIONARY", f"the tree ends at node {at}, expected {last}")
        if open_children:
            raise CodecError(
                "BAD_DICTIONARY", f"the tree is not complete after {len(self.tree)} nodes"
            )

    def walk(self) -> Iterator[tuple[bool, tuple[int, ...]]]:
        """Every node in pre-order: whether it is a leaf, and the child indices (0 to n_levels - 1)
        that lead to it."""
        path: list[int] = []
        for inner in self.tree:
            yield not inner, tuple(path)
            if inner:
                path.append(0)
                continue
            while path and path[-1] == self.n_levels - 1:
                path.pop()
            if path:
                path[-1] += 1

    def phrases(self) -> list[tuple[int, ...]]:
        """The levels of every phrase, by codeword."""
        low = self.level_min
        return [tuple(low + i for i in path) for is_leaf, path in self.walk() if is_leaf]

    def mean_phrase_length(self, shares: Sequence[float]) -> float:
        """Levels per codeword expected for independent levels with these shares; shares:
        [n_levels], of any sum."""
        total = float(sum(shares))
        p = [share / total for share in shares]
        # Every inner node that a parse passes adds one level, so the mean is the sum of their
        # probabilities.
        mean = 0.0
        reach = [1.0]  # probability of each node on the path
        path: list[int] = []
        for inner in self.tree:
            if inner:
                mean += reach[-1]
                path.append(0)
                reach.append(reach[-1] * p[0])
                continue
            while path and path[-1] == self.n_levels - 1:
                path.pop()
                reach.pop()
            if path:
                path[-1] += 1
                reach[-1] = reach[-2] * p[path[-1]]
        return mean


def round_shares(counts: npt.NDArray[np.integer]) -> tuple[int, ...]:
    """Each level's share of `counts` in units of 1/256, halves rounded up, at least 1.

    Integers throughout, so that every implementation gets the same. The sum need not be 256.
    """
    total = max(1, int(counts.sum()))
    return tuple(max(1, (2 * SHARE_UNITS * int(count) + total) // (2 * total)) for count in counts)


def _grow_tree(shares: tuple[int, ...], code_bits: int, cap: int) -> bytes:
    """Splits the most probable leaf until another split would pass 2^code_bits leaves; the tree in
    pre-order.

    Many leaves are split in one step: no child made in a step can be more probable than (most
    probable leaf) * (largest share), so all leaves at or above that come first whatever their
    children are. Same result as one split at a time.
    """
    n_levels = len(shares)
    p = np.array(shares, np.float64) / np.float64(sum(shares))
    splits_left = (2**code_bits - 1) // (n_levels - 1)
    # Nodes are numbered in the order they are made; -1 is a leaf.
    first_child = np.full(1 + splits_left * n_levels, -1, np.int64)
    depth = np.zeros(len(first_child), np.int64)
    n_nodes = 1
    # The nodes that may be split, in the order they were made.
    leaves, probability = (np.array([0]), np.array([1.0]))
    while splits_left and len(leaves):
        due = np.flatnonzero(probability >= probability.max() * p.max())
        due = due[np.argsort(-probability[due], kind="stable")][:splits_left]
        children = n_nodes + np.arange(len(due) * n_levels)
        first_child[leaves[due]] = children[::n_levels]
        depth[children] = np.repeat(depth[leaves[due]] + 1, n_levels)
        made = np.outer(probability[due], p).ravel()
        n_nodes += len(children)
        splits_left -= len(due)
        splittable = depth[children] < cap
        leaves = np.concatenate([np.delete(leaves, due), children[splittable]])
        probability = np.concatenate([np.delete(probability, due), made[splittable]])
    return _pre_order(first_child[:n_nodes], depth[:n_nodes], n_levels)


def _pre_order(
    first_child: npt.NDArray[np.int64], depth: npt.NDArray[np.int64], n_levels: int
) -> bytes:
    """One byte a node in pre-order: 1 an inner node, 0 a leaf. The arguments are by node, in any
    order."""
    by_depth = [np.flatnonzero((depth == d) & (first_child >= 0)) for d in range(int(depth.max()))]
    siblings = np.arange(n_levels)
    size = np.ones(len(first_child), np.int64)  # nodes of the subtree
    for inner in reversed(by_depth):
        size[inner] += size[first_child[inner, None] + siblings].sum(axis=1)
    position = np.zeros(len(first_child), np.int64)
    for inner in by_depth:
        children = first_child[inner, None] + siblings
        before = np.cumsum(size[children], axis=1) - size[children]
        position[children] = position[inner, None] + 1 + before
    tree = np.zeros(len(first_child), np.uint8)
    tree[position] = first_child >= 0
    return tree.tobytes()

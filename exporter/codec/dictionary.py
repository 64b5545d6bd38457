"""The dictionary of the `lzw` codec: a tree of phrases and their codewords (FORMAT.md section 3).

The phrases are the leaves of a tree. Its inner nodes have one child for each level of the *core*,
and, where the core is not the whole alphabet, a last one for the escape. `Dictionary.tree` holds it
in pre-order, one byte a node: 1 an inner node, 0 a leaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from exporter.codec.format import packed_bytes
from exporter.errors import CodecError

MAX_ENTRIES = 256
MAX_CODE_BITS = 12


@dataclass(frozen=True)
class Phrase:
    """Levels that a codeword stands for; after an escape phrase, the level that follows it."""

    levels: tuple[int, ...]
    is_escape: bool

    @property
    def length(self) -> int:
        """Number of levels, with the one that follows an escape."""
        return len(self.levels) + self.is_escape


@dataclass(frozen=True)
class Dictionary:
    """Phrases of 1 to `cap` levels. Entry k is the k-th leaf of `tree`.

    The core is `n_core` levels from level_min + core_first up. `code_bits` has the length of each
    entry's codeword, 0 for an entry that is not used.
    """

    level_min: int
    n_levels: int
    core_first: int
    n_core: int
    cap: int
    tree: bytes
    code_bits: bytes

    @property
    def has_escape(self) -> bool:
        """Whether some levels of the alphabet are not in the core."""
        return self.n_core < self.n_levels

    @property
    def n_children(self) -> int:
        """Number of children of an inner node."""
        return self.n_core + self.has_escape

    @property
    def n_entries(self) -> int:
        """Number of phrases."""
        return self.tree.count(0)

    def to_bytes(self) -> bytes:
        """The dictionary section of a blob: one bit a node, then four bits an entry."""
        tree = np.packbits(np.frombuffer(self.tree, np.uint8), bitorder="little").tobytes()
        even = self.code_bits + bytes(len(self.code_bits) % 2)
        nibbles = (low | high << 4 for low, high in zip(even[::2], even[1::2], strict=True))
        return tree + bytes(nibbles)

    @classmethod
    def from_bytes(
        cls,
        section: bytes,
        *,
        level_min: int,
        n_levels: int,
        core_first: int,
        n_core: int,
        cap: int,
        n_entries: int,
    ) -> Dictionary:
        """Reads a dictionary section back.

        Raises `BAD_DICTIONARY` unless the bits are exactly one tree, and the lengths those of a
        complete code.
        """
        n_children = n_core + (n_core < n_levels)
        n_nodes = n_entries + (n_entries - 1) // (n_children - 1)
        tree_bytes = packed_bytes(n_nodes, 1)
        nodes = np.unpackbits(np.frombuffer(section, np.uint8, tree_bytes), bitorder="little")
        nibbles = [half for byte in section[tree_bytes:] for half in (byte & 15, byte >> 4)]
        dictionary = cls(
            *(level_min, n_levels, core_first, n_core, cap),
            *(nodes[:n_nodes].tobytes(), bytes(nibbles[:n_entries])),
        )
        dictionary._check_tree()
        if nodes[n_nodes:].any():
            raise CodecError(
                "BAD_DICTIONARY", "got a one among the unused bits of the last byte, expected zeros"
            )
        dictionary._check_code()
        if any(nibbles[n_entries:]):
            raise CodecError("BAD_DICTIONARY", "the unused half of the last byte is not zero")
        return dictionary

    def _check_tree(self) -> None:
        if self.tree[0] != 1:
            raise CodecError("BAD_DICTIONARY", "the root is a leaf, expected an inner node")
        path: list[int] = []  # child index at each depth
        last = len(self.tree) - 1
        for at, inner in enumerate(self.tree):
            if inner:
                if path and path[-1] == self.n_core:
                    raise CodecError("BAD_DICTIONARY", f"node {at} comes after an escape")
                path.append(0)
                if len(path) > self.cap:
                    raise CodecError(
                        "BAD_DICTIONARY", f"node {at} has phrases longer than the cap of {self.cap}"
                    )
                continue
            while path and path[-1] == self.n_children - 1:
                path.pop()
            if path:
                path[-1] += 1
            elif at != last:
                raise CodecError("BAD_DICTIONARY", f"the tree ends at node {at}, expected {last}")
        if path:
            raise CodecError(
                "BAD_DICTIONARY", f"the tree is not complete after {len(self.tree)} nodes"
            )

    def _check_code(self) -> None:
        longest = max(self.code_bits)
        if longest > MAX_CODE_BITS:
            raise CodecError(
                "BAD_DICTIONARY", f"got a codeword of {longest} bits, expected {MAX_CODE_BITS}"
            )
        used = sum(1 << MAX_CODE_BITS >> bits for bits in self.code_bits if bits)
        if used != 1 << MAX_CODE_BITS:
            raise CodecError(
                "BAD_DICTIONARY",
                f"the codewords fill {used} of {1 << MAX_CODE_BITS} parts, expected all of them",
            )

    def paths(self) -> Iterator[tuple[int, ...]]:
        """The child indices that lead to every leaf, in the order of the entries."""
        path: list[int] = []
        for inner in self.tree:
            if inner:
                path.append(0)
                continue
            yield tuple(path)
            while path and path[-1] == self.n_children - 1:
                path.pop()
            if path:
                path[-1] += 1

    def phrases(self) -> list[Phrase]:
        """What every entry stands for."""
        first = self.level_min + self.core_first
        found = []
        for path in self.paths():
            is_escape = path[-1] == self.n_core
            levels = tuple(first + child for child in (path[:-1] if is_escape else path))
            found.append(Phrase(levels, is_escape))
        return found

    def codewords(self) -> dict[tuple[int, int], int]:
        """The entry of every codeword, by (bits, value).

        The codewords of one length are numbers that follow each other, in the order of the entries,
        and those of the next length follow them. The first bit of a codeword is its highest.
        """
        entries, value = {}, 0
        for bits in range(1, MAX_CODE_BITS + 1):
            for entry, length in enumerate(self.code_bits):
                if length == bits:
                    entries[bits, value] = entry
                    value += 1
            value <<= 1
        return entries

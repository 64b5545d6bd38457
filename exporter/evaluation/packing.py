"""Token sequences packed into one call of a network, where each sees only its own tokens.

Sequences that begin alike share the tokens of their beginning: a pack is a tree, and a token sees
those on its way to the root. So a question is computed once for all its choices, and the weights,
which may have to be read or decoded, once for many questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exporter.evaluation.language_model import Request

PACK_TOKENS = 1024  # attention over all pairs of them takes a third of the time at 135M parameters


@dataclass(frozen=True)
class Pack:
    """Tokens int64 [1, S] with their positions int64 [S] and what each sees, bool [S, S].

    scored: int64 [n], the tokens whose logits are asked for, in the order of the requests.
    """

    tokens: Tensor
    positions: Tensor
    seen: Tensor
    scored: Tensor


def packs(requests: Iterable[Request]) -> Iterator[Pack]:
    """Packs of at most PACK_TOKENS tokens, or of one request that has more."""
    builder = _Builder()
    for request in requests:
        inputs = request.tokens[:-1]
        if builder.tokens and len(builder.tokens) + builder.n_new(inputs) > PACK_TOKENS:
            yield builder.pack()
            builder = _Builder()
        builder.add(inputs, request.n_given)
    if builder.tokens:
        yield builder.pack()


class _Builder:
    """A pack that grows."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._positions: list[int] = []
        self._scored: list[int] = []
        self._paths: list[tuple[int, list[int]]] = []  # first new token, and the way to the last
        self._children: dict[tuple[int, int], int] = {}  # (token before or -1, id) -> token

    def n_new(self, inputs: Sequence[int]) -> int:
        """Number of tokens that a sequence would add."""
        return len(inputs) - len(self._shared(inputs))

    def add(self, inputs: Sequence[int], n_given: int) -> None:
        """Adds the inputs of a request, whose logits are asked for from the last given token on."""
        path = self._shared(inputs)
        first = len(path)
        for position in range(first, len(inputs)):
            before = path[-1] if path else -1
            path.append(len(self.tokens))
            self._children[before, inputs[position]] = path[-1]
            self.tokens.append(inputs[position])
            self._positions.append(position)
        if first < len(path):
            self._paths.append((first, path))
        self._scored += path[n_given - 1 :]

    def pack(self) -> Pack:
        """The pack as it is now."""
        n = len(self.tokens)
        seen = np.zeros((n, n), bool)
        for first, path in self._paths:
            way = np.array(path)
            seen[way[first:, None], way] = np.arange(first, len(path))[:, None] >= np.arange(
                len(path)
            )
        return Pack(
            torch.tensor([self.tokens]),
            torch.tensor(self._positions),
            torch.from_numpy(seen),
            torch.tensor(self._scored),
        )

    def _shared(self, inputs: Sequence[int]) -> list[int]:
        """The tokens of the pack with which a sequence begins."""
        path: list[int] = []
        for token in inputs:
            found = self._children.get((path[-1] if path else -1, token))
            if found is None:
                break
            path.append(found)
        return path

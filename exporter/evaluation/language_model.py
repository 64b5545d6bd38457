"""What an evaluation asks of a model: logits of token sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
"""Logits of one position, float32 [V]."""


@dataclass(frozen=True)
class Request:
    """A token sequence, of which the last `n_scored` tokens are scored, each given those before it.

    At least one token stands before them.
    """

    tokens: tuple[int, ...]
    n_scored: int

    @property
    def n_given(self) -> int:
        """Number of tokens before the first that is scored."""
        return len(self.tokens) - self.n_scored

    @property
    def scored(self) -> tuple[int, ...]:
        """The tokens that are scored."""
        return self.tokens[self.n_given :]


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it computes.

    name: for tables. context: most tokens that it takes. weight_bytes: size of all weights as they
    are stored. identity: a text that differs where the logits do.
    """

    name: str
    context: int
    vocab_size: int
    weight_bytes: int
    identity: str


class LanguageModel(Protocol):
    """A model that gives the logits before each scored token."""

    facts: ModelFacts

    def logits(self, requests: Iterable[Request]) -> Iterator[Row]:
        """Rows of logits, one for each scored token, in the order of the requests.

        Requests are taken as they are needed; those that begin alike and follow each other share
        their beginning. Raises TinyQMoEError.
        """


class Runner(Protocol):
    """What runs a package: see `runtime_ref.generate.Runner`."""

    def forward(self, tokens: Sequence[int], position: int) -> Row:
        """Logits of the last position; `tokens` are run at `position` onward."""


class PackageModel:
    """A package of a bundle as its runner computes it.

    A runner gives the logits of the last position only, so a scored token costs a call of its own;
    what stands before the first of them is one call.
    """

    def __init__(self, runner: Runner, facts: ModelFacts) -> None:
        self.facts, self._runner = facts, runner

    def logits(self, requests: Iterable[Request]) -> Iterator[Row]:
        """See `LanguageModel`. A beginning is run once for all requests that share it."""
        held: tuple[int, ...] = ()  # that the runner has seen
        given: tuple[int, ...] | None = None  # after which `first` are the logits
        first = np.empty(0, np.float32)
        for request in requests:
            begin = request.tokens[: request.n_given]
            if begin != given:
                n = min(_common(held, begin), len(begin) - 1)
                given, first = begin, self._runner.forward(begin[n:], n)
            yield first
            held = request.tokens[:-1]
            for position in range(len(begin), len(held)):
                yield self._runner.forward(held[position : position + 1], position)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def log_probabilities(row: Row) -> NDArray[np.float64]:
    """Log-softmax of a row of logits, float64 [V]."""
    x = row.astype(np.float64)
    x -= x.max()
    probabilities: NDArray[np.float64] = x - np.log(np.exp(x).sum())
    return probabilities

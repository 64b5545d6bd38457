"""Generation of text: sampling, the token loop, and text in whole characters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Artifact, Bundle
from exporter.errors import ContextError, UsageError
from runtime_ref.prompts import check_fits, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Runner(Protocol):
    """Loaded package. Position 0 starts a new sequence."""

    name: str
    artifact: Artifact
    context: int

    def file(self, relative: str) -> Path:
        """Path of a file of the package; `relative` as in the manifest."""

    def forward(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of the last position, float32 [V].

        `tokens` are run at `position` onward. Raises ContextError if they do not fit.
        """


def check_room(tokens: Sequence[int], position: int, context: int) -> None:
    """Checks that `tokens` from `position` on fit the context. Raises ContextError, ValueError."""
    if not tokens:
        raise ValueError("no tokens")
    if position + len(tokens) > context:
        raise ContextError(
            f"{position + len(tokens)} tokens do not fit the context of {context}, with which "
            "this was exported",
            hint="shorten the prompt, ask for fewer new tokens, or export with a larger --context",
        )


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Temperature 0 is greedy; `top_p` keeps the likeliest tokens of that probability. Raises
    UsageError.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature must be 0 or a positive number, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top-p must be above 0 and at most 1, got {self.top_p}")
        if self.seed < 0:
            problems.append(f"seed must not be negative, got {self.seed}")
        if problems:
            raise UsageError("wrong sampling options", problems=problems)

    def chooser(self) -> Callable[[NDArray[np.float32]], int]:
        """Function from logits float32 [V] to a token id, with a random state of its own."""
        if self.temperature == 0:
            return lambda logits: int(logits.argmax())
        rng = np.random.default_rng(self.seed)
        return lambda logits: int(rng.choice(logits.size, p=self._probabilities(logits)))

    def _probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities of all tokens, float64 [V]."""
        scaled = logits.astype(np.float64) / self.temperature
        p: NDArray[np.float64] = np.exp(scaled - scaled.max())
        p /= p.sum()
        if self.top_p < 1:
            order = np.argsort(-p, kind="stable")
            before = np.cumsum(p[order]) - p[order]
            p[order[before >= self.top_p]] = 0  # the most likely token always stays
            p /= p.sum()
        return p


@dataclass(frozen=True)
class RunResult:
    """Result of a run. `stopped` says why it ended: eos, stop, limit or context."""

    prompt_tokens: list[int]
    tokens: list[int]
    text: str
    stopped: str
    prefill_ms: float
    decode_ms: float

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode speed in tokens a second.

        It is without the first token, which the prefill gives.
        """
        return (len(self.tokens) - 1) * 1000 / self.decode_ms if self.decode_ms else 0.0


def generate(
    runner: Runner,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    eos: Sequence[int],
) -> Iterator[int]:
    """Token ids, one by one, until an EOS id (which is not yielded) or the limit.

    Raises ContextError if the prompt does not fit.
    """
    check_fits(prompt, runner.context)
    choose = sampling.chooser()
    token = choose(runner.forward(prompt, 0))
    for position in range(len(prompt), len(prompt) + max_new_tokens):
        if token in eos:
            return
        yield token
        if position + 1 == len(prompt) + max_new_tokens:
            return
        token = choose(runner.forward([token], position))


class KeptPrefix:
    """Runner that computes only what its cache does not hold yet.

    A sequence that begins as the one before goes on from there: in a conversation a turn costs its
    own tokens. `reused` counts the positions that were not computed again.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.name, self.artifact, self.context = runner.name, runner.artifact, runner.context
        self.file = runner.file
        self.reused = 0
        self._held: list[int] = []

    def forward(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of the last position, float32 [V], as the runner gives them."""
        start = position
        if position == 0:  # the logits of the last token are asked for, so it is computed
            pairs = zip(self._held, tokens[:-1], strict=False)
            start = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
            start = min(len(self._held), len(tokens) - 1) if start < 0 else start
            self.reused += start
        self._held = self._held[:start]  # also if the call is interrupted
        logits = self._runner.forward(tokens[start - position :], start)
        self._held += tokens[start - position :]
        return logits


class StopStrings:
    """Filter of pieces of text: it lets them pass up to the first of some strings.

    What may be the beginning of one is held back until it is known.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if not all(stop):
            raise UsageError("a stop string is empty", hint="give some text")
        self._stop, self._held = list(stop), ""
        self.found = False

    def step(self, piece: str) -> str:
        """Text that may be shown after `piece`. `found` says whether it is the last."""
        self._held += piece
        ends = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        self.found = bool(ends)
        keep = min(ends) if ends else len(self._held) - self._beginning()
        shown, self._held = self._held[:keep], self._held[keep:]
        return shown

    def rest(self) -> str:
        """Text that was held back, when no more comes."""
        return "" if self.found else self._held

    def _beginning(self) -> int:
        """Number of the last characters that a stop string may begin with."""
        longest = max((len(text) for text in self._stop), default=1) - 1
        return next(
            (n for n in range(longest, 0, -1) if self._held.endswith(self._beginnings(n))), 0
        )

    def _beginnings(self, n: int) -> tuple[str, ...]:
        return tuple(text[:n] for text in self._stop if len(text) > n)


@dataclass(frozen=True)
class Limits:
    """Where a generation ends: after so many tokens, or before one of some strings."""

    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            what = f"max_new_tokens must be a positive number, got {self.max_new_tokens}"
            raise UsageError(what)
        StopStrings(self.stop)


class TextStream(Iterator[str]):
    """The text of a generation in pieces of whole characters, each as soon as it is complete.

    The tokens are computed by `runner` as the pieces are asked for. The tokenizer is the bundle's;
    who has it already gives it. When the context fills before the limit, what was generated is kept
    and `stopped` of the result is "context".
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        prompt: Sequence[int],
        limits: Limits,
        sampling: Sampling,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        check_fits(prompt, runner.context)
        self.runner, self._prompt, self._sampling = runner, list(prompt), sampling
        self._limits, self._eos = limits, bundle.manifest.interface.eos_token_ids
        self._tokenizer = tokenizer or load_tokenizer(bundle)
        self.tokens: list[int] = []
        self._result: RunResult | None = None
        self._pieces = self._decode()

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def result(self) -> RunResult:
        """Tokens, text and times in milliseconds of the whole generation, which is brought to its
        end first. Raises RuntimeError for a generation that an error ended."""
        for _ in self:
            pass
        if self._result is None:
            raise RuntimeError("an error ended the generation: it has no result")
        return self._result

    def _decode(self) -> Iterator[str]:
        """Yields the pieces; the time that a reader takes over a piece is not counted."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(ids=self._prompt, skip_special_tokens=True)
        filter_ = StopStrings(self._limits.stop)
        # The last token needs no cache slot, because it is never fed back.
        room = self.runner.context - len(self._prompt) + 1
        limit = min(self._limits.max_new_tokens, max(room, 0))
        text = ""
        waited = 0.0
        begin = first = time.perf_counter()
        for token in generate(self.runner, self._prompt, limit, self._sampling, self._eos):
            if not self.tokens:
                first = time.perf_counter()
            self.tokens.append(token)
            if piece := filter_.step(stream.step(self._tokenizer, token) or ""):
                text += piece
                given = time.perf_counter()
                yield piece
                waited += time.perf_counter() - given
            if filter_.found:
                break
        end = time.perf_counter() - waited
        if rest := filter_.rest():
            yield rest
        self._result = RunResult(
            self._prompt,
            self.tokens,
            text + rest,
            "stop" if filter_.found else self._stopped(limit),
            (first - begin) * 1e3,
            (end - first) * 1e3,
        )

    def _stopped(self, limit: int) -> str:
        """Reason of the end, where there were at most `limit` tokens."""
        if len(self.tokens) < limit:
            return "eos"
        return "context" if limit < self._limits.max_new_tokens else "limit"

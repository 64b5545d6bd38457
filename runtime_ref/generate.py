"""Generation of text: tokenizer and chat template of a bundle, sampling, and the token loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Artifact, Bundle
from exporter.errors import BundleError, ContextError, UsageError

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
    """Result of a run. `stopped` says why it ended: eos, limit or context."""

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


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """Tokenizer that ships in the bundle. Raises BundleError."""
    from tokenizers import Tokenizer

    path = bundle.path / "tokenizer.json"
    if not path.is_file():
        raise BundleError(
            f"{bundle.path} has no tokenizer.json: the checkpoint had no tokenizer",
            hint="put its files beside the checkpoint's config.json and export again",
        )
    try:
        return Tokenizer.from_buffer(path.read_bytes())  # a path need not be UTF-8
    except Exception as error:  # the library raises bare Exception
        raise BundleError(f"{path} is not a tokenizer: {error}", hint="export again") from error


def encode_prompt(
    bundle: Bundle, prompt: str, *, chat: bool, tokenizer: Tokenizer | None = None
) -> list[int]:
    """Token ids of a prompt, with the special tokens that the tokenizer puts there.

    With `chat`, the prompt goes through the model's chat template. The tokenizer is the bundle's;
    who has it already gives it. Raises UsageError if there are none, ContextError if there are too
    many.
    """
    prompt = as_text(prompt)
    tokenizer = tokenizer or load_tokenizer(bundle)
    if chat:
        from runtime_ref.chat import render_chat

        ids = tokenizer.encode(render_chat(bundle, prompt), add_special_tokens=False).ids
    else:
        ids = tokenizer.encode(prompt).ids
    if not ids:
        raise UsageError("the prompt is empty", hint="give --prompt some text")
    vocab = bundle.manifest.interface.vocab_size
    if bad := [i for i in ids if i >= vocab]:
        what = f"the tokenizer gives id {bad[0]}, the model knows ids up to {vocab - 1}"
        raise BundleError(what, hint="use the model's own tokenizer")
    check_fits(ids, bundle.manifest.interface.context)
    return ids


def as_text(prompt: str) -> str:
    """The prompt as Unicode.

    Under an ASCII locale Python gives the bytes of an argument as surrogates: they are read as
    UTF-8. Raises UsageError where they are not.
    """
    try:
        return prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UsageError(
            "the prompt is not UTF-8 text",
            hint="save or type it as UTF-8, or run under LANG=C.UTF-8",
        ) from None


def check_fits(prompt: Sequence[int], context: int) -> None:
    """Checks that a prompt has no more tokens than the context. Raises ContextError."""
    if len(prompt) > context:
        raise ContextError(
            f"the prompt has {len(prompt)} tokens, the package was exported with a context of "
            f"{context}",
            hint="shorten the prompt, or export with a larger --context",
        )


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


class TextStream(Iterator[str]):
    """The text of a generation in pieces of whole characters, each as soon as it is complete.

    The tokens are computed as the pieces are asked for. The tokenizer is the bundle's; who has it
    already gives it. When the context fills before `max_new_tokens`, what was generated is kept and
    `stopped` of the result is "context".
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        check_fits(prompt, runner.context)
        self._runner, self._prompt, self._sampling = runner, list(prompt), sampling
        self._max_new_tokens, self._eos = max_new_tokens, bundle.manifest.interface.eos_token_ids
        self._tokenizer = tokenizer or load_tokenizer(bundle)
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
        # The last token needs no cache slot, because it is never fed back.
        room = self._runner.context - len(self._prompt) + 1
        limit = min(self._max_new_tokens, max(room, 0))
        tokens: list[int] = []
        text = ""
        waited = 0.0
        begin = first = time.perf_counter()
        for token in generate(self._runner, self._prompt, limit, self._sampling, self._eos):
            if not tokens:
                first = time.perf_counter()
            tokens.append(token)
            if piece := stream.step(self._tokenizer, token):
                text += piece
                given = time.perf_counter()
                yield piece
                waited += time.perf_counter() - given
        end = time.perf_counter() - waited
        stopped = "limit"
        if len(tokens) < limit:
            stopped = "eos"
        elif limit < self._max_new_tokens:
            stopped = "context"
        self._result = RunResult(
            self._prompt, tokens, text, stopped, (first - begin) * 1e3, (end - first) * 1e3
        )


def run(
    bundle: Bundle,
    runner: Runner,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    show: Callable[[str], None],
    tokenizer: Tokenizer | None = None,
) -> RunResult:
    """The result of a whole generation; `show` gets each piece of text as it is complete."""
    text = TextStream(bundle, runner, prompt, max_new_tokens, sampling, tokenizer)
    for piece in text:
        show(piece)
    return text.result

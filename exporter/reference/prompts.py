"""The prompts that a package must answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of the bundle in `folder`, or None if it has none."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    return Tokenizer.from_buffer(path.read_bytes()) if path.is_file() else None


def token_sequences(
    tokenizer: Tokenizer | None, vocab_size: int, texts: Sequence[str]
) -> tuple[list[str], list[list[int]]]:
    """Token ids of texts by the tokenizer that ships, with descriptions of their origin.

    They are fixed random ids where there is no tokenizer that fits the vocabulary.
    """
    if tokenizer is None:
        return ["random ids: the checkpoint has no tokenizer"], [random_tokens(vocab_size, 64)]
    sequences = [tokenizer.encode(text).ids for text in texts]
    if all(s and max(s) < vocab_size for s in sequences):
        return list(texts), sequences
    return ["random ids: the tokenizer gives ids the model does not have"], [
        random_tokens(vocab_size, 64)
    ]


# Parameters of a small model; for larger ones each answer takes seconds, so fewer are computed.
SMALL_MODEL = 50_000_000


SMALL_VOCABULARY = 32_768  # for larger ones each answer takes much space


# The tokens of the prompt that fills the context before which one is repeated. Those before cost
# the reference nothing: see `reference.model.repeat`.
LAST_TOKENS = 512


TEXTS = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park "
    "with her dog.",
    "The quick brown fox jumps over the lazy dog. In 1969, three people flew to the moon; two of "
    "them walked on it. "
    "Water boils at 100 degrees Celsius, and ice melts at 0. What do you think happens when the "
    "wind turns to the "
    "north?",
)


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt, and the number of greedy tokens that follow them.

    With 0 of them there are only the logits of the last position. The first `n_repeated` are one
    token again and again.
    """

    tokens: tuple[int, ...]
    new_tokens: int
    n_repeated: int = 0


def make_prompts(
    sequences: Sequence[Sequence[int]], context: int, parameters: int, vocab_size: int
) -> list[Prompt]:
    """Prompts of several lengths from token sequences, and one that fills the context.

    Shorter than the context by as many tokens as are generated, so every one fits.
    """
    new = new_tokens(context, parameters, vocab_size)
    room = context - new
    lengths = sorted({min(length, room) for length in (1, 7, 24) if room > 0})
    prompts = [
        Prompt(tuple(_cycle(sequences[i % len(sequences)], n)), new) for i, n in enumerate(lengths)
    ]
    return [*prompts, _context_prompt([t for s in sequences for t in s], context)]


def _context_prompt(tokens: Sequence[int], context: int) -> Prompt:
    """A prompt that fills the context: its first token repeated, and LAST_TOKENS that differ."""
    n_repeated = max(0, context - LAST_TOKENS)
    rest = _cycle(tokens, context - n_repeated)
    return Prompt((*rest[:1] * n_repeated, *rest), 0, n_repeated)


def new_tokens(context: int, parameters: int, vocab_size: int) -> int:
    """Number of greedy tokens that follow a prompt."""
    small = parameters <= SMALL_MODEL and vocab_size <= SMALL_VOCABULARY
    return max(1, min(16 if small else 4, context // 4))


def _cycle(tokens: Sequence[int], n: int) -> list[int]:
    return [tokens[i % len(tokens)] for i in range(n)]


def random_tokens(vocab_size: int, n: int) -> list[int]:
    """Fixed token ids for a model without a usable tokenizer."""
    tokens: list[int] = np.random.default_rng(0).integers(0, vocab_size, n).tolist()
    return tokens

"""The text on which the loss by quantization is measured, and its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import UsageError
from exporter.reference.prompts import random_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BUILT_IN = Path(__file__).parent / "loss.txt"
LOSS_POSITIONS = 1024  # that are measured, where the text has as many
WINDOW_TOKENS = 512  # of which each sees those before it
MOST_CHARACTERS = 100_000  # that are read: far more than are measured
FEWEST_CHARACTERS = 200


@dataclass(frozen=True)
class LossText:
    """The windows of a text, token ids of the same number each, and the name of the text."""

    name: str
    windows: list[list[int]]


def read_text(path: Path) -> str:
    """The first MOST_CHARACTERS of a text in UTF-8.

    Raises UsageError if it cannot be read or is too short to say anything.
    """
    hint = "give a text in UTF-8 of a page or more, such as the model has to do with"
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8: {error}"
        raise UsageError(f"the text for the loss, {path}: {reason}", hint=hint) from error
    if len(text.strip()) < FEWEST_CHARACTERS:
        what = f"{len(text.strip())} characters, expected {FEWEST_CHARACTERS} or more"
        raise UsageError(f"the text for the loss, {path}: {what}", hint=hint)
    return text


def loss_text(
    path: Path | None, tokenizer: Tokenizer | None, vocab_size: int, context: int
) -> LossText:
    """The windows of a text, of at most `context` tokens; None is the built-in text.

    Form feeds separate documents. The ids are random and fixed where there is no tokenizer that
    fits the vocabulary.
    """
    text, n_tokens = read_text(path or BUILT_IN), min(context, WINDOW_TOKENS)
    start, ids = _encode(text, tokenizer) if tokenizer else ([], [])
    if len(ids) > 1 and max(*start, *ids) < vocab_size:
        name = path.name if path else "the built-in text"
        return LossText(name, cut_windows(ids, start, n_tokens))
    ids = random_tokens(vocab_size, LOSS_POSITIONS)
    return LossText("random ids", cut_windows(ids, [], n_tokens))


def _encode(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before a text, and all that follow these."""
    start = tokenizer.encode("").ids
    documents = [tokenizer.encode(document.strip("\n")).ids for document in text.split("\f")]
    return start, [token for ids in documents for token in ids][len(start) :]


def cut_windows(ids: Sequence[int], start: Sequence[int], n_tokens: int) -> list[list[int]]:
    """Windows of `n_tokens` ids that come to LOSS_POSITIONS, evenly apart, each after `start`.

    They do not overlap. Where there are fewer ids, all are in one of the windows.
    """
    n = n_tokens - len(start)
    count = min(-(-LOSS_POSITIONS // n_tokens), -(-len(ids) // n))
    n = min(n, len(ids) // count)
    step = (len(ids) - n) / max(1, count - 1)
    begins = [int(i * step) for i in range(count)]
    return [[*start, *ids[begin : begin + n]] for begin in begins]

"""A comparison: several models against one original, on a text, by the size of their weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporter.evaluation.evaluate import Evaluator
from exporter.evaluation.language_model import LanguageModel, ModelFacts
from exporter.evaluation.running_text import TextScore


@dataclass(frozen=True)
class Compared:
    """A model and its score."""

    model: ModelFacts
    score: TextScore


@dataclass(frozen=True)
class Comparison:
    """Scores on a text of the original and of others, the others as they were given."""

    file: str
    window: int
    n_windows: int
    n_tokens: int
    original: Compared
    others: list[Compared]
    n_resumed: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain values."""
        return asdict(self)


def compare(
    original: LanguageModel, others: Sequence[LanguageModel], evaluator: Evaluator
) -> Comparison:
    """Scores of models on the text of an evaluator. Raises TinyQMoEError."""
    begin = time.monotonic()
    models = [original, *others]
    text = evaluator.read_text(models)
    scores = evaluator.score(text, original, others)
    first, *rest = (Compared(m.facts, s) for m, s in zip(models, scores, strict=True))
    return Comparison(
        file=text.name,
        window=text.window,
        n_windows=len(text.windows),
        n_tokens=text.n_tokens,
        original=first,
        others=rest,
        n_resumed=evaluator.journal.n_resumed,
        seconds=time.monotonic() - begin,
    )

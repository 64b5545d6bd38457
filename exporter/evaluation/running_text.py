"""Perplexity on a running text, and how far models are from the original there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import DataError
from exporter.evaluation.journal import Journal, key_of
from exporter.evaluation.language_model import LanguageModel, Request, Row, log_probabilities
from exporter.evaluation.statistics import Estimate, exponential, ratio
from exporter.evaluation.text_encoder import TextEncoder

VERSION = 1  # of how a text is divided and scored
DEFAULT_WINDOW = 512  # tokens


@dataclass(frozen=True)
class RunningText:
    """A text in windows of tokens, each token scored once.

    name: of the file. n_words: words of what is scored, as lm-evaluation-harness counts them for
    wikitext: pieces between runs of white space.
    """

    name: str
    window: int
    windows: list[Request]
    n_words: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are scored."""
        return sum(w.n_scored for w in self.windows)


@dataclass(frozen=True)
class Divergence:
    """Distance from the original model: KL(original || model) in nats, over all positions.

    top1: share of positions where both have the same best token.
    """

    kl_mean: Estimate
    kl_median: float
    kl_99: float
    kl_999: float
    top1: Estimate


@dataclass(frozen=True)
class TextScore:
    """Perplexity of a model for each token and each word; divergence is None for the original."""

    perplexity: Estimate
    word_perplexity: Estimate
    divergence: Divergence | None


def read_text(file: Path, encoder: TextEncoder, window: int, limit: int | None) -> RunningText:
    """The first `limit` windows of a UTF-8 text, or all of them.

    Windows are those of lm-evaluation-harness: disjoint, each begins with the last token of the one
    before, the first with the prefix token; the last one reaches back as far as it has room. A
    tokenizer without such a token leaves the first token unscored. Raises DataError.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}", hint="save it as UTF-8") from None
    except OSError as error:
        what = f"{file} cannot be read: {error.strerror}"
        raise DataError(what, hint="give --text the path of a text") from None
    ids, ends = encoder.running_ids(text)
    if encoder.prefix is not None:
        ids, ends = [encoder.prefix, *ids], [0, *ends]
    if len(ids) < 2:
        what = f"{file} has no token to score"
        raise DataError(what, hint="give --text a file with some text")
    windows = list(_windows(ids, window))[:limit]
    n_read = sum(w.n_scored for w in windows)
    return RunningText(file.name, window, windows, len(re.split(r"\s+", text[: ends[n_read]])))


def _windows(ids: Sequence[int], window: int) -> Iterator[Request]:
    """Requests that score every id but the first once, `window` at a time."""
    for begin in range(1, len(ids), window):
        end = min(begin + window, len(ids))
        yield Request(tuple(ids[max(0, end - window - 1) : end]), end - begin)


def score(
    text: RunningText,
    original: LanguageModel,
    others: Sequence[LanguageModel],
    journal: Journal,
    progress: Callable[[int, int], None],
) -> list[TextScore]:
    """Scores of the original and of other models of its vocabulary, in that order.

    `progress` is told how many windows are done, of how many.
    """
    models = [original, *others]
    found = _measure(text.windows, models, journal, progress)
    counts = [w.n_scored for w in text.windows]
    return [_score(i, found, counts, text.n_words) for i in range(len(models))]


def _score(
    number: int, found: Sequence[dict[str, Any]], counts: Sequence[int], n_words: int
) -> TextScore:
    """Score of model `number` from what was measured in each window."""
    each_token = ratio([f["loss"][number] for f in found], counts)
    each_word = _times(each_token, sum(counts) / n_words)
    divergence = None
    if number:
        kl = [f["kl"][number - 1] for f in found]
        median, most, worst = np.quantile(np.concatenate(kl), (0.5, 0.99, 0.999)).tolist()
        top1 = ratio([f["top1"][number - 1] for f in found], counts)
        divergence = Divergence(ratio([sum(k) for k in kl], counts), median, most, worst, top1)
    return TextScore(exponential(each_token), exponential(each_word), divergence)


def _times(of: Estimate, factor: float) -> Estimate:
    values = (of.value, of.stderr, of.low, of.high)
    value, *rest = (None if v is None else v * factor for v in values)
    assert value is not None
    return Estimate(value, *rest)


def _measure(
    windows: Sequence[Request],
    models: Sequence[LanguageModel],
    journal: Journal,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """What `_window` finds in each window, of which the journal may have some."""
    key = key_of("text", VERSION, [m.facts.identity for m in models])
    # A window is known by its tokens, so a text may grow.
    items = [key_of(w.tokens, w.n_scored) for w in windows]
    found = {item: done for item in items if (done := journal.get(key, item))}
    rest = [(w, item) for w, item in zip(windows, items, strict=True) if item not in found]
    n_done = len(windows) - len(rest)
    progress(n_done, len(windows))
    streams = [model.logits([w for w, _ in rest]) for model in models]
    for window, item in rest:
        found[item] = _window(window, streams)
        journal.put(key, item, found[item])
        n_done += 1
        progress(n_done, len(windows))
    return [found[item] for item in items]


def _window(window: Request, streams: Sequence[Iterator[Row]]) -> dict[str, Any]:
    """Measures of one window, from the next rows of each model's logits.

    loss: of each model, the sum of -log p over the tokens. kl, top1: of each model but the first,
    KL(first || model) at each position, and the number of positions with the same best token.
    """
    loss = [0.0] * len(streams)
    kl: list[list[float]] = [[] for _ in streams[1:]]
    top1 = [0] * len(kl)
    for token in window.scored:
        rows = [next(stream) for stream in streams]
        p, *others = logs = [log_probabilities(row) for row in rows]
        loss = [total - float(log[token]) for total, log in zip(loss, logs, strict=True)]
        probabilities = np.exp(p)
        for i, q in enumerate(others):
            kl[i].append(float(probabilities @ (p - q)))
            top1[i] += int(rows[0].argmax() == rows[i + 1].argmax())
    return {"loss": loss, "kl": kl, "top1": top1}

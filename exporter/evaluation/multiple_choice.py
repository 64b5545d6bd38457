"""Accuracy on multiple-choice tasks, scored as lm-evaluation-harness does.

A choice's score is the log-likelihood of its text after the question. acc takes the choice with the
highest score, acc_norm the one with the highest score per character.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from exporter.chat_template import ChatTemplate
from exporter.errors import DataError
from exporter.evaluation.journal import Journal, key_of
from exporter.evaluation.language_model import LanguageModel, Request, log_probabilities
from exporter.evaluation.questions import Question
from exporter.evaluation.statistics import Estimate, share
from exporter.evaluation.text_encoder import TextEncoder, rendered

BETWEEN = "\n\n"  # examples
RENDERED_AT_ONCE = 500  # questions, in one child process


@dataclass(frozen=True)
class Answers:
    """The scores of the choices of one question; is_cut as in `Asked`."""

    question: Question
    log_likelihoods: list[float]
    is_cut: bool

    @property
    def right(self) -> bool:
        """Whether the right choice has the highest score, of equals the first."""
        return int(np.argmax(self.log_likelihoods)) == self.question.gold

    @property
    def right_by_length(self) -> bool:
        """Whether the right choice has the highest score per character."""
        lengths = [float(len(choice)) for choice in self.question.choices]
        return int(np.argmax(np.array(self.log_likelihoods) / lengths)) == self.question.gold


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on n questions; acc_norm is None where the task does not have it."""

    n: int
    acc: Estimate
    acc_norm: Estimate | None


@dataclass(frozen=True)
class Flips:
    """How answers changed against the original: share of questions whose verdict is another one.

    Their number says more than the change of acc, in which gains and losses cancel (arXiv
    2407.09141).
    """

    flips: Estimate
    lost: int
    gained: int


@dataclass(frozen=True)
class Asked:
    """A question as requests, one for each choice. is_cut: whether one lost tokens on the left."""

    question: Question
    requests: list[Request]
    is_cut: bool


@dataclass(frozen=True)
class Prompts:
    """How questions become token sequences.

    context: most tokens of one; what is longer loses tokens on the left.
    """

    encoder: TextEncoder
    template: ChatTemplate | None
    context: int

    def asked(self, questions: Sequence[Question]) -> Iterator[Asked]:
        """Questions as requests.

        Raises DataError for a choice that does not fit, UsageError for a template that does not
        render a question.
        """
        for begin in range(0, len(questions), RENDERED_AT_ONCE):
            some = questions[begin : begin + RENDERED_AT_ONCE]
            texts = prompt_texts(some, self.template)
            yield from (self._asked(q, *text) for q, text in zip(some, texts, strict=True))

    def _asked(self, question: Question, text: str, before: str) -> Asked:
        pairs = [self.encoder.pair(text, before + choice) for choice in question.choices]
        for choice, (_, scored) in zip(question.choices, pairs, strict=True):
            if not 0 < len(scored) <= self.context:
                what = f"question {question.id}: {choice[:40]!r} adds {len(scored)} tokens"
                hint = f"a choice adds 1 to {self.context} tokens: mend the data, or use a model "
                hint += "whose tokenizer and context take them"
                raise DataError(what, hint=hint)
        most = self.context + 1  # the last token is scored and not fed
        requests = [Request(tuple((g + s)[-most:]), len(s)) for g, s in pairs]
        return Asked(question, requests, any(len(g + s) > most for g, s in pairs))


def prompt_texts(
    questions: Sequence[Question], template: ChatTemplate | None
) -> list[tuple[str, str]]:
    """The text before the choices of each question, and what stands before each choice.

    In a chat the description is the system prompt, and examples and question are one message.
    """
    asked = [
        "".join(f"{e.question} {e.answer}{BETWEEN}" for e in q.examples) + q.text for q in questions
    ]
    if template is None:
        return [(q.description + text, " ") for q, text in zip(questions, asked, strict=True)]
    conversations = [
        [
            *([{"role": "system", "content": q.description}] if q.description else []),
            {"role": "user", "content": text},
        ]
        for q, text in zip(questions, asked, strict=True)
    ]
    return [(text, "") for text in rendered(template, conversations)]


def answer(
    model: LanguageModel,
    questions: Sequence[Question],
    prompts: Prompts,
    recorded: tuple[Journal, str],
    progress: Callable[[int, int], None],
) -> list[Answers]:
    """The answers of a model to questions; `recorded` is a journal and the key of this task.

    `progress` is told how many are done, of how many.
    """
    journal, key = recorded
    items = {q.id: f"{q.id} {key_of(asdict(q))}" for q in questions}
    done = {i: found for i, item in items.items() if (found := journal.get(key, item))}
    rest = [q for q in questions if q.id not in done]
    progress(len(done), len(questions))
    for answers in _answers(model, rest, prompts):
        i = answers.question.id
        done[i] = {"scores": answers.log_likelihoods, "is_cut": answers.is_cut}
        journal.put(key, items[i], done[i])
        progress(len(done), len(questions))
    return [Answers(q, done[q.id]["scores"], done[q.id]["is_cut"]) for q in questions]


def _answers(
    model: LanguageModel, questions: Sequence[Question], prompts: Prompts
) -> Iterator[Answers]:
    """Answers in the order of the questions, each as soon as it is computed."""
    ours, models = itertools.tee(prompts.asked(questions))
    rows = model.logits(request for asked in models for request in asked.requests)
    for asked in ours:
        scores = [
            sum(float(log_probabilities(next(rows))[token]) for token in request.scored)
            for request in asked.requests
        ]
        yield Answers(asked.question, scores, asked.is_cut)


def accuracy(answers: Sequence[Answers], *, has_norm: bool) -> Accuracy:
    """Accuracy over all answers, each question counted once."""
    norm = share([a.right_by_length for a in answers]) if has_norm else None
    return Accuracy(len(answers), share([a.right for a in answers]), norm)


def flips(answers: Sequence[Answers], originals: Sequence[Answers]) -> Flips:
    """Changes of `right` against the answers of the original to the same questions."""
    pairs = [(a.right, o.right) for a, o in zip(answers, originals, strict=True)]
    return Flips(
        share([a != o for a, o in pairs]),
        lost=sum(o and not a for a, o in pairs),
        gained=sum(a and not o for a, o in pairs),
    )

"""An evaluation: a model on tasks and on a text, alone or against the original.

It asks a `LanguageModel` for logits and knows nothing of how they are computed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from exporter.errors import DataError, UsageError
from exporter.evaluation import running_text
from exporter.evaluation.journal import Journal, key_of
from exporter.evaluation.language_model import LanguageModel, ModelFacts
from exporter.evaluation.multiple_choice import (
    Accuracy,
    Answers,
    Flips,
    Prompts,
    accuracy,
    answer,
    flips,
)
from exporter.evaluation.questions import Question, Task, find_tasks, limited
from exporter.evaluation.running_text import DEFAULT_WINDOW, RunningText, TextScore, read_text
from exporter.evaluation.text_encoder import TextEncoder
from exporter.progress import Progress


@dataclass(frozen=True)
class EvaluationConfig:
    """What a model is evaluated on.

    tasks: names, whose files lie in the folder `data`. text: a file for perplexity and KL. n_shots:
    examples before each question, by default as many as the task has. chat: whether questions go
    through the chat template; chat_template names another than the default one. window: tokens of
    the text that are scored in one piece. limit: number of questions of each task and subject, and
    of windows. Raises UsageError.
    """

    tasks: tuple[str, ...] = ()
    data: Path | None = None
    text: Path | None = None
    n_shots: int | None = None
    chat: bool = False
    chat_template: str | None = None
    window: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        find_tasks(self.tasks)
        problems = []
        if not self.tasks and self.text is None:
            problems.append("neither a task nor a text is given")
        if self.tasks and self.data is None:
            problems.append("the tasks need the folder of their data")
        if self.n_shots is not None and self.n_shots < 0:
            problems.append(f"shots must be 0 or a positive number, got {self.n_shots}")
        for name, value in (("window", self.window), ("limit", self.limit)):
            if value is not None and value < 1:
                problems.append(f"{name} must be a positive number, got {value}")
        if problems:
            hint = "give --task NAME --data FOLDER, or --text FILE, or both"
            raise UsageError("wrong options of an evaluation", problems=problems, hint=hint)


@dataclass(frozen=True)
class TaskResult:
    """Accuracy on one task, for each subject too where it has several.

    n_cut: questions that lost tokens on the left, because they do not fit the context. original,
    flips: against the original, where it is given.
    """

    task: str
    version: int
    n_shots: int
    chat: bool
    n_cut: int
    total: Accuracy
    subjects: dict[str, Accuracy]
    original: Accuracy | None
    flips: Flips | None


@dataclass(frozen=True)
class TextResult:
    """Perplexity and KL on a text, in windows of so many tokens."""

    file: str
    version: int
    window: int
    n_windows: int
    n_tokens: int
    n_words: int
    score: TextScore
    original: TextScore | None


@dataclass(frozen=True)
class Evaluation:
    """All results of a model. n_resumed: items that were taken from a journal."""

    model: ModelFacts
    original: ModelFacts | None
    tasks: list[TaskResult]
    text: TextResult | None
    n_resumed: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The results as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluator:
    """What an evaluation takes besides models: the tokenizer of all of them, and where results go.

    `progress` gets (stage, done, total). Methods raise TinyQMoEError.
    """

    encoder: TextEncoder
    config: EvaluationConfig
    journal: Journal
    progress: Progress

    def evaluate(self, model: LanguageModel, original: LanguageModel | None) -> Evaluation:
        """Results of a model, compared with the original if there is one."""
        begin = time.monotonic()
        models = [model] if original is None else [model, original]
        tasks = [(task, self._questions(task)) for task in find_tasks(self.config.tasks)]
        text = self.read_text(models) if self.config.text else None
        results = [self._task(task, questions, models) for task, questions in tasks]
        return Evaluation(
            model=model.facts,
            original=None if original is None else original.facts,
            tasks=results,
            text=None if text is None else self._text(text, model, original),
            n_resumed=self.journal.n_resumed,
            seconds=time.monotonic() - begin,
        )

    def read_text(self, models: Sequence[LanguageModel]) -> RunningText:
        """The text in windows that all models take; by default of DEFAULT_WINDOW tokens at most."""
        assert self.config.text is not None
        most = min(model.facts.context for model in models)
        window = self.config.window or min(DEFAULT_WINDOW, most)
        if window > most:
            what = f"a window of {window} tokens does not fit the context of {most}"
            raise UsageError(
                what, hint=f"give --window {most} or less, or export with a larger one"
            )
        return read_text(self.config.text, self.encoder, window, self.config.limit)

    def score(
        self, text: RunningText, original: LanguageModel, others: Sequence[LanguageModel]
    ) -> list[TextScore]:
        """Scores of the original and of others on a text, in that order."""
        names = " and ".join(m.facts.name for m in (original, *others))
        return running_text.score(
            text, original, others, self.journal, partial(self.progress, f"{text.name} on {names}")
        )

    def _questions(self, task: Task) -> list[Question]:
        """Questions of a task, read before any model computes."""
        config = self.config
        assert config.data is not None
        if not config.data.is_dir():
            hint = "give --data the folder with the files of the tasks; docs/eval.md has its layout"
            raise DataError(f"there is no folder {config.data}", hint=hint)
        return limited(task.read(config.data, self._n_shots(task)), config.limit)

    def _n_shots(self, task: Task) -> int:
        return task.n_shots if self.config.n_shots is None else self.config.n_shots

    def _task(
        self, task: Task, questions: Sequence[Question], models: Sequence[LanguageModel]
    ) -> TaskResult:
        """Result of the first model on a task, against the second if there is one."""
        chat = self.config.chat or self.config.chat_template is not None
        template = self.encoder.template(self.config.chat_template) if chat else None
        context = min(model.facts.context for model in models)
        prompts = Prompts(self.encoder, template, context)
        settings = (task.name, task.version, context, self.encoder.identity)
        form = template.text if template else None

        def answers(model: LanguageModel) -> list[Answers]:
            key = key_of(*settings, form, model.facts.identity)
            stage = partial(self.progress, f"{task.name} on {model.facts.name}")
            return answer(model, questions, prompts, (self.journal, key), stage)

        ours, *originals = [answers(model) for model in models]
        summary = partial(accuracy, has_norm=task.has_norm)
        subjects: dict[str, list[Answers]] = {}
        for one in ours:
            subjects.setdefault(one.question.subject, []).append(one)
        return TaskResult(
            task=task.name,
            version=task.version,
            n_shots=self._n_shots(task),
            chat=chat,
            n_cut=sum(a.is_cut for a in ours),
            total=summary(ours),
            subjects={name: summary(some) for name, some in subjects.items() if name},
            original=summary(originals[0]) if originals else None,
            flips=flips(ours, originals[0]) if originals else None,
        )

    def _text(
        self, text: RunningText, model: LanguageModel, original: LanguageModel | None
    ) -> TextResult:
        first, others = (model, []) if original is None else (original, [model])
        scores = self.score(text, first, others)
        return TextResult(
            file=text.name,
            version=running_text.VERSION,
            window=text.window,
            n_windows=len(text.windows),
            n_tokens=text.n_tokens,
            n_words=text.n_words,
            score=scores[-1],
            original=None if original is None else scores[0],
        )

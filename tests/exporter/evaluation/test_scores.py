"""Scores of tasks and texts against slow computations with transformers, and going on from a
journal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.errors import DataError
from exporter.evaluation.evaluate import EvaluationConfig, Evaluator
from exporter.evaluation.journal import Journal
from exporter.evaluation.language_model import LanguageModel, Request, Row
from exporter.evaluation.multiple_choice import Prompts, prompt_texts
from exporter.evaluation.questions import TASKS, Question
from exporter.evaluation.running_text import read_text
from exporter.evaluation.text_encoder import TextEncoder
from tests.exporter.evaluation.test_questions import DEV, TEST, write_lines, write_mmlu
from tests.support.bundles import TEXT
from tests.support.bundles import no_progress as silent
from tests.support.checkpoints import write_llama
from tinyqmoe import evaluate
from tinyqmoe.evaluating import open_model

VOCAB, BOS = 258, 256
ROWS = [
    {"query": "The cat sat on", "choices": ["the mat", "a river", "other dogs there"], "gold": 0},
    {"query": "The dog ran to ", "choices": ["the forest", "the river"], "gold": 1},
    {"query": "In the evening", "choices": ["rain", "children sang", "the sea", "fire"], "gold": 1},
    {"query": "", "choices": ["Everything", "Nothing"], "gold": 0},
    {"query": "Nobody  ", "choices": ["wanted to leave", "left"], "gold": 1},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("arc_easy", "hellaswag"):
        write_lines(folder, name, *ROWS)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return write_mmlu(folder, "maths", DEV * 3, TEST)


def write_model(folder: Path, **options: Any) -> Path:
    write_llama(folder, vocab_size=VOCAB, max_position_embeddings=2048, tokenizer=True, **options)
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens are bytes, with room for long prompts."""
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the same tokenizer."""
    return write_model(tmp_path_factory.mktemp("other") / "other", seed=5, hidden_size=32)


class Slow:
    """lm-evaluation-harness by hand: one sequence at a time, in transformers."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    @torch.inference_mode()
    def log_probabilities(self, ids: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits.double().log_softmax(-1)

    def log_likelihood(self, context: str, continuation: str) -> float:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        if context:
            special = not context.startswith("<s>")
            given = self.tokenizer.encode(context, add_special_tokens=special)
            ids = self.tokenizer.encode(context + continuation, add_special_tokens=special)
        else:
            given = [self.tokenizer.bos_token_id]
            ids = given + self.tokenizer.encode(continuation, add_special_tokens=False)
        rows = self.log_probabilities(ids)
        return sum(float(rows[i - 1, ids[i]]) for i in range(len(given), len(ids)))


def expected_scores(slow: Slow, question: Question, chat: bool) -> list[float]:
    ((text, before),) = prompt_texts([question], None)
    if chat:
        shots = text[len(question.description) :]
        system = [{"role": "system", "content": question.description}]
        messages = [*(system if question.description else []), {"role": "user", "content": shots}]
        text, before = (
            slow.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            ),
            "",
        )
    return [slow.log_likelihood(text, before + choice) for choice in question.choices]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ["arc_easy", "hellaswag", "mmlu"])
def test_accuracy_is_that_of_a_slow_computation(
    name: str, chat: bool, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    slow, task = Slow(checkpoint), TASKS[name]
    questions = task.read(data, task.n_shots)
    expected = {q.id: expected_scores(slow, q, chat) for q in questions}
    journal = tmp_path / "journal"
    found = evaluate(checkpoint, tasks=[name], data=data, chat=chat, journal=journal)
    (result,) = found.tasks
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    scores = {line["item"].split()[0]: line["result"]["scores"] for line in lines}
    assert scores.keys() == {q.id for q in questions}
    for i, wanted in expected.items():
        assert scores[i] == pytest.approx(wanted, abs=1e-4)
    right = [max(range(len(s)), key=s.__getitem__) == q.gold for q, s in _pairs(questions, scores)]
    by_length = [
        int(np.argmax([x / len(c) for x, c in zip(s, q.choices, strict=True)])) == q.gold
        for q, s in _pairs(questions, scores)
    ]
    assert result.total.acc.value == pytest.approx(sum(right) / len(right))
    norm = result.total.acc_norm
    assert (norm is None) == (name == "mmlu")
    assert norm is None or norm.value == pytest.approx(sum(by_length) / len(by_length))
    assert (result.version, result.n_shots, result.chat) == (1, task.n_shots, chat)


def _pairs(questions: list[Question], scores: dict[str, list[float]]) -> Iterator[Any]:
    return ((q, scores[q.id]) for q in questions)


def test_the_empty_query_is_scored_after_the_prefix_token(checkpoint: Path, data: Path) -> None:
    encoder = TextEncoder(checkpoint, VOCAB)
    question = TASKS["hellaswag"].read(data, 0)[3]
    given, scored = encoder.pair("", " Everything")
    assert given == [BOS]
    (asked,) = Prompts(encoder, None, 40).asked([question])
    assert asked.requests[0] == Request(tuple(given + scored), len(scored))


def test_what_does_not_fit_loses_tokens_on_the_left(checkpoint: Path, data: Path) -> None:
    encoder = TextEncoder(checkpoint, VOCAB)
    question = TASKS["mmlu"].read(data, 5)[0]
    whole, cut = (next(Prompts(encoder, None, n).asked([question])) for n in (2000, 30))
    assert (whole.is_cut, cut.is_cut) == (False, True)
    assert [r.tokens[-31:] for r in whole.requests] == [r.tokens for r in cut.requests]
    with pytest.raises(DataError, match="question maths/0: 'A' adds 2 tokens"):
        next(Prompts(encoder, None, 0).asked([question]))


def test_flips_count_what_cancels_in_accuracy(checkpoint: Path, other: Path, data: Path) -> None:
    found = evaluate(checkpoint, against=other, tasks=["hellaswag"], data=data)
    (result,) = found.tasks
    alone = [evaluate(m, tasks=["hellaswag"], data=data).tasks[0] for m in (checkpoint, other)]
    assert result.flips is not None
    assert result.original == alone[1].total
    assert result.total == alone[0].total
    changed = result.flips.gained - result.flips.lost
    assert changed == round(5 * (result.total.acc.value - alone[1].total.acc.value))
    assert result.flips.flips.value == (result.flips.gained + result.flips.lost) / 5
    same = evaluate(checkpoint, against=checkpoint, tasks=["hellaswag"], data=data).tasks[0]
    assert same.flips is not None
    assert (same.flips.gained, same.flips.lost) == (0, 0)


# ---- a running text


def test_windows_are_those_of_the_harness(checkpoint: Path, data: Path) -> None:
    """Disjoint; each begins with the last token of the one before, the last one reaches back."""
    encoder = TextEncoder(checkpoint, VOCAB)
    text = read_text(data / "text.txt", encoder, 40, None)
    ids = [BOS, *encoder.running_ids(TEXT)[0]]
    n, rest = divmod(len(ids) - 1, 40)
    assert rest > 0
    for i, window in enumerate(text.windows[:-1]):
        assert window == Request(tuple(ids[40 * i : 40 * i + 41]), 40)
    assert text.windows[-1] == Request(tuple(ids[-41:]), rest)
    assert (text.n_tokens, len(text.windows)) == (len(ids) - 1, n + 1)
    assert text.n_words == len(TEXT.split())


def test_words_are_those_of_the_windows_that_are_read(checkpoint: Path, data: Path) -> None:
    encoder = TextEncoder(checkpoint, VOCAB)
    text = read_text(data / "text.txt", encoder, 40, 2)
    shown = encoder._tokenizer.decode(encoder.running_ids(TEXT)[0][:80])
    assert TEXT.startswith(shown)
    assert text.n_words == len(re.split(r"\s+", shown))


def test_perplexity_and_kl_are_those_of_a_slow_computation(
    checkpoint: Path, other: Path, data: Path
) -> None:
    found = evaluate(checkpoint, against=other, text=data / "text.txt", window=32).text
    assert found is not None
    ours, theirs = Slow(checkpoint), Slow(other)
    losses, kls, same = [], [], []
    for window in read_text(data / "text.txt", TextEncoder(checkpoint, VOCAB), 32, None).windows:
        scored = list(range(window.n_given, len(window.tokens)))
        p, q = (m.log_probabilities(list(window.tokens))[:-1] for m in (theirs, ours))
        p, q = p[-len(scored) :], q[-len(scored) :]
        following = torch.tensor(window.scored)[:, None]
        losses += (-q.gather(1, following)).flatten().tolist()
        kls += F.kl_div(q, p, log_target=True, reduction="none").sum(-1).tolist()
        same += (p.argmax(-1) == q.argmax(-1)).tolist()
    score, d = found.score, found.score.divergence
    assert score.perplexity.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    words = math.exp(sum(losses) / len(TEXT.split()))
    assert score.word_perplexity.value == pytest.approx(words, rel=1e-3)
    assert d is not None
    assert d.kl_mean.value == pytest.approx(np.mean(kls), rel=1e-3)
    wanted = np.quantile(kls, (0.5, 0.99, 0.999))
    assert (d.kl_median, d.kl_99, d.kl_999) == pytest.approx(wanted, rel=1e-3)
    assert d.top1.value == pytest.approx(np.mean(same))
    assert found.original is not None
    assert found.original.divergence is None
    assert found.n_tokens == len(losses)


def test_texts_that_cannot_be_scored(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    encoder, file = TextEncoder(checkpoint, VOCAB), tmp_path / "t"
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_text(file, encoder, 8, None)
    file.write_text("")
    with pytest.raises(DataError, match="has no token to score"):
        read_text(file, encoder, 8, None)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_text(file, encoder, 8, None)


def test_tokenizers_that_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gives id \d+, the model knows 9 tokens"):
        TextEncoder(checkpoint, 9).ids("the cat")
    with pytest.raises(DataError, match="the model has no tokenizer"):
        TextEncoder(tmp_path, VOCAB)
    (tmp_path / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    bare = TextEncoder(tmp_path, VOCAB)
    assert bare.prefix is None
    with pytest.raises(DataError, match="no token to stand for an empty query"):
        bare.pair("", " a")


# ---- the journal


class Failing:
    """A model that ends with an error after so many rows, and counts the requests it took."""

    def __init__(self, model: LanguageModel, rows: int) -> None:
        self.facts, self.model, self.rows, self.asked = model.facts, model, rows, 0

    def logits(self, requests: Iterable[Request]) -> Iterator[Row]:
        def counted() -> Iterator[Request]:
            for request in requests:
                self.asked += 1
                yield request

        for i, row in enumerate(self.model.logits(counted())):
            if i == self.rows:
                raise KeyboardInterrupt
            yield row


def run(model: LanguageModel, config: EvaluationConfig, texts: Path, journal: Journal) -> Any:
    found = Evaluator(TextEncoder(texts, VOCAB), config, journal, silent).evaluate(model, None)
    journal.close()
    return found


def test_an_evaluation_goes_on_from_what_was_finished(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    text_only = EvaluationConfig(text=data / "text.txt", window=16, limit=4)
    config = replace(text_only, tasks=("hellaswag",), data=data)
    file = tmp_path / "journal"
    with open_model(checkpoint) as opened:
        whole = run(opened.model, config, opened.texts, Journal(None, resume=False))
        failing = Failing(opened.model, rows=24)  # a window and a half
        with pytest.raises(KeyboardInterrupt):
            run(failing, text_only, opened.texts, Journal(file, resume=False))
        with file.open("a") as cut:
            cut.write('{"key": "cut sho')
        rest = Failing(opened.model, rows=10**6)
        again = run(rest, config, opened.texts, Journal(file, resume=True))
        assert (again.n_resumed, whole.n_resumed) == (1, 0)
        assert rest.asked == (3 + 2 + 4 + 2) + 3, "all choices, and three windows of four"
        assert again.tasks == whole.tasks
        assert again.text == whole.text
        third = Failing(opened.model, rows=0)
        done = run(third, config, opened.texts, Journal(file, resume=True))
        assert (third.asked, done.n_resumed) == (0, 8)
        assert done.tasks == whole.tasks


def test_other_questions_and_models_are_not_taken_from_a_journal(
    checkpoint: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    options: dict[str, Any] = {"tasks": ["hellaswag"], "journal": journal, "resume": True}
    assert evaluate(checkpoint, data=data, **options).n_resumed == 0
    assert evaluate(checkpoint, data=data, **options).n_resumed == 5
    assert evaluate(other, data=data, **options).n_resumed == 0
    assert evaluate(checkpoint, data=data, chat=True, **options).n_resumed == 0
    changed = write_lines(tmp_path / "data", "hellaswag", ROWS[0], {**ROWS[1], "gold": 0})
    assert evaluate(checkpoint, data=changed, **options).n_resumed == 1
    assert evaluate(checkpoint, data=data, **options | {"resume": False}).n_resumed == 0


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("my notes\n")
    with pytest.raises(DataError, match=r"line 1 of .*notes is not of a journal"):
        Journal(file, resume=True)
    assert file.read_text() == "my notes\n"


def test_an_evaluation_that_is_refused_leaves_the_journal(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    evaluate(checkpoint, tasks=["hellaswag"], data=data, journal=journal)
    before = journal.read_bytes()
    with pytest.raises(DataError, match="there is no file"):
        evaluate(checkpoint, tasks=["arc_challenge"], data=data, journal=journal)
    assert journal.read_bytes() == before

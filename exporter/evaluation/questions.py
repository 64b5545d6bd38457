"""Multiple-choice questions, read from files as they come from their data sets."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import DataError, UsageError

LETTERS = ("A", "B", "C", "D")
MMLU_COLUMNS = ["question", *(f"choice{i}" for i in range(4)), "answer"]


@dataclass(frozen=True)
class Example:
    """A question that is answered, as it stands in a prompt."""

    question: str
    answer: str


@dataclass(frozen=True)
class Question:
    """A question: what stands before it, its choices, and the number of the right one.

    id: within the task. subject: of several in one task, or empty.
    """

    id: str
    subject: str
    description: str
    examples: tuple[Example, ...]
    text: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """A task of lm-evaluation-harness, with the number of its version there.

    n_shots: examples before each question by default. has_norm: whether acc_norm is one of its
    metrics. read: questions of a folder with so many examples.
    """

    name: str
    version: int
    n_shots: int
    has_norm: bool
    read: Callable[[Path, int], list[Question]]


def _lines_task(name: str, end: str) -> Task:
    """A task in NAME.jsonl, with NAME_train.jsonl for examples; `end` follows each query."""

    def read(folder: Path, n_shots: int) -> list[Question]:
        examples: tuple[Example, ...] = ()
        if n_shots:
            train = _read_lines(folder / f"{name}_train.jsonl")
            _check_shots(folder / f"{name}_train.jsonl", len(train), n_shots)
            examples = tuple(
                Example(row["query"] + end, row["choices"][row["gold"]]) for row in train[:n_shots]
            )
        return [
            Question(
                str(i), "", "", examples, row["query"] + end, tuple(row["choices"]), row["gold"]
            )
            for i, row in enumerate(_read_lines(folder / f"{name}.jsonl"))
        ]

    return Task(name, 1, 0, True, read)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines, checked. Raises DataError naming every line that is wrong."""
    rows, problems = [], []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is not JSON: {error}")
            continue
        if problem := _row_problem(row):
            problems.append(f"line {number}: {problem}")
        rows.append(row)
    if not rows and not problems:
        problems.append("it has no question")
    _refuse(file, problems, 'a line is {"query": TEXT, "choices": [TEXT, ..], "gold": NUMBER}')
    return rows


def _row_problem(row: Any) -> str:
    """What is wrong with a row of JSON; empty if nothing is."""
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    query, choices, gold = row.get("query"), row.get("choices"), row.get("gold")
    if not isinstance(query, str):
        return f"query must be a text, got {query!r}"
    texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not isinstance(choices, list) or not texts or len(choices) < 2:
        return f"choices must be two or more texts, got {choices!r}"
    if type(gold) is not int or not 0 <= gold < len(choices):
        return f"gold must be from 0 to {len(choices) - 1}, got {gold!r}"
    return ""


# ---- MMLU


def _read_mmlu(folder: Path, n_shots: int) -> list[Question]:
    """Questions of all subjects in FOLDER/mmlu/test; the first ones of dev are the examples."""
    questions = []
    for file in _mmlu_files(folder, "test"):
        subject = file.stem.removesuffix("_test")
        examples: tuple[Example, ...] = ()
        if n_shots:
            dev = folder / "mmlu" / "dev" / f"{subject}_dev.csv"
            rows = list(_read_csv(dev))
            _check_shots(dev, len(rows), n_shots)
            examples = tuple(Example(_mmlu_text(r), LETTERS[int(r[5])]) for r in rows[:n_shots])
        topic = subject.replace("_", " ")
        about = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        questions += [
            Question(f"{subject}/{i}", subject, about, examples, _mmlu_text(r), LETTERS, int(r[5]))
            for i, r in enumerate(_read_csv(file))
        ]
    return questions


def _mmlu_text(row: Sequence[str]) -> str:
    choices = "".join(f"{letter}. {row[i]}\n" for i, letter in enumerate(LETTERS, 1))
    return f"{row[0].strip()}\n{choices}Answer:"


def _mmlu_files(folder: Path, part: str) -> list[Path]:
    found = sorted((folder / "mmlu" / part).glob(f"*_{part}.csv"))
    if not found:
        what = f"{folder / 'mmlu' / part} has no SUBJECT_{part}.csv"
        raise DataError(what, hint="docs/eval.md says how the folder of --data is laid out")
    return found


def _read_csv(file: Path) -> Iterator[list[str]]:
    """Rows of a file of MMLU without its first line. Raises DataError naming every wrong line."""
    problems: list[str] = []
    rows = []
    reader = csv.reader(_text(file).splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            if reader.line_num > 1 or row != MMLU_COLUMNS:
                rows.append(row)
                if len(row) != len(MMLU_COLUMNS):
                    problems.append(f"line {reader.line_num} has {len(row)} fields, expected 6")
                elif row[5] not in ("0", "1", "2", "3"):
                    answer = f"the answer must be from 0 to 3, got {row[5]!r}"
                    problems.append(f"line {reader.line_num}: {answer}")
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
    if not rows and not problems:
        problems.append("it has no question")
    _refuse(file, problems, f"a line is {','.join(MMLU_COLUMNS)}")
    return iter(rows)


# ---- shared


def _text(file: Path) -> str:
    """Text of a file. Raises DataError."""
    if not file.is_file():
        hint = "docs/eval.md says how the folder of --data is laid out"
        raise DataError(f"there is no file {file}", hint=hint)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}", hint="save it as UTF-8") from None


def _refuse(file: Path, problems: list[str], expected: str) -> None:
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise DataError(f"{file} is malformed", problems=shown, hint=expected)


def _check_shots(file: Path, n_there: int, n_shots: int) -> None:
    if n_there < n_shots:
        what = f"{file} has {n_there} examples, and {n_shots} are to stand before each question"
        raise UsageError(what, hint=f"give --shots {n_there} or fewer")


_ALL = (
    _lines_task("arc_easy", "\nAnswer:"),
    _lines_task("arc_challenge", "\nAnswer:"),
    _lines_task("hellaswag", ""),
    Task("mmlu", 1, 5, False, _read_mmlu),
)
TASKS = {task.name: task for task in _ALL}


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by name. Raises UsageError naming those that there are not."""
    if unknown := [name for name in names if name not in TASKS]:
        what = f"there is no task {', '.join(unknown)}"
        raise UsageError(what, hint=f"choose among {', '.join(TASKS)}")
    return [TASKS[name] for name in dict.fromkeys(names)]


def limited(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each subject."""
    kept: list[Question] = []
    counts: dict[str, int] = {}
    for question in questions:
        counts[question.subject] = counts.get(question.subject, 0) + 1
        if limit is None or counts[question.subject] <= limit:
            kept.append(question)
    return kept

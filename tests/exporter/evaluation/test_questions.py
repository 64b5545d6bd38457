"""Questions as they are read, prompts as they are rendered, and every file that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.chat_template import ChatTemplate
from exporter.errors import DataError, UsageError
from exporter.evaluation.multiple_choice import prompt_texts
from exporter.evaluation.questions import MMLU_COLUMNS, TASKS, find_tasks, limited

HEADER = ",".join(MMLU_COLUMNS) + "\n"
ROW = {"query": "Question: Is snow cold?", "choices": ["yes", "no"], "gold": 0}
TEMPLATE = ChatTemplate(
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>", {}
)


def write_lines(folder: Path, name: str, *rows: object) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def write_mmlu(folder: Path, subject: str, dev: str, test: str) -> Path:
    for part, text in (("dev", dev), ("test", test)):
        (folder / "mmlu" / part).mkdir(parents=True, exist_ok=True)
        (folder / "mmlu" / part / f"{subject}_{part}.csv").write_text(HEADER + text)
    return folder


DEV = '"One, two?\nThree? ",1,2,3,4,2\n Which is red?,grass,"the ""sky""",blood,snow,2\n'
TEST = "Which is 2 + 2?,1,2,3,4,3\nWhich is 0?,0,1,2,3,0\n"


def test_the_prompt_of_mmlu_is_that_of_the_harness(tmp_path: Path) -> None:
    write_mmlu(tmp_path, "college_maths", DEV, TEST)
    first, second = TASKS["mmlu"].read(tmp_path, 2)
    shots = (
        "One, two?\nThree?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: C\n\n"
        'Which is red?\nA. grass\nB. the "sky"\nC. blood\nD. snow\nAnswer: C\n\n'
    )
    asked = "Which is 2 + 2?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    about = "The following are multiple choice questions (with answers) about college maths.\n\n"
    assert prompt_texts([first], None) == [(about + shots + asked, " ")]
    assert (first.choices, first.gold, second.gold) == (("A", "B", "C", "D"), 3, 0)
    assert (first.id, first.subject) == ("college_maths/0", "college_maths")
    chat = f"<system>{about}<user>{shots}{asked}<assistant>"
    assert prompt_texts([first], TEMPLATE) == [(chat, "")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('no') }}", "TemplateError: no"),
        ("{% set x = 'x' * 40000000000 %}{{ messages }}", "memory"),
        ("{{ none.one.two }}", "UndefinedError"),
    ],
)
def test_a_template_that_does_not_render_is_one_error(
    text: str, reason: str, tmp_path: Path
) -> None:
    write_lines(tmp_path, "arc_easy", ROW)
    questions = TASKS["arc_easy"].read(tmp_path, 0)
    with pytest.raises(UsageError, match="does not render a question") as caught:
        prompt_texts(questions, ChatTemplate(text, {}))
    assert reason.lower() in str(caught.value).lower()


def test_mmlu_has_five_shots_and_no_norm() -> None:
    assert (TASKS["mmlu"].n_shots, TASKS["mmlu"].has_norm) == (5, False)
    assert {task.n_shots for name, task in TASKS.items() if name != "mmlu"} == {0}


@pytest.mark.parametrize(
    ("name", "end"), [("arc_easy", "\nAnswer:"), ("arc_challenge", "\nAnswer:"), ("hellaswag", "")]
)
def test_tasks_in_lines(name: str, end: str, tmp_path: Path) -> None:
    write_lines(tmp_path, name, ROW, "", {**ROW, "gold": 1})
    write_lines(tmp_path, f"{name}_train", {"query": "q", "choices": ["a", "b", "c"], "gold": 2})
    first, second = TASKS[name].read(tmp_path, 1)
    assert prompt_texts([first], None) == [(f"q{end} c\n\n{ROW['query']}{end}", " ")]
    assert (first.choices, first.gold, second.gold) == (("yes", "no"), 0, 1)
    (bare, _) = TASKS[name].read(tmp_path, 0)
    plain, chat = (prompt_texts([bare], template) for template in (None, TEMPLATE))
    assert plain == [(f"{ROW['query']}{end}", " ")]
    assert chat == [(f"<user>{ROW['query']}{end}<assistant>", "")]


def test_a_limit_is_of_each_subject(tmp_path: Path) -> None:
    write_mmlu(tmp_path, "a", DEV, TEST)
    write_mmlu(tmp_path, "b", DEV, TEST)
    questions = TASKS["mmlu"].read(tmp_path, 0)
    assert [q.id for q in limited(questions, 1)] == ["a/0", "b/0"]
    assert limited(questions, None) == questions


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2 is not JSON"),
        ([1], "line 2: expected an object, got list"),
        ({**ROW, "query": None}, "line 2: query must be a text, got None"),
        ({**ROW, "choices": ["one"]}, "line 2: choices must be two or more texts"),
        ({**ROW, "choices": ["one", ""]}, "line 2: choices must be two or more texts"),
        ({**ROW, "choices": 3}, "line 2: choices must be two or more texts, got 3"),
        ({**ROW, "gold": 2}, "line 2: gold must be from 0 to 1, got 2"),
        ({**ROW, "gold": True}, "line 2: gold must be from 0 to 1, got True"),
        ({"query": "q", "choices": ["a", "b"]}, "line 2: gold must be from 0 to 1, got None"),
    ],
)
def test_a_wrong_line_is_named(row: object, said: str, tmp_path: Path) -> None:
    write_lines(tmp_path, "arc_easy", ROW, row, "[")
    with pytest.raises(DataError, match=r"arc_easy.jsonl is malformed") as error:
        TASKS["arc_easy"].read(tmp_path, 0)
    assert said in str(error.value)
    assert "line 3 is not JSON" in str(error.value), "all wrong lines are named"


def test_of_many_wrong_lines_the_first_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path, "arc_easy", *["["] * 30)
    with pytest.raises(DataError, match="and 10 more"):
        TASKS["arc_easy"].read(tmp_path, 0)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("q,1,2,3,4\n", "line 2 has 5 fields, expected 6"),
        (TEST + "q,1,2,3,4,D\n", "line 4: the answer must be from 0 to 3, got 'D'"),
        ('"q,1,2,3,4,0\n', "line 2: "),
        ("", "it has no question"),
    ],
)
def test_a_wrong_row_of_mmlu_is_named(test: str, said: str, tmp_path: Path) -> None:
    write_mmlu(tmp_path, "maths", DEV, test)
    with pytest.raises(DataError, match=r"maths_test.csv is malformed") as error:
        TASKS["mmlu"].read(tmp_path, 0)
    assert said in str(error.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*arc_easy.jsonl"):
        TASKS["arc_easy"].read(tmp_path, 0)
    with pytest.raises(DataError, match=r"has no SUBJECT_test.csv"):
        TASKS["mmlu"].read(tmp_path, 0)
    write_lines(tmp_path, "arc_easy", ROW)
    with pytest.raises(DataError, match=r"there is no file .*arc_easy_train.jsonl"):
        TASKS["arc_easy"].read(tmp_path, 1)


def test_files_that_are_empty_or_no_text(tmp_path: Path) -> None:
    write_lines(tmp_path, "arc_easy")
    with pytest.raises(DataError, match="it has no question"):
        TASKS["arc_easy"].read(tmp_path, 0)
    (tmp_path / "arc_easy.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        TASKS["arc_easy"].read(tmp_path, 0)


def test_more_shots_than_examples(tmp_path: Path) -> None:
    write_mmlu(tmp_path, "maths", DEV, TEST)
    with pytest.raises(UsageError, match=r"has 2 examples.*\n.*give --shots 2"):
        TASKS["mmlu"].read(tmp_path, 3)
    write_lines(write_lines(tmp_path, "arc_easy", ROW), "arc_easy_train", ROW)
    with pytest.raises(UsageError, match="has 1 examples"):
        TASKS["arc_easy"].read(tmp_path, 2)


def test_unknown_tasks_are_named() -> None:
    assert [t.name for t in find_tasks(["mmlu", "arc_easy", "mmlu"])] == ["mmlu", "arc_easy"]
    with pytest.raises(UsageError, match="there is no task squad, boolq"):
        find_tasks(["mmlu", "squad", "boolq"])

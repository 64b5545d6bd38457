"""The six strings of a chat format, against transformers' rendering of the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from exporter.bundle import Bundle
from exporter.chat_format import CONVERSATIONS, chat_format, concatenate, derive
from tests.support import chat_templates
from tests.support.bundles import write_text_tokenizer
from tests.support.chat_templates import DERIVED, GOLDEN, as_json, golden, template

NAMES = {
    "without_system",
    "system_open",
    "system_close",
    "user_to_assistant",
    "assistant_to_user",
    "generation",
}
RENDERINGS = json.loads(GOLDEN.read_text(encoding="utf-8"))


def theirs(folder: Path, text: str, messages: list[dict[str, str]]) -> str:
    """What transformers makes of a conversation."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=text, tokenize=False, add_generation_prompt=True
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_text_tokenizer(path, 150)
    return path


def test_the_golden_renderings_are_those_of_now() -> None:
    assert GOLDEN.read_text(encoding="utf-8") == as_json(golden())
    assert [t["name"] for t in RENDERINGS["templates"]] == list(DERIVED)


@pytest.mark.parametrize("entry", RENDERINGS["templates"], ids=lambda entry: entry["name"])
def test_golden_renderings_are_those_of_transformers(entry: dict[str, Any], folder: Path) -> None:
    from datetime import datetime

    today = datetime.now().strftime("%d %b %Y")
    assert len(entry["renderings"]) >= (12 if "system_open" in entry["strings"] else 6)
    for rendering in entry["renderings"]:
        expected = theirs(folder, entry["template"], rendering["messages"])
        assert rendering["text"].replace(RENDERINGS["date"], today) == expected


def test_nine_conversations_or_more_are_the_proof() -> None:
    assert len(CONVERSATIONS) >= 9
    assert len({json.dumps(c) for c in CONVERSATIONS}) == len(CONVERSATIONS)


def test_all_six_strings_derive_and_say_which_texts_are_trimmed() -> None:
    found = derive(template(chat_templates.DATED))
    assert (set(found.strings), found.problem) == (NAMES, "")
    assert sorted(found.trims) == ["assistant", "system", "user"]
    assert "{{strftime:%d %b %Y}}" in found.strings["without_system"]
    assert derive(template(chat_templates.TURNS)).trims == []
    found = derive(template(chat_templates.THINKING))
    assert found.strings["generation"] != found.strings["user_to_assistant"]


def test_spaces_around_texts_go_where_the_template_trims_them(folder: Path) -> None:
    messages = [{"role": r, "content": f" \n{r} "} for r in ("system", "user", "assistant", "user")]
    for text in (chat_templates.TURNS, chat_templates.DATED, chat_templates.THINKING):
        chat = derive(template(text))
        from datetime import datetime

        said = concatenate(chat, messages, datetime.now().strftime)
        assert said == theirs(folder, text, messages)


def test_without_a_way_to_give_a_system_prompt_four_strings_are_left() -> None:
    found = derive(template(chat_templates.NO_SYSTEM))
    assert set(found.strings) == NAMES - {"system_open", "system_close"}
    assert "no way to give a system prompt" in found.problem
    assert "no system role" in found.problem
    found = derive(template(chat_templates.SYSTEM_LAST))
    assert set(found.strings) == NAMES - {"system_open", "system_close"}
    assert "of 4 messages, conversation 2 of the proof" in found.problem


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (chat_templates.COUNTED, "makes another text"),
        (chat_templates.FORGETFUL, "leaves out, repeats or moves the message tq-user-1"),
        (chat_templates.TWICE, "leaves out, repeats or moves"),
        (chat_templates.LOUD, "leaves out"),
        (chat_templates.LEFT, "changes the spaces around what the user says"),
        ("{{ raise_exception('never') }}", "never"),
        ("{% for %}", "TemplateSyntaxError"),
    ],
    ids=["counts", "forgets", "repeats", "changes", "half trimmed", "refuses", "broken"],
)
def test_what_does_not_derive_says_why(text: str, why: str) -> None:
    found = derive(template(text))
    assert found.strings == {}
    assert "is no six strings" in found.problem
    assert why in found.problem


def test_a_bundle_has_the_format_of_its_template(bundle: Bundle, other_bundle: Bundle) -> None:
    assert bundle.manifest.chat == chat_format(bundle.path)
    assert bundle.manifest.chat.strings
    assert other_bundle.manifest.chat.strings == {}
    assert "no chat template" in other_bundle.manifest.chat.problem

"""Prompts as token ids, and control tokens in what is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from exporter.bundle import Bundle
from exporter.errors import UsageError
from runtime_ref.prompts import PromptEncoder
from tests.support.bundles import small_manifest
from tests.support.checkpoints import write_tokenizer

BOS, EOS = 256, 257
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}go {% endif %}"
)
PIECES = ["<s>", "</s>", "</", "s>", "<", ">", "s", " hi", "\n", "é", "\U000f0000", "\U000f0001"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bytes")
    write_tokenizer(path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def encoder(folder: Path, **options: bool) -> PromptEncoder:
    return PromptEncoder(Bundle(folder, small_manifest(context=400)), **options)


def messages_of(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def spelling(spelt: PromptEncoder, text: str) -> list[int]:
    """Token ids of a text, one character after the other: none of them is a control token."""
    return [i for c in text for i in spelt.tokenizer.encode(c, add_special_tokens=False).ids]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_what_is_typed_is_no_control_token(folder: Path, text: str) -> None:
    """Its bytes are there, and no token but those of the template."""
    spelt = encoder(folder)
    ids = spelt.chat(messages_of("a", text, "b"))
    turns = ("user a", f"assistant {text.strip()}", "user b")
    expected = [i for turn in turns for i in [*spelling(spelt, turn), EOS]]
    assert ids == [BOS, *expected, *spelling(spelt, "go ")]
    assert spelt.text(text) == [BOS, *spelling(spelt, text)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_where_it_is_allowed_ids_are_those_of_transformers(folder: Path, text: str) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = messages_of("a", "b", f"x{text}")
    expected = theirs.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert encoder(folder, allow_special=True).chat(messages) == expected
    assert encoder(folder, allow_special=True).text(text) == theirs(text).input_ids


def test_a_template_is_chosen_by_name_or_file(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle(folder, small_manifest(context=400))
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}?")
    chosen = PromptEncoder(bundle, wanted_template=str(file))
    assert chosen.chat(messages_of("hi")) == spelling(chosen, "hi?")
    assert PromptEncoder(bundle, wanted_template="default").chat(messages_of("hi"))
    with pytest.raises(UsageError, match="neither a file nor a name") as caught:
        PromptEncoder(bundle, wanted_template="tool_use").chat(messages_of("hi"))
    assert "default" in caught.value.hint
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        PromptEncoder(bundle, wanted_template=str(file)).chat(messages_of("hi"))

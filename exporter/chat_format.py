"""The chat format of a model as six strings, for apps that have no template engine.

A conversation is these strings with texts between them:

    without_system | system_open SYSTEM system_close    the beginning
    USER user_to_assistant ASSISTANT assistant_to_user  each turn that was answered
    USER generation                                     the question, ready for the answer

They are read from what the template makes of texts that stand for themselves, and then proven on
CONVERSATIONS: concatenated, they must be what Jinja renders, to the character. A template that does
more than this (puts the system prompt into the last question, counts turns) does not derive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from exporter.bundle import ChatFormat
from exporter.chat import Message
from exporter.chat_template import ChatTemplate, read_template
from exporter.errors import UsageError
from exporter.guarded import guarded, nothing

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
DATE = re.compile(r"\{\{strftime:(.*?)\}\}", re.DOTALL)
DAYS = (datetime(2024, 2, 29), datetime(2031, 11, 5))
STAND_INS = {SYSTEM: "tq-system", USER: "tq-user", ASSISTANT: "tq-assistant"}


def _conversation(*texts: str, system: str | None = None) -> list[Message]:
    """Messages of alternating roles, a user's first."""
    roles = (USER, ASSISTANT)
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [*([] if system is None else [{"role": SYSTEM, "content": system}]), *said]


_LONG = "Once there was a kite. " * 40 + "What then?"
PLAIN = (
    _conversation("Hello"),
    _conversation("What is 2 + 2?", "4", "And 3 + 3?"),
    _conversation("Hi", "Hi", "Hi", "Hi", "Hi"),
    _conversation("One line.\nAnother.\n\nA third.", "- a\n- b", "<b>\"é\" & 'x'</b>"),
    _conversation("{{ messages }} {% if x %} {# y #}", "\\n %s {0}", "日本語 🙂 مرحبا"),
    _conversation(_LONG, "It flew.", "Where to?"),
)
WITH_SYSTEM = (
    _conversation("Hello", system="You are a helpful assistant."),
    _conversation("What is 2 + 2?", "4", "And 3 + 3?", system="Be short.\nBe kind."),
    _conversation("Hi", "Hi", "Hi", "Hi", "Hi", system="Hi"),
    _conversation("<b>", "\\n", "{{ x }}", system="<i>\"é\" & 'x'</i> {% y %}"),
    _conversation("日本語", "🙂", "مرحبا", system="Svara på svenska."),
    _conversation(_LONG, "It flew.", "Where to?", system=_LONG),
)
CONVERSATIONS = (*PLAIN, *WITH_SYSTEM)


def chat_format(folder: Path, meanwhile: Callable[[], None] = nothing) -> ChatFormat:
    """Chat format of the tokenizer in a folder. Raises BundleError for settings that do not read.

    Where something does not derive, `problem` says what and why, and the strings that depend on it
    are missing. A template runs in a child process; `meanwhile` is called in this one.
    """
    try:
        template = read_template(folder)
    except UsageError as error:
        meanwhile()
        return ChatFormat({}, [], error.what)
    try:
        return ChatFormat(**guarded(lambda: asdict(derive(template)), meanwhile=meanwhile))
    except ValueError as error:
        return ChatFormat({}, [], f"the chat template is no six strings: {error}")


def derive(template: ChatTemplate) -> ChatFormat:
    """The strings of a template that are proven, or the reason why there are none."""
    kept = replace(template, strftime=lambda form: "{{strftime:" + form + "}}")
    try:
        plain = _prove(template, ChatFormat(_turns(kept), [], ""), PLAIN)
        found = replace(plain, trims=_trims(kept, plain, (USER, ASSISTANT)))
    except ValueError as error:
        return ChatFormat({}, [], f"the chat template is no six strings: {error}")
    try:
        whole = replace(found, strings=found.strings | _system(kept))
        _prove(template, whole, WITH_SYSTEM)
        return replace(whole, trims=found.trims + _trims(kept, whole, (SYSTEM,)))
    except ValueError as error:
        return replace(found, problem=f"there is no way to give a system prompt: {error}")


def concatenate(
    chat: ChatFormat, messages: Sequence[Message], strftime: Callable[[str], str]
) -> str:
    """Text of a conversation by its strings, ready for the answer.

    `strftime` is the date of today, for a format that names it. Raises KeyError for a string that
    did not derive.
    """
    strings = {
        name: DATE.sub(lambda m: strftime(m[1]), text) for name, text in chat.strings.items()
    }
    between = {
        SYSTEM: strings.get("system_close"),
        USER: strings["user_to_assistant"],
        ASSISTANT: strings["assistant_to_user"],
    }
    begin = "system_open" if messages[0]["role"] == SYSTEM else "without_system"
    parts: list[str] = [strings[begin]]
    for message in messages:
        trimmed = message["role"] in chat.trims
        parts += [message["content"].strip() if trimmed else message["content"]]
        parts += [between[message["role"]] or ""]
    return "".join([*parts[:-1], strings["generation"]])


def _turns(template: ChatTemplate) -> dict[str, str]:
    """The four strings of a conversation without system prompt. Raises ValueError."""
    texts = [STAND_INS[USER] + "-1", STAND_INS[ASSISTANT], STAND_INS[USER] + "-2"]
    parts = _split(template.render(_conversation(*texts)), texts)
    names = ("without_system", "user_to_assistant", "assistant_to_user", "generation")
    return dict(zip(names, parts, strict=True))


def _system(template: ChatTemplate) -> dict[str, str]:
    """The two strings around a system prompt. Raises ValueError."""
    texts = [STAND_INS[SYSTEM], STAND_INS[USER]]
    before, after, _ = _split(template.render(_conversation(texts[1], system=texts[0])), texts)
    return {"system_open": before, "system_close": after}


def _split(rendered: str, texts: Sequence[str]) -> list[str]:
    """What stands around texts, which must come once each, in order. Raises ValueError."""
    parts = []
    for text in texts:
        if rendered.count(text) != 1:
            raise ValueError(f"it leaves out, repeats or moves the message {text}")
        before, _, rendered = rendered.partition(text)
        parts.append(before)
    return [*parts, rendered]


def _prove(
    template: ChatTemplate, chat: ChatFormat, conversations: Sequence[Sequence[Message]]
) -> ChatFormat:
    """The same format, if it makes of all conversations what the template does.

    Raises ValueError with the first that differs.
    """
    for number, messages in enumerate(conversations, 1):
        for day in DAYS:
            expected = replace(template, strftime=day.strftime).render(messages)
            if concatenate(chat, messages, day.strftime) != expected:
                what = f"of {len(messages)} messages, conversation {number} of the proof,"
                raise ValueError(f"{what} it makes another text")
    return chat


def _trims(template: ChatTemplate, chat: ChatFormat, roles: Sequence[str]) -> list[str]:
    """Roles whose texts lose the spaces around them. Raises ValueError if they change otherwise."""
    system = " \n padded " if roles == (SYSTEM,) else None
    trimmed = []
    for role in roles:
        texts = [" \n padded " if role == of else "plain" for of in (USER, ASSISTANT, USER)]
        messages = _conversation(*texts, system=system)
        rendered = template.render(messages)
        fitting = [
            trims
            for trims in ([], [role])
            if concatenate(replace(chat, trims=trims), messages, "{{{{strftime:{}}}}}".format)
            == rendered
        ]
        if not fitting:
            raise ValueError(f"it changes the spaces around what the {role} says")
        trimmed += fitting[0]
    return trimmed

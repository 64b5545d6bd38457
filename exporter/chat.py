"""A conversation as the text that a model's chat template makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Message = dict[str, str]
"""A message: its role (system, user or assistant) and its content."""


def render(template: Callable[[list[dict[str, Any]]], str], messages: Sequence[Message]) -> str:
    """The text of a conversation, ready for the answer.

    `template` makes it of messages. Some templates take the content of a message only as a list of
    parts, and drop a text in silence: they get it in parts. Raises ValueError saying why a template
    does not render, or that it leaves out the last message.
    """
    wanted = messages[-1]["content"].strip()
    in_parts = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]
    reason = ""
    for conversation in ([*map(dict, messages)], in_parts):
        try:
            text = template(conversation)
        except Exception as error:  # a template is a program: it raises what it likes
            reason = reason or f"{type(error).__name__}: {error}"
            continue
        if wanted in text:
            return text
    raise ValueError(reason or "it leaves out what the user says")

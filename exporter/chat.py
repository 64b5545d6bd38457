"""A conversation as the text that a model's chat template makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, str]
"""A message: its role (system, user or assistant) and its content."""


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text of a conversation, ready for the answer.

    `tokenizer` is one of transformers that has a template. Some templates take the content of a
    message only as a list of parts, and drop a text in silence: they get it in parts. Raises
    ValueError saying why a template does not render, or that it leaves out the last message.
    """
    wanted = messages[-1]["content"].strip()
    in_parts = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]
    reason = ""
    for conversation in (list(messages), in_parts):
        try:
            text = tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it raises what it likes
            reason = reason or f"{type(error).__name__}: {error}"
            continue
        if wanted in text:
            return str(text)
    raise ValueError(reason or "it leaves out what the user says")

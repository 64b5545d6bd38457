"""What a user gives to a model: a prompt or messages, in an option, a file or on stdin."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from exporter.errors import UsageError

STDIN = "-"
Prompt = str | list[Any]
"""A text, or the messages of a conversation as parsed JSON."""


def read_prompt(prompt: str | None, messages: str | None) -> Prompt:
    """What the options give, or stdin where neither does. Raises UsageError."""
    if prompt is not None and messages is not None:
        what = "--prompt and --messages are two beginnings"
        raise UsageError(what, hint="put the prompt into the messages, as its last one")
    if messages is not None:
        return _messages(messages)
    if prompt not in (None, STDIN):
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        hint = "give --prompt TEXT or --messages FILE, or pipe a text in"
        raise UsageError("there is no prompt", hint=hint)
    return _stdin().removesuffix("\n")


def read_line() -> str | None:
    """A line of stdin without its end, or None after the last."""
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", "surrogateescape").rstrip("\r\n") if line else None


def _messages(file: str) -> list[Any]:
    """The list in a JSON file, or on stdin. Raises UsageError."""
    hint = 'give a list such as [{"role": "user", "content": "Hi"}]'
    try:
        text = _stdin() if file == STDIN else Path(file).read_text(encoding="utf-8")
        messages = json.loads(text)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {file}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        what = f"the messages in {'stdin' if file == STDIN else file} are not JSON: {error}"
        raise UsageError(what, hint=hint) from error
    if not isinstance(messages, list):
        raise UsageError(f"{file} holds no list of messages", hint=hint)
    return messages


def _stdin() -> str:
    """All of stdin as text. Raises UsageError where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"stdin is not UTF-8 text: {error}"
        raise UsageError(what, hint="convert it to UTF-8") from error

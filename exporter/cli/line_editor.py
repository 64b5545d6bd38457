"""Lines that a user types in a terminal, with history and editing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter


def line_editor(commands: Sequence[str]) -> Callable[[], str | None]:
    """Function that asks for a line: None at the end (Ctrl-D).

    Tab completes commands at the beginning of a line. It raises KeyboardInterrupt for Ctrl-C.
    """
    completer = WordCompleter(list(commands), sentence=True)
    session: PromptSession[str] = PromptSession(completer=completer, complete_while_typing=False)

    def ask() -> str | None:
        try:
            return session.prompt("> ")
        except EOFError:
            return None

    return ask

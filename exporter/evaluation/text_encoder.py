"""Texts as token ids, as lm-evaluation-harness makes them of a context and its continuation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from exporter.chat import Message
from exporter.chat_template import ChatTemplate, read_config, read_template
from exporter.errors import DataError, UsageError
from exporter.evaluation.language_model import ModelFacts
from exporter.guarded import guarded

TOKENIZER = "tokenizer.json"
TRIAL = "A text."


class TextEncoder:
    """Encoder of texts by the tokenizer in a folder.

    `vocab_size` is the model's. Raises DataError where there is no tokenizer.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        file = folder / TOKENIZER
        if not file.is_file():
            hint = "put tokenizer.json or tokenizer.model beside the weights"
            raise DataError("the model has no tokenizer, and texts need one", hint=hint)
        self._folder, self._vocab_size = folder, vocab_size
        self._tokenizer = _read(file)
        self.identity = hashlib.sha256(file.read_bytes()).hexdigest()
        text = _first_token(read_config(folder))
        self.prefix = None if text is None else self._tokenizer.token_to_id(text)
        """The token before a text that has nothing before it: BOS, or else EOS."""
        self._prefix_text = text

    def check_takes(self, facts: ModelFacts, folder: Path) -> None:
        """Checks that another model, with its tokenizer in a folder, takes the same ids.

        Ids that only one of the tokenizers has do not count: some are filled up to a round number.
        Raises UsageError.
        """
        problems = []
        if facts.vocab_size != self._vocab_size:
            problems.append(f"it knows {facts.vocab_size:,} tokens, expected {self._vocab_size:,}")
        if (file := folder / TOKENIZER).is_file():
            ours, theirs = (
                {i: token for token, i in tokenizer.get_vocab().items()}
                for tokenizer in (self._tokenizer, _read(file))
            )
            if other := [i for i in ours.keys() & theirs.keys() if ours[i] != theirs[i]]:
                i = min(other)
                what = f"{len(other):,} ids stand for other tokens, such as {i}: {theirs[i]!r}"
                problems.append(f"{what}, expected {ours[i]!r}")
        if problems:
            hint = "compare models that were made from the same original"
            what = f"{facts.name} has another vocabulary"
            raise UsageError(what, problems=problems, hint=hint)

    def template(self, wanted: str | None) -> ChatTemplate:
        """The chat template by name or file, or the default one. Raises UsageError."""
        return read_template(self._folder, wanted)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer puts there.

        It puts none in front of a text that begins with one already. Raises DataError for an id
        that the model does not have.
        """
        own = self._prefix_text is None or not text.startswith(self._prefix_text)
        return self._checked(self._tokenizer.encode(text, add_special_tokens=own).ids)

    def running_ids(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text without special tokens, and where each ends, in characters."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return self._checked(encoding.ids), [end for _, end in encoding.offsets]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a context and of what follows it, encoded together and then divided.

        Spaces at the end of the context belong to the continuation, whose first token has them. An
        empty context is the prefix token. Raises DataError where there is none.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if bare:
            given = self.ids(bare)
            return given, self.ids(bare + continuation)[len(given) :]
        if self.prefix is None:
            hint = "give a query that is not empty"
            raise DataError("the tokenizer has no token to stand for an empty query", hint=hint)
        return [self.prefix], self.running_ids(continuation)[0]

    def _checked(self, ids: list[int]) -> list[int]:
        if beyond := [i for i in ids if i >= self._vocab_size]:
            what = f"the tokenizer gives id {beyond[0]}, the model knows {self._vocab_size} tokens"
            raise DataError(what, hint="use the model's own tokenizer")
        return ids


def _read(file: Path) -> Tokenizer:
    """The tokenizer in a file, parsed in a child process first. Raises DataError."""
    content = file.read_bytes()
    try:
        guarded(lambda: len(Tokenizer.from_buffer(content).encode(TRIAL).ids))
    except ValueError as error:
        raise DataError(f"{file} is not a tokenizer: {error}", hint="export again") from None
    return Tokenizer.from_buffer(content)


def _first_token(config: dict[str, object]) -> str | None:
    """Text of the BOS token, or else of the EOS token, of tokenizer_config.json."""
    for name in ("bos_token", "eos_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            return text
    return None


def rendered(template: ChatTemplate, conversations: Sequence[Sequence[Message]]) -> list[str]:
    """Texts of conversations, made in a child process: a template is a stranger's program.

    Raises UsageError for a template that does not take one.
    """
    try:
        texts: list[str] = guarded(
            lambda: [template.render(messages) for messages in conversations]
        )
        return texts
    except ValueError as error:
        what = f"the chat template does not render a question: {error}"
        raise UsageError(what, hint="run without --chat, or give another --chat-template") from None

"""Prompts as token ids: a text or a conversation, by the tokenizer and chat template of a bundle.

What a user types cannot become a control token: the end of a turn that somebody writes into a
message is text like any other, unless it is allowed.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from exporter.bundle import Bundle
from exporter.errors import BundleError, ContextError, UsageError
from exporter.guarded import guarded
from runtime_ref.trial import try_once

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from exporter.chat import Message
    from exporter.chat_template import ChatTemplate

RENDER_SECONDS = 20.0  # for a conversation, which takes milliseconds
TRIAL = "A kite, 12 m\u00b2.\n"
PRIVATE_USE = 0xF0000  # first of the code points that stand for nothing


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """Tokenizer that ships in the bundle. Raises BundleError."""
    import tokenizers
    from tokenizers import Tokenizer

    path = bundle.path / "tokenizer.json"
    if not path.is_file():
        raise BundleError(
            f"{bundle.path} has no tokenizer.json: the checkpoint had no tokenizer",
            hint="put tokenizer.json or tokenizer.model beside the checkpoint's config.json and "
            "export again",
        )
    try:
        # Not the path, which the library refuses where the locale cannot write it, and not a text,
        # which is in memory twice.
        content = path.read_bytes()
        name = f"tokenizers {tokenizers.__version__} {hashlib.sha256(content).hexdigest()}"
        try_once(name, lambda: Tokenizer.from_buffer(content).encode(TRIAL))
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception
        raise BundleError(f"{path} is not a tokenizer: {error}", hint="export again") from error


def check_fits(prompt: Sequence[int], context: int) -> None:
    """Checks that a prompt has no more tokens than the context. Raises ContextError."""
    if len(prompt) > context:
        raise ContextError(
            f"the prompt has {len(prompt)} tokens, the package was exported with a context of "
            f"{context}",
            hint="shorten the prompt, or export with a larger --context",
        )


def as_text(prompt: str) -> str:
    """The prompt as Unicode.

    Under an ASCII locale Python gives the bytes of an argument as surrogates: they are read as
    UTF-8. Raises UsageError where they are not.
    """
    try:
        return prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UsageError(
            "the prompt is not UTF-8 text",
            hint="save or type it as UTF-8, or run under LANG=C.UTF-8",
        ) from None


class PromptEncoder:
    """Encoder of prompts for a bundle, whose methods may be called from several threads.

    `wanted_template` is a name or a file; None is the bundle's default template. With
    `allow_special` what is typed may be a control token. Raises BundleError.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        wanted_template: str | None = None,
        allow_special: bool = False,
    ) -> None:
        self.bundle = bundle
        self.tokenizer = load_tokenizer(bundle)
        self._wanted, self._allow_special = wanted_template, allow_special
        self._lock = threading.Lock()  # whether control tokens are read is a state of the tokenizer

    @cached_property
    def template(self) -> ChatTemplate:
        """Chat template. Raises UsageError where there is none, BundleError."""
        from exporter.chat_template import read_template

        return read_template(self.bundle.path, self._wanted)

    def text(self, prompt: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer puts there.

        Raises UsageError if there are none, ContextError if there are too many.
        """
        text, typed = as_text(prompt), not self._allow_special
        return self._checked(self._ids(text, typed=typed, add_special_tokens=True))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the answer.

        They are those of the text that the template renders, unless a message holds the text of a
        control token: then the text is encoded in the pieces between the template's own control
        tokens. Raises UsageError without a template, BundleError for one that does not render, and
        as `text`.
        """
        messages = [m | {"content": as_text(m["content"])} for m in messages]
        typed = "".join(message["content"] for message in messages)
        if self._allow_special or not self._control.search(typed):
            return self._checked(self._ids(self._rendered(messages), typed=False))
        stand_ins = self._stand_ins(typed)
        rendered = self._rendered(
            [
                message
                | {"content": self._control.sub(lambda m: stand_ins[m[0]], message["content"])}
                for message in messages
            ]
        )
        ids: list[int] = []
        for piece in self._control.split(rendered):
            if self._control.fullmatch(piece):
                ids += self._ids(piece, typed=False)
            elif piece:
                for control, stand_in in stand_ins.items():
                    piece = piece.replace(stand_in, control)
                ids += self._ids(piece, typed=True)
        return self._checked(ids)

    def _rendered(self, messages: Sequence[Message]) -> str:
        """Text of a conversation. Raises UsageError, BundleError."""
        template = self.template
        try:
            return str(guarded(lambda: template.render(messages), RENDER_SECONDS))
        except ValueError as error:
            what = f"the chat template of {self.bundle.path} does not render: {error}"
            hint = "run without --chat, or give other messages or another --chat-template"
            raise BundleError(what, hint=hint) from error

    def _ids(self, text: str, *, typed: bool, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; of one that is `typed` none is a control token."""
        with self._lock:
            self.tokenizer.encode_special_tokens = typed
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Pattern of the texts of control tokens, in one group; of two the longer is found."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        texts = sorted((a.content for a in added if a.special), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, texts)) or '(?!)'})")

    def _stand_ins(self, typed: str) -> dict[str, str]:
        """Characters by control token that a text holds; the characters are not in it."""
        found = dict.fromkeys(self._control.findall(typed))
        free = (chr(PRIVATE_USE + i) for i in range(len(typed) + len(found) + 1))
        return dict(zip(found, (c for c in free if c not in typed), strict=False))

    def _checked(self, ids: list[int]) -> list[int]:
        """The same ids, of which there are some, that the model knows and its context holds."""
        interface = self.bundle.manifest.interface
        if not ids:
            raise UsageError("the prompt is empty", hint="give --prompt some text")
        if bad := [i for i in ids if i >= interface.vocab_size]:
            known = interface.vocab_size - 1
            what = f"the tokenizer gives id {bad[0]}, the model knows ids up to {known}"
            raise BundleError(what, hint="use the model's own tokenizer")
        check_fits(ids, interface.context)
        return ids

"""A conversation in the chat format of a model, by the template that ships with its tokenizer.

Templates are written for transformers, which takes seconds to import. What they may use besides
Jinja is given here: the tokenizer's special tokens by name, `raise_exception`, `strftime_now`, a
`tojson` that escapes nothing, and `generation` blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from exporter import chat
from exporter.chat import Message
from exporter.errors import BundleError, UsageError

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
DEFAULT = "default"  # of several templates, the one that is used unless another is named


class _Generation(Extension):
    """Blocks that mark for training what the model has said: they render as what is inside."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _today(form: str) -> str:
    return datetime.now().strftime(form)


@dataclass(frozen=True)
class ChatTemplate:
    """Chat format of a model: a template, and the texts of special tokens by name as `bos_token`.

    `strftime` is the date of today in a form of the C function of that name.
    """

    text: str
    special_tokens: dict[str, str]
    strftime: Callable[[str], str] = _today

    def render(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """Text of a conversation; with `generation` it is ready for the answer.

        Raises ValueError as `chat.render`.
        """
        return chat.render(partial(self._apply, generation), messages)

    def _apply(self, generation: bool, messages: list[dict[str, Any]]) -> str:
        """What the template makes of messages, whatever it is. Raises what it likes."""
        return self._compiled.render(
            messages=messages,
            add_generation_prompt=generation,
            **self.special_tokens,
            tools=None,
            documents=None,
        )

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": self.strftime}
        return environment.from_string(self.text)


def read_template(folder: Path, wanted: str | None = None) -> ChatTemplate:
    """Template in the folder of a tokenizer: the default one, the one that is named, or a file.

    Raises UsageError where there is none, or none of that name; BundleError for settings that
    cannot be read.
    """
    config = read_config(folder)
    named = templates(folder, config)
    special_tokens = _special_tokens(config)
    if wanted is None or wanted in named:
        if text := named.get(wanted or DEFAULT):
            return ChatTemplate(text, special_tokens)
        what = "this model has no chat template"
        others = f", only {', '.join(named)}" if named else ""
        hint = "run without --chat, or give --chat-template NAME or FILE"
        raise UsageError(what + (f" named {DEFAULT}{others}" if named else ""), hint=hint)
    if not Path(wanted).is_file():
        what = f"the chat template {wanted} is neither a file nor a name in {folder}"
        there = f"the names are {', '.join(named)}" if named else "the model has no chat template"
        raise UsageError(what, hint=f"{there}; give one, or a file in Jinja")
    try:
        return ChatTemplate(Path(wanted).read_text(encoding="utf-8"), special_tokens)
    except UnicodeError as error:
        what = f"the chat template {wanted} is not UTF-8 text: {error}"
        raise UsageError(what, hint="give a file in Jinja") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Settings of a tokenizer, empty where there are none. Raises BundleError."""
    file = folder / CONFIG
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON: {error}", hint="export again") from error
    if not isinstance(config, dict):
        raise BundleError(f"{file} must hold an object", hint="export again")
    return config


def templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name: those of the settings, and as the default that in a file of its own."""
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {str(t.get("name")): str(t.get("template")) for t in given if isinstance(t, dict)}
    else:
        named = {DEFAULT: str(given)} if given else {}
    file = folder / TEMPLATE
    return named | ({DEFAULT: file.read_text(encoding="utf-8")} if file.is_file() else {})


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Texts of special tokens by name, as `bos_token`."""
    texts = {
        name: token["content"] if isinstance(token, dict) and "content" in token else token
        for name, token in config.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})

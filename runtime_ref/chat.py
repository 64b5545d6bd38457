"""A prompt in the chat format of a model, by the template that ships with its tokenizer.

Templates are written for transformers, which takes seconds to import. What they may use besides
Jinja is given here: the tokenizer's special tokens by name, `raise_exception`, `strftime_now`, a
`tojson` that escapes nothing, and `generation` blocks.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from exporter import chat
from exporter.bundle import Bundle
from exporter.errors import BundleError, UsageError

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"


class _Generation(Extension):
    """Blocks that mark for training what the model has said: they render as what is inside."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_chat(bundle: Bundle, prompt: str) -> str:
    """One user turn in the model's chat format, ready for the answer.

    Raises UsageError without a template, BundleError for one that does not render.
    """
    config = _config(bundle)
    template = _template(bundle, config)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    given = _special_tokens(config) | {"tools": None, "documents": None}

    def apply(messages: list[dict[str, Any]]) -> str:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, **given
        )

    try:
        return chat.render(apply, [{"role": "user", "content": prompt}])
    except ValueError as error:
        what = f"the chat template of {bundle.path} does not render: {error}"
        raise BundleError(what, hint="run without --chat") from error


def _config(bundle: Bundle) -> dict[str, Any]:
    """The tokenizer's settings, empty where there are none. Raises BundleError."""
    file = bundle.path / CONFIG
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{file} is not JSON: {error}", hint="export again") from error
    if not isinstance(config, dict):
        raise BundleError(f"{file} must hold an object", hint="export again")
    return config


def _template(bundle: Bundle, config: dict[str, Any]) -> str:
    """The template in a file of its own, or else in the settings. Raises UsageError."""
    file = bundle.path / TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    named = config.get("chat_template")
    if isinstance(named, list):  # several, by name
        named = next((t["template"] for t in named if t.get("name") == "default"), None)
    if not named:
        hint = "run without --chat, or export an instruction-tuned model"
        raise UsageError("this model has no chat template", hint=hint)
    return str(named)


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The texts of special tokens by name, as `bos_token`."""
    texts = {
        name: token["content"] if isinstance(token, dict) and "content" in token else token
        for name, token in config.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})

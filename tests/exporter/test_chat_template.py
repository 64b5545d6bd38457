"""Chat templates, against transformers, for which they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from exporter.bundle import Bundle
from exporter.chat_template import read_template
from exporter.errors import BundleError
from tests.support.bundles import small_manifest, write_text_tokenizer

TURNS = """{{ bos_token }}
{%- for m in messages %}
    {%- if loop.first and m.role != "system" %}
        {{- "<system>\nYou are helpful\n" }}
    {%- endif %}
    {{ "<" + m["role"] + ">\n" + m.content | trim + eos_token + "\n" }}
{%- endfor %}
{% if add_generation_prompt %}
<assistant>
{% endif %}"""
TEMPLATES = {
    "turns": TURNS,
    "generation blocks": "{% for m in messages %}{% generation %}\n  {{ m.content }}\n"
    "{% endgeneration %}{% endfor %}!",
    "loop controls": "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "absent tools": "{% if tools is not none %}tools{% endif %}{{ documents is none }}",
    "absent tokens": "{{ pad_token is defined }} {{ unk_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
    "date": "{{ strftime_now('%Y-%m') }}",
}
SAID = "{{ messages[0].content }}"  # a template that leaves out the question is refused
PROMPT = "  Is <b> \"é\" & 'x' > 1?\nYes  "


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_text_tokenizer(tmp_path, 150)
    return Bundle(tmp_path, small_manifest())


def render(bundle: Bundle) -> str:
    """What a template makes of one message, which it may not leave out."""
    return read_template(bundle.path).render([{"role": "user", "content": PROMPT}])


def expected(folder: Path) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": "user", "content": PROMPT}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, bundle: Bundle) -> None:
    (bundle.path / "chat_template.jinja").write_text(TEMPLATES[name] + SAID)
    assert render(bundle) == expected(bundle.path) != ""


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": TURNS},
        {
            "chat_template": [
                {"name": "tool_use", "template": "no"},
                {"name": "default", "template": TURNS},
            ]
        },
        {
            "chat_template": TURNS,
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        },
    ],
    ids=["one", "several by name", "a token with properties"],
)
def test_settings_are_read_as_in_transformers(settings: dict[str, object], bundle: Bundle) -> None:
    (bundle.path / "chat_template.jinja").unlink()
    file = bundle.path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    assert render(bundle) == expected(bundle.path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_settings_that_are_no_object_are_refused(text: str, bundle: Bundle) -> None:
    (bundle.path / "tokenizer_config.json").write_text(text)
    with pytest.raises(BundleError, match=r"tokenizer_config\.json (is not JSON|must hold)"):
        render(bundle)

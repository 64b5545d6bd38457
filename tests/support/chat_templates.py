"""Chat templates of the kinds that models have, and the golden renderings for apps.

`python tests/support/chat_templates.py` writes tests/golden/chat.json anew. Run it from the root of
the project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.chat_format import CONVERSATIONS, SYSTEM, concatenate, derive
from exporter.chat_template import ChatTemplate

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "chat.json"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
DATE = "05 Nov 2031"

TURNS = """{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
DEFAULT_SYSTEM = (
    """{%- if messages[0].role != 'system' %}
    {{- '<|system|>\nYou help.<|end|>\n' }}
{%- endif %}"""
    + TURNS
)
DATED = """{{- bos_token }}
{%- if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}
{%- else %}{% set today = '1 Jan 2024' %}{% endif %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{% set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}{% set rest = messages %}
{%- endif %}
{{- '[system]\n\nToday: ' + today + '\n\n' + system + '[end]' }}
{%- for m in rest %}{{ '[' + m.role + ']\n\n' + m.content | trim + '[end]' }}{% endfor %}
{%- if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"""
THINKING = """{%- for m in messages %}
    {%- if m.role == 'assistant' and '</think>' in m.content %}
        {%- set said = m.content.split('</think>')[-1].lstrip('\n') %}
    {%- else %}{% set said = m.content %}{% endif %}
    {{- '<' + m.role + '>\n' + said + '<end>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>\n<think>\n\n</think>\n\n' }}{% endif %}"""
NO_SYSTEM = """{% if messages[0].role == 'system' %}
    {{- raise_exception('no system role') }}
{%- endif %}
{%- for m in messages %}{{ '<turn>' + m.role + '\n' + m.content | trim + '</turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""
DERIVED = {
    "turns": TURNS,
    "default system prompt": DEFAULT_SYSTEM,
    "date": DATED,
    "thinking": THINKING,
    "no system prompt": NO_SYSTEM,
}
# These are no six strings, for the reason that is part of the problem.
SYSTEM_LAST = """{% set own = messages[0].content if messages[0].role == 'system' else '' %}
{%- for m in messages %}{% if m.role == 'user' %}
{{- '[INST]' + (own + '\n\n' if own and loop.last else '') + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"""
COUNTED = "{% for m in messages %}{{ loop.index ~ ':' ~ m.role ~ ':' ~ m.content }}\n{% endfor %}"
FORGETFUL = "{{ messages[-1].content }}>"
TWICE = "{% for m in messages %}{{ m.content ~ '(' ~ m.content ~ ')' }}{% endfor %}"
LOUD = "{% for m in messages %}{{ m.role ~ m.content | replace('a', 'A') }}{% endfor %}"
LEFT = "{% for m in messages %}{{ m.role ~ m.content.lstrip() ~ '|' }}{% endfor %}"


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text, TOKENS)


def golden() -> dict[str, Any]:
    """What an app must make of conversations, for each template that derives."""
    found: dict[str, Any] = {"date": DATE, "templates": []}
    for name, text in DERIVED.items():
        chat = derive(template(text))
        conversations = [
            messages
            for messages in CONVERSATIONS
            if messages[0]["role"] != SYSTEM or "system_open" in chat.strings
        ]
        found["templates"].append(
            {
                "name": name,
                "template": text,
                "strings": chat.strings,
                "trims": chat.trims,
                "renderings": [
                    {"messages": m, "text": concatenate(chat, m, lambda form: DATE)}
                    for m in conversations
                ],
            }
        )
    return found


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    GOLDEN.write_text(as_json(golden()), encoding="utf-8")

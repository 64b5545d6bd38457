"""Texts of strangers, in a child with limits: each hostile one is one error."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter import guarded as guards
from exporter.bundle import Bundle
from exporter.chat_format import chat_format
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import BundleError, CheckpointError
from exporter.guarded import guarded
from runtime_ref import prompts
from tests.support.bundles import copy, edit_manifest, write_small_bundle, write_text_tokenizer
from tests.support.checkpoints import write_llama
from tests.support.command_line import tinyqmoe

ASK = [{"role": "user", "content": "What is a kite?"}]


def test_a_result_comes_back_whole() -> None:
    result = {"text": "x" * 300_000, "numbers": [1, None, 0.5], "odd": "\ud800é"}
    assert guarded(lambda: result) == result


def test_the_parent_works_while_the_child_does(tmp_path: Path) -> None:
    """The child waits for what the parent does meanwhile."""
    file = tmp_path / "made"

    def wait() -> str:
        while not file.exists():
            time.sleep(0.01)
        return "seen"

    assert guarded(wait, meanwhile=file.touch) == "seen"


def test_an_error_of_the_parent_ends_the_child() -> None:
    def fail() -> None:
        raise OSError("meanwhile")

    with pytest.raises(OSError, match="meanwhile"):
        guarded(hang, meanwhile=fail)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def hang() -> None:
    time.sleep(60)


def hang_natively() -> None:
    while True:
        ctypes.CDLL(None).usleep(1000)


def spin() -> None:
    while True:
        pass


def take_memory() -> int:
    return len([bytes(1 << 28) for _ in range(64)])


def panic() -> None:
    class PanicError(BaseException):
        """What pyo3 raises is no Exception either."""

    raise PanicError("index out of bounds")


def crash() -> None:
    ctypes.string_at(1)


def recurse() -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1)

    deeper(0)


def leave() -> None:
    os._exit(0)


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "hangs": (hang, "more than 5 seconds"),
    "hangs in native code": (hang_natively, "more than 5 seconds"),
    "computes for ever": (spin, "more than 1 seconds of the processor"),
    "takes memory": (take_memory, "GB of memory"),
    "panics": (panic, "PanicError: index out of bounds"),
    "crashes": (crash, "ends the process with SIGSEGV"),
    "aborts": (os.abort, "ends the process with SIGABRT"),
    "recurses": (recurse, "RecursionError"),
    "leaves": (leave, "ends the process with the code 0"),
    "gives no JSON": (lambda: {1, 2}, "ends the process with the code 0"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_goes_wrong_is_one_error(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, reason = HOSTILE[what]
    monkeypatch.setattr(guards, "MEMORY_BYTES", 1 << 30)
    with pytest.raises(ValueError, match=reason):
        guarded(work, seconds=1)


# ---- templates and tokenizers

TEMPLATES = {
    "hangs": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "takes memory": "{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(40) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}{{ messages[0].content }}",
    "counts to a great number": "{{ 9 ** 9 ** 9 }}",
    "does not parse": "{% for %}",
    "nests": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "raises": "{{ raise_exception('no') }}",
    "calls what is forbidden": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits for templates that a test can wait for."""
    monkeypatch.setattr(guards, "MEMORY_BYTES", 1 << 30)
    monkeypatch.setattr(prompts, "RENDER_SECONDS", 2.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", TEMPLATES)
def test_a_hostile_template_is_one_error(bundle: Bundle, tmp_path: Path, what: str) -> None:
    foreign = copy(bundle, tmp_path / "foreign")
    (foreign.path / "chat_template.jinja").write_text(TEMPLATES[what])
    with pytest.raises(BundleError, match="does not render") as caught:
        prompts.PromptEncoder(foreign).chat(ASK)
    assert caught.value.exit_code == 3


def test_a_template_without_a_format_is_said(bundle: Bundle, tmp_path: Path) -> None:
    foreign = copy(bundle, tmp_path / "foreign")
    (foreign.path / "chat_template.jinja").write_text(TEMPLATES["nests"])
    assert "is no six strings" in chat_format(foreign.path).problem


TOKENIZERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a great id": lambda raw: raw["added_tokens"].append(raw["added_tokens"][0] | {"id": 2**40}),
    "no model": lambda raw: raw.pop("model"),
    "a merge of nothing": lambda raw: raw["model"]["merges"].append(["never", "seen"]),
    "a huge repetition": lambda raw: raw.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "((a{1,1000}){1,1000}){1,1000}"},
                    "content": "b"}
    ),
    "a truncation to nothing": lambda raw: raw.update(
        truncation={"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_hostile_tokenizer_is_one_error_or_works(tmp_path: Path, what: str) -> None:
    checkpoint = write_llama(tmp_path / "model", vocab_size=150, num_hidden_layers=1)
    write_text_tokenizer(checkpoint, 150)
    file = checkpoint / "tokenizer.json"
    raw = json.loads(file.read_text())
    TOKENIZERS[what](raw)
    file.write_text(json.dumps(raw))
    with contextlib.suppress(CheckpointError):  # and nothing else
        assert Checkpoint.open(checkpoint).tokenizer is not None


# ---- what is shown


def test_control_characters_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    small = write_small_bundle(tmp_path / "small")
    hostile = "\x1b]0;owned\x07\x1b[2J\u202egpj"
    edit_manifest(small.path, lambda raw: raw["model"].update(name=hostile))
    shown = tinyqmoe("inspect", small.path).output
    assert "\\x1b" in shown
    assert "\\u202e" in shown
    assert not set("\x1b\x07\u202e") & set(shown)

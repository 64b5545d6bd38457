"""What `--json` writes: every document of every command is as its schema says, and described."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import exporter.demo
import tinyqmoe as library
from exporter.bundle import Bundle
from exporter.cli import app, chat_demo
from exporter.demo import chat_model
from runtime_ref.server import serve as server
from tests.support.command_line import strict_json, tinyqmoe
from tests.support.documents import DOCUMENTS, SCHEMA, document_name, problems
from tests.support.paths import ROOT

COMMANDS = [c.name or c.callback.__name__ for c in app.app.registered_commands if c.callback]
PAGE = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
ON_DEVICE = ("--device", "iphone-13")
linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="NOT TESTED: memory limits are enforced by the Linux kernel only",
)


def written(*arguments: str | Path, stdin: str | None = None) -> Any:
    """The document of a command, which `tinyqmoe` has held against its schema."""
    result = tinyqmoe(*arguments, "--json", "-", stdin=stdin)
    assert result.exit_code == 0, result.output
    document = strict_json(result.stdout)
    assert document["schema_version"] == 1
    return document


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object that a schema describes by its keys."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part)


# ---- the schema


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema({"$defs": {**SCHEMA["$defs"], **DOCUMENTS}})


def test_every_command_has_a_document() -> None:
    assert {name.split()[0] for name in DOCUMENTS} == set(COMMANDS)


def test_no_object_takes_a_key_that_is_not_named() -> None:
    every = list(objects(SCHEMA))
    assert len(every) > len(DOCUMENTS)
    assert [o for o in every if o["additionalProperties"] is not False] == []


def test_a_key_too_many_or_too_few_is_seen() -> None:
    document = {"schema_version": 1, "native_dir": "/there"}
    assert problems("native-dir", document) == []
    assert problems("native-dir", document | {"more": 1}) != []
    assert problems("native-dir", {"schema_version": 1}) != []
    assert problems("native-dir", document | {"schema_version": 2}) != []


# ---- the page


def sections() -> dict[str, str]:
    """The text of the page by the document that it is about."""
    parts = re.split(r"^## `tinyqmoe ([^`]+)`\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_page_names_the_keys_of_a_document_and_no_others(name: str) -> None:
    keys = set(DOCUMENTS[name]["properties"]) - {"schema_version"}
    assert set(re.findall(r"^\| `(\w+)` \|", sections()[name], re.MULTILINE)) == keys


# ---- documents


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an ML Program and a `.pte`, made on the command line."""
    out = tmp_path_factory.mktemp("documents") / "out"
    written("export", checkpoint, out, "--target", "both", "--context", "48", *ON_DEVICE)
    return out


def test_of_what_is_exported_and_shown(made: Path, tmp_path: Path) -> None:
    assert written("inspect", made)["size_bytes"] == Bundle.open(made).size_bytes
    assert written("expand", made, tmp_path / "out.mlpackage")["weight_files_bytes"]
    assert len(written("fit", made, *ON_DEVICE)["packages"]) == 2


def test_of_what_is_run(made: Path) -> None:
    assert written("run", made, "--prompt", "the cat", "--max-new-tokens", "3")["tokens"]
    assert len(written("chat", made, "--max-new-tokens", "3", stdin="hi\nyes\n")["turns"]) == 2
    assert len(written("parity", made)["packages"]) == 3
    assert written("check", made, "--baseline", made)["passed"]


@linux
def test_of_what_is_run_on_a_device(made: Path) -> None:
    package = (made, "--backend", "executorch", *ON_DEVICE)
    run = written("run", *package, "--prompt", "the cat", "--max-new-tokens", "3")
    assert run["report"]["result"]["tokens"]
    chat = written("chat", *package, "--max-new-tokens", "3", stdin="hi\n")
    assert chat["device_run"]["report"]["result"]["calls"]
    assert written("parity", *package)["devices"][0]["report"]["result"]["passed"]


def test_of_the_machine() -> None:
    assert written("devices")["devices"]
    assert written("devices", "iphone-13")["devices"][0]["ram_gb"]["value"] == 4
    assert written("native-dir")["native_dir"]
    assert written("doctor")["findings"]


def test_of_a_server(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "serve", lambda *_: None)
    assert written("serve", made, "--port", "0")["url"].startswith("http://127.0.0.1:")


def test_of_the_demo(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a smaller model in one format."""
    monkeypatch.setattr(library, "FORMATS", ("pte",))
    monkeypatch.setattr(library, "demo_model", lambda: checkpoint)
    monkeypatch.setattr(exporter.demo, "CALIBRATIONS", {"int8": None})
    assert set(written("demo", tmp_path / "demo")["bundles"]["int8"]["runs"]) == {"pte"}


@linux
def test_of_the_demo_of_chat(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "FORMATS", ("pte",))
    monkeypatch.setattr(chat_model, "fetch", lambda *_: checkpoint)
    monkeypatch.setattr(chat_demo, "CONTEXT", 96)
    monkeypatch.setattr(chat_demo, "NEW_TOKENS", 2)
    monkeypatch.setattr(chat_model, "QUESTIONS", ("hi",))
    data = written("demo", tmp_path / "demo", "--chat")
    assert set(data["backends"]) == {"native", "pte"}


def test_the_name_of_a_document_follows_the_options() -> None:
    assert document_name(["run", "b", "--device-file", "x"]) == "run --device"
    assert document_name(["parity", "b", "--device", "x"]) == "parity"
    assert document_name(["demo", "--chat"]) == "demo --chat"


def test_documents_are_checked_key_by_key(made: Path) -> None:
    """A key that a command gains, or one of what it holds, fails until the schema names it."""
    document = written("inspect", made)
    for place in ((), ("manifest",), ("manifest", "network"), ("ledger", 0)):
        changed = copy.deepcopy(document)
        inner = changed
        for step in place:
            inner = inner[step]
        inner["new"] = 1
        assert problems("inspect", changed) != []

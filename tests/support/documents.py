"""The documents of `--json` against their schema, in which a key that is not named is an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema

from tests.support.paths import ROOT

SCHEMA = json.loads((ROOT / "exporter" / "cli" / "documents.schema.json").read_text())
DOCUMENTS: dict[str, Any] = SCHEMA["documents"]
VARIANTS = ("run --device", "demo --chat")  # options with which a command writes another document


def document_name(arguments: Sequence[str]) -> str:
    """The name of the document that a command line writes."""
    command = arguments[0]
    for variant in VARIANTS:
        name, option = variant.split()
        if command == name and any(a in (option, f"{option}-file") for a in arguments):
            return variant
    return command


def problems(name: str, document: Any) -> list[str]:
    """What is wrong with a document, each with its place in it."""
    schema = {"$defs": SCHEMA["$defs"], **DOCUMENTS[name]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]

"""Reading of a manifest: the types of its entries, their ranges, and what holds between them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from exporter.bundle.entries import (
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    ChatFormat,
    FileEntry,
    Interface,
    LedgerRow,
    Location,
    Manifest,
    ModelEntry,
    Network,
    Origin,
    QuantizationLoss,
    RateEntry,
    TensorEntry,
    VectorLocation,
)
from exporter.bundle.relations import relation_problems
from exporter.bundle.sealing import DIGEST, digest
from exporter.errors import BundleError

LARGEST = 1 << 53  # what a number of JSON holds exactly in every language


def read_manifest(raw: object) -> Manifest:
    """The manifest of parsed JSON.

    Raises BundleError if it is not what was sealed; with all fields that are missing, unknown or of
    a wrong type or range; with all relations between them that do not hold.
    """
    if not isinstance(raw, dict):
        raise BundleError(f"{MANIFEST} must hold an object, got {type(raw).__name__}")
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool | float):
        raise BundleError(
            f"{MANIFEST} has schema version {short(version)}, this tool reads {SCHEMA_VERSION}",
            hint="export again, or use the version of tiny-qmoe the bundle was made with",
        )
    content = {key: value for key, value in raw.items() if key != DIGEST}
    if raw.get(DIGEST) != digest(content):
        raise BundleError(
            f"{MANIFEST} has been changed: its digest is that of another content",
            hint="copy the bundle again, or export again",
        )
    problems: list[str] = []
    manifest: Manifest = _build(Manifest, content, "", problems)
    problems = problems or relation_problems(manifest)
    if problems:
        raise BundleError(f"{MANIFEST} is not valid", problems=problems, hint="export again")
    return manifest


def short(value: object) -> str:
    """A value in a message, its middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:25]}...{text[-10:]}"


def _build(kind: Any, raw: object, where: str, problems: list[str]) -> Any:
    """A dataclass from a dict, checking names and types of what it holds.

    It is None where that fails, with notes in `problems`.
    """
    if not isinstance(raw, dict):
        problems.append(
            f"{where.removesuffix('.') or 'manifest'} must be an object, got {type(raw).__name__}"
        )
        return None
    known = {f.name: f.type for f in fields(kind)}
    problems += [f"{where}{name} is missing" for name in known if name not in raw]
    problems += [f"{where}{name} is unknown" for name in raw if name not in known]
    values = {
        name: _value(str(known[name]), raw[name], f"{where}{name}", problems)
        for name in known
        if name in raw
    }
    return kind(**values) if known.keys() <= values.keys() else None


_NESTED: dict[str, Any] = {
    c.__name__: c
    for c in (
        TensorEntry,
        Location,
        VectorLocation,
        Network,
        FileEntry,
        LedgerRow,
        Origin,
        ModelEntry,
        Interface,
        ChatFormat,
        Artifact,
        QuantizationLoss,
        RateEntry,
    )
}
_PLAIN: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "float | None": (int, float, type(None)),
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
}


def _value(kind: str, raw: object, where: str, problems: list[str]) -> Any:
    nested = kind.removesuffix(" | None")
    if nested in _NESTED:
        absent = raw is None and nested != kind
        return None if absent else _build(_NESTED[nested], raw, f"{where}.", problems)
    if kind.startswith("list[") and isinstance(raw, list):
        inner = kind.removeprefix("list[").removesuffix("]")
        return [_value(inner, item, f"{where}[{i}]", problems) for i, item in enumerate(raw)]
    # The keys of a JSON object are always texts.
    if kind.startswith("dict[") and isinstance(raw, dict):
        inner = kind.removeprefix("dict[str, ").removesuffix("]")
        return {key: _value(inner, item, f"{where}.{key}", problems) for key, item in raw.items()}
    # In Python a bool is an int too.
    is_plain = kind in _PLAIN and isinstance(raw, _PLAIN[kind])
    if kind != "Any" and not (is_plain and isinstance(raw, bool) == (kind == "bool")):
        problems.append(f"{where} must be {kind}, got {type(raw).__name__}")
    elif kind.startswith("int") and isinstance(raw, int) and not 0 <= raw <= LARGEST:
        problems.append(f"{where} is {short(raw)}, expected a number from 0 to 2^53")
    elif kind.startswith("float") and isinstance(raw, int | float) and abs(raw) > LARGEST:
        problems.append(f"{where} is {short(raw)}, expected at most 2^53")
    return raw

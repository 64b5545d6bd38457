"""Manifests that a reader takes, and edited ones that it refuses: manifest.tsv and manifest/."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.bundle import (
    NETWORK_VERSION,
    SCHEMA_VERSION,
    Artifact,
    ChatFormat,
    FileEntry,
    Interface,
    Location,
    Manifest,
    ModelEntry,
    Network,
    Origin,
    QuantizationLoss,
    VectorLocation,
    sealed,
)
from tests.support.golden.tables import write_table

Content = dict[str, Any]
EMBEDDING = "model.embed_tokens.weight"
OLDER = SCHEMA_VERSION - 1


def good() -> Content:
    """The content of a manifest, with numbers and names that a digest is easily wrong about."""
    place = Location("model.pte", "tqlz", 4096, 9000, 13120, 2048)
    artifact = Artifact(
        *("pte", "model.pte", ["model.pte"], "int16", "float16", 128, 655360, {"z": 1, "a": 2}),
        {EMBEDDING: place},
        {"model.norm.weight": VectorLocation("model.pte", 64, 32)},
        {"arena_bytes": 12345678901234},
    )
    names = ("without_system", "user_to_assistant", "assistant_to_user", "generation")
    manifest = Manifest(
        SCHEMA_VERSION,
        "2031-11-05T01:02:03+00:00",
        {"tiny-qmoe": "0.1.0"},
        ModelEntry(
            *("Kite-ß 🪁", 1234567, 4938268),
            {"rms_norm_eps": 1e-05, "rope_theta": 1e16, "note": 'a "quote"\\ \n\t\x7f', "x": -0.0},
            Origin(None, None, None, {"BF16": 12}),
        ),
        {"scheme": "int8", "sparsity": None},
        None,
        QuantizationLoss("the built-in text", 1024, 0.0021, 2e-07, 0.98, 1.5, 27.104111766820612),
        Interface(512, 1024, "tokenizer", 0, [1, 4]),
        Network(NETWORK_VERSION, 32, 96, 2, 4, 2, 8, 1024, 512, 1e-05),
        [artifact],
        ["Once upon a time"],
        ChatFormat({name: f"<|{name}|>" for name in names}, ["user"], "no system prompt"),
        ["It is small."],
        files=[
            FileEntry("model.pte", 20000, "1f" * 32),
            FileEntry("reference.safetensors", 3000, "2e" * 32),
            FileEntry("tokenizer.json", 400, "3d" * 32),
            FileEntry("tokenizer_config.json", 50, "4c" * 32),
        ],
    )
    return asdict(manifest)


def set_(*path: str | int, to: Any) -> Callable[[Content], None]:
    """A change of one member."""

    def change(content: Content) -> None:
        at: Any = content
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = to

    return change


def drop(*path: str | int) -> Callable[[Content], None]:
    """A member that is gone."""

    def change(content: Content) -> None:
        at: Any = content
        for part in path[:-1]:
            at = at[part]
        del at[path[-1]]

    return change


@dataclass(frozen=True)
class Edit:
    """A manifest with a change, sealed again, and what must be said of it.

    kind: as in the README. names: a word that the refusal names.
    """

    name: str
    kind: str
    names: str
    change: Callable[[Content], None]


# A full reader refuses them all. One that reads only what a session needs does too.
EDITS = (
    Edit("older_schema", "schema_version", str(OLDER), set_("schema_version", to=OLDER)),
    Edit(
        "text_as_schema",
        "schema_version",
        str(SCHEMA_VERSION),
        set_("schema_version", to=str(SCHEMA_VERSION)),
    ),
    Edit("no_context", "invalid", "interface.context", drop("interface", "context")),
    Edit(
        "context_in_words", "invalid", "interface.context", set_("interface", "context", to="512")
    ),
    Edit(
        "context_as_fraction", "invalid", "interface.context", set_("interface", "context", to=1.5)
    ),
    Edit(
        "yes_as_vocabulary",
        "invalid",
        "interface.vocab_size",
        set_("interface", "vocab_size", to=True),
    ),
    Edit(
        "eos_as_number",
        "invalid",
        "interface.eos_token_ids",
        set_("interface", "eos_token_ids", to=2),
    ),
    Edit("no_chat", "invalid", "chat", drop("chat")),
    Edit("no_files", "invalid", "files", drop("files")),
    Edit("file_without_digest", "invalid", "files[1].sha256", drop("files", 1, "sha256")),
    Edit("no_network", "invalid", "network", drop("network")),
    Edit("unknown_cache", "invalid", "kv_type", set_("artifacts", 0, "kv_type", to="float64")),
    Edit("no_artifact", "invalid", "artifact", set_("artifacts", to=[])),
)
# Past what the full reader checks, or in words of their own.
APP_EDITS = (
    Edit("file_outside", "invalid", "../model.pte", set_("files", 0, "path", to="../model.pte")),
    Edit("absolute_file", "invalid", "/model.pte", set_("files", 0, "path", to="/model.pte")),
    Edit(
        "unlisted_weights",
        "invalid",
        "other.pte",
        set_("artifacts", 0, "places", EMBEDDING, "file", to="other.pte"),
    ),
    Edit("no_vectors", "no_package", "", set_("artifacts", 0, "vectors", to={})),
)


def texts() -> dict[str, tuple[str, str, str]]:
    """All manifests: name, and (kind, names, text)."""
    content = good()
    text = sealed(content)
    whole = json.loads(text)
    found = {
        "good": ("ok", "", text),
        "other_layout": ("ok", "", json.dumps(dict(reversed(whole.items())))),
        "flipped": ("changed", "digest", text.replace('"context": 512', '"context": 513', 1)),
        "not_sealed": ("changed", "digest", json.dumps(content)),
        "cut": ("no_manifest", "JSON", text[: len(text) // 2]),
        "a_list": ("no_manifest", "object", "[]"),
    }
    for edit in (*EDITS, *APP_EDITS):
        changed = copy.deepcopy(content)
        edit.change(changed)
        found[edit.name] = (edit.kind, edit.names, sealed(changed))
    return found


def make_manifests(out: Path) -> None:
    """manifest.tsv and manifest/."""
    (out / "manifest").mkdir()
    lines: list[tuple[object, ...]] = []
    for name, (kind, names, text) in texts().items():
        (out / "manifest" / f"{name}.json").write_text(text, "utf-8")
        lines.append((f"manifest/{name}.json", kind, names or "-"))
    write_table(out / "manifest.tsv", "file kind names", lines)

"""Manifests that a reader takes, and edited ones that it refuses: manifest.tsv and manifest/."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.bundle import (
    EMBEDDING,
    HEAD,
    NETWORK_VERSION,
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
    TensorEntry,
    VectorLocation,
    sealed,
)
from exporter.bundle.network_shapes import matrix_shapes, vector_sizes
from tests.support.golden.tables import write_table

Content = dict[str, Any]
OLDER = SCHEMA_VERSION - 1


def good() -> Content:
    """The content of a manifest, with numbers and names that a digest is easily wrong about."""
    network = Network(NETWORK_VERSION, 32, 96, 1, 4, 2, 8, 1024, 512, 1e-05)
    shapes = {name: s for name, s in matrix_shapes(network).items() if name != HEAD}
    tensors = [_tensor(name, *shape) for name, shape in shapes.items()]
    places, vectors, size = _laid_out(tensors, vector_sizes(network))
    artifact = Artifact(
        *("pte", "model.pte", ["model.pte"], "int16", "float16", 128, 655360, {"z": 1, "a": 2}),
        places,
        vectors,
        {"arena_bytes": 12345678901234},
    )
    names = ("without_system", "user_to_assistant", "assistant_to_user", "generation")
    sizes = {"model.pte": size, "reference.safetensors": 3000, "tokenizer.json": 400, "z.txt": 50}
    manifest = Manifest(
        SCHEMA_VERSION,
        "2031-11-05T01:02:03+00:00",
        {"tiny-qmoe": "0.1.0"},
        ModelEntry(
            *("Kite-ß 🪁", 1234567, 4938268),
            {"model.safetensors": "5e" * 32},
            {"rms_norm_eps": 1e-05, "rope_theta": 1e16, "note": 'a "quote"\\ \n\t\x7f', "x": -0.0},
            Origin("owner/kite", "a1" * 20, "wing", None, {"BF16": 12}),
        ),
        {"scheme": "int8", "sparsity": None},
        None,
        QuantizationLoss("the built-in text", 1024, 0.0021, 2e-07, 0.98, 1.5, 27.104111766820612),
        Interface(512, 1024, "tokenizer", 0, [1, 4]),
        network,
        [artifact],
        ["Once upon a time"],
        ChatFormat({name: f"<|{name}|>" for name in names}, ["user"], "no system prompt"),
        ["It is small."],
        tensors,
        [LedgerRow(name, "all", n) for name, n in sizes.items()],
        [FileEntry(name, n, f"{i:02x}" * 32) for i, (name, n) in enumerate(sizes.items())],
    )
    return asdict(manifest)


def _tensor(name: str, rows: int, cols: int) -> TensorEntry:
    """A matrix of raw int8 levels, with a scale a row."""
    blob, scales = 64 + rows * cols, 4 * rows
    bits = round(8 * (blob + scales) / (rows * cols), 6)
    coded = ("int8", 255, cols, "float32", "raw", 8, 0, bits, 6.5, 0.0, 7, blob, scales)
    return TensorEntry(name, rows, cols, *coded, {"raw8": blob}, False)


def _laid_out(
    tensors: Sequence[TensorEntry], vectors: Mapping[str, int]
) -> tuple[dict[str, Location], dict[str, VectorLocation], int]:
    """Places one after the other on multiples of 64 bytes, and the size of the file in bytes."""
    at, found, placed = 4096, {}, {}
    for name, n in vectors.items():
        found[name] = VectorLocation("model.pte", at, n)
        at += -(-4 * n // 64) * 64
    for t in tensors:
        scales_at = at + -(-t.blob_bytes // 64) * 64
        placed[t.name] = Location(
            "model.pte", "tqlz", at, t.blob_bytes, scales_at, t.scales_bytes, 9
        )
        at = scales_at + -(-t.scales_bytes // 64) * 64
    return placed, found, at


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
    Edit("file_outside", "invalid", "../model.pte", set_("files", 0, "path", to="../model.pte")),
    Edit("absolute_file", "invalid", "/model.pte", set_("files", 0, "path", to="/model.pte")),
    Edit(
        "unlisted_weights",
        "invalid",
        "other.pte",
        set_("artifacts", 0, "places", EMBEDDING, "file", to="other.pte"),
    ),
)
# A bundle of other packages, which a session cannot run.
NO_PACKAGE = Edit("no_vectors", "no_package", "", set_("artifacts", 0, "vectors", to={}))


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
    for edit in (*EDITS, NO_PACKAGE):
        changed = copy.deepcopy(content)
        edit.change(changed)
        found[edit.name] = (edit.kind, edit.names, json.dumps(json.loads(sealed(changed))) + "\n")
    return found


def make_manifests(out: Path) -> None:
    """manifest.tsv and manifest/."""
    (out / "manifest").mkdir()
    lines: list[tuple[object, ...]] = []
    for name, (kind, names, text) in texts().items():
        (out / "manifest" / f"{name}.json").write_text(text, "utf-8")
        lines.append((f"manifest/{name}.json", kind, names or "-"))
    write_table(out / "manifest.tsv", "file kind names", lines)

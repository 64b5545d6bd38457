"""Edited manifests and recipes whose digests were made anew: refused, or read as the same model.

Only a signature can say that a manifest is the exporter's. What is shown here is that no edit makes
a reader fail otherwise than with a message, or compute something else in silence.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console

import tinyqmoe
from exporter import bundle as bundles
from exporter.bundle import Bundle
from exporter.cli.bundle_tables import bundle_view
from exporter.errors import BundleError, TinyQMoEError
from runtime_ref.coreml import expansion
from runtime_ref.device import prediction
from runtime_ref.residency import Residency
from tests.support import soak
from tests.support.bundles import copy, edit_manifest, write_small_bundle
from tests.support.edits import edited, paths

Raw = dict[str, Any]


def at(raw: Raw, *path: Any) -> Any:
    for step in path:
        raw = raw[step]
    return raw


def put(*path_and_value: Any) -> Callable[[Raw], None]:
    """An edit that puts a value at a path."""
    *way, key, value = path_and_value

    def edit(raw: Raw) -> None:
        at(raw, *way)[key] = value

    return edit


def drop(*path: Any) -> Callable[[Raw], None]:
    """An edit that takes away what is at a path."""
    *way, key = path

    def edit(raw: Raw) -> None:
        del at(raw, *way)[key]

    return edit


def again(name: str) -> Callable[[Raw], None]:
    """An edit that lists the first entry of a list twice."""
    return lambda raw: raw[name].append(raw[name][0])


PTE = ("artifacts", 0)
QUERY, KEY = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
NORM = "model.norm.weight"
EDITS: dict[str, tuple[Callable[[Raw], None], str]] = {
    "context of the network": (put("network", "context", 8), "interface.context is 16"),
    "vocabulary": (put("interface", "vocab_size", 300), "interface.vocab_size is 300"),
    "no layers": (put("network", "layers", 0), "network.layers is 0"),
    "a huge network": (put("network", "layers", 2**40), "network.layers is"),
    "many layers": (put("network", "layers", 9000), "9000 layers have others"),
    "heads": (put("network", "kv_heads", 3), "do not share 3 kv_heads"),
    "odd heads": (put("network", "head_dim", 3), "head_dim is 3"),
    "eps of config": (put("model", "config", {"rms_norm_eps": 1e-6}), "eps is 1e-05"),
    "heads of config": (put("model", "config", {"num_attention_heads": 4}), "network.heads is 2"),
    "eps": (put("network", "eps", 0.0), "eps is 0.0"),
    "a version of the network": (put("network", "version", 1), "network.version is 1"),
    "end of text": (put("interface", "eos_token_ids", [258]), "token 258 is outside"),
    "a rule": (put("interface", "bos_rule", "app"), "bos_rule 'app' is unknown"),
    "rows": (put("tensors", 1, "rows", 9), "is [9, 8], the network has [8, 8]"),
    "another matrix": (put("tensors", 1, "name", "x"), "the network has no such matrix"),
    "a matrix twice": (put("tensors", 1, "name", KEY), "is listed twice"),
    "no group": (put("tensors", 1, "group_size", 0), "group_size is 0"),
    "other groups": (put("tensors", 1, "group_size", 4), "scales_bytes is 32, expected 64"),
    "a type of scales": (put("tensors", 1, "scale_type", "e4m3"), "scale_type 'e4m3' is unknown"),
    "shorter scales": (
        put("tensors", 1, "scale_type", "ue6m10"),
        "scales_bytes is 32, expected 16",
    ),
    "bits": (put("tensors", 1, "bits_per_weight", 1.0), "bits_per_weight is 1.0"),
    "codec": (put("tensors", 1, "codec", "zip"), "codec 'zip'"),
    "zeros": (put("tensors", 1, "zeros", 1.5), "zeros is 1.5"),
    "a negative number": (put("tensors", 1, "cap", -1), "cap is -1"),
    "a great number": (put("ledger", 0, "n_bytes", 2**63), "n_bytes is 9223372036854775808"),
    "a place outside": (put(*PTE, "places", QUERY, "offset", 10**6), "ends past the end"),
    "places that overlap": (put(*PTE, "places", QUERY, "offset", 64), "overlap in model.pte"),
    "a place in another file": (
        put(*PTE, "places", QUERY, "file", "tokenizer.json"),
        "which is no file of model.pte",
    ),
    "a longer blob": (put(*PTE, "places", QUERY, "n_bytes", 33), "has 33 bytes, its blob has 32"),
    "a form": (put(*PTE, "places", QUERY, "form", "zip"), "form 'zip'"),
    "no place": (drop(*PTE, "places", QUERY), "is in tensors or in places only"),
    "scales": (put(*PTE, "places", QUERY, "scales_bytes", 4), "has 4 bytes of scales"),
    "an odd place": (put(*PTE, "vectors", NORM, "offset", 1), "not on a multiple of 4"),
    "a vector that was moved": (put(*PTE, "vectors", NORM, "offset", 0), "do not follow"),
    "a shorter vector": (put(*PTE, "vectors", NORM, "n", 4), "has 4 values, the network has 8"),
    "no vector": (drop(*PTE, "vectors", NORM), f"there is no vector {NORM}"),
    "a small cache": (put(*PTE, "kv_cache_bytes", 1), "kv_cache_bytes is 1, expected 256"),
    "calls": (put(*PTE, "prefill_tokens", 0), "prefill_tokens is 0"),
    "arena": (put(*PTE, "details", {}), "details.arena_bytes is not there"),
    "a text for a size": (put(*PTE, "details", "arena_bytes", "8"), "is no number of bytes"),
    "a file of the package": (put(*PTE, "files", ["other.pte"]), "other.pte is not listed"),
    "path of the package": (put(*PTE, "path", "x.pte"), "'x.pte' is none of the files"),
    "kind": (put(*PTE, "format", "onnx"), "format 'onnx' is unknown"),
    "two packages": (again("artifacts"), "two packages of pte"),
    "no package": (put("artifacts", []), "there is no artifact"),
    "a file twice": (again("files"), "is listed twice"),
    "a file as a folder": (put("files", 2, "path", "model.pte/x"), "is a file and a folder"),
    "the manifest itself": (put("files", 2, "path", "manifest.json"), "outside the bundle"),
    "a crooked path": (put("files", 2, "path", "./tokenizer.json"), "outside the bundle"),
    "a hash": (put("files", 0, "sha256", "0"), "is not 64 hex digits"),
    "no reference": (drop("files", 1), "reference.safetensors is not listed"),
    "a ledger": (put("ledger", 0, "n_bytes", 1), "the ledger has 1 bytes"),
    "a ledger of nothing": (put("ledger", 0, "file", "x"), "the ledger has x"),
    "no source": (put("model", "source_sha256", {}), "names no file that the weights"),
    "digest of a source": (
        put("model", "source_sha256", "model.safetensors", "0" * 63),
        "source_sha256.model.safetensors is not 64 hex digits",
    ),
    "a commit of nothing": (put("model", "origin", "repo_id", None), "without the repo_id"),
    "a commit of no adapter": (
        put("model", "origin", "adapter_revision", "0" * 40),
        "without the adapter",
    ),
    "an agreement": (put("quantization_loss", "top1_agreement", 2.0), "top1_agreement is 2.0"),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_does_not_hold_is_named(tmp_path: Path, what: str) -> None:
    small = write_small_bundle(tmp_path / "small")
    edit, named = EDITS[what]
    edit_manifest(small.path, edit)
    with pytest.raises(BundleError, match="is not valid") as caught:
        Bundle.open(small.path)
    assert [problem for problem in caught.value.problems if named in problem]


TEXTS = {
    "a member twice": ('{"schema_version": 10, "schema_version": 10}', "there twice"),
    "no number": ('{"schema_version": NaN}', "not JSON compliant"),
    "infinity": ('{"schema_version": 1e999}', "not JSON compliant"),
    "half a character": (r'{"schema_version": "\ud800"}', "surrogates not allowed"),
    "a long number": ('{"schema_version": ' + "1" * 5000 + "}", "4300 digits"),
    "nested": ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
    "large": (" " * (17 << 20), "expected at most"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_what_readers_understand_differently_is_refused(tmp_path: Path, what: str) -> None:
    small = write_small_bundle(tmp_path / "small")
    text, named = TEXTS[what]
    (small.path / bundles.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=named):
        Bundle.open(small.path)


# ---- random edits


def logits(bundle: Bundle) -> bytes:
    runner = tinyqmoe.open_runner(bundle, backend="native", threads=1)
    return runner.forward([0, 5, 9, 77], 0).tobytes()


def use(bundle: Bundle) -> None:
    """All that is made of a manifest without running a program."""
    bundle.verify()
    rich.console.Console(file=io.StringIO()).print(bundle_view(bundle, tensors=True))
    for artifact in bundle.manifest.artifacts:
        prediction.predict(bundle.manifest, artifact, Residency("stream")).to_dict()
        if artifact.format == "mlprogram":
            expansion.load_recipe(bundle, artifact)


def check_edits(both: Bundle, folder: Path, n: int, seed: int) -> None:
    """Opens and uses a bundle with each of `n` random edits of its manifest."""
    edited_bundle, right = copy(both, folder), logits(both)
    raw = json.loads((both.path / bundles.MANIFEST).read_text())
    del raw[bundles.DIGEST]
    places, rng, accepted = list(paths(raw)), random.Random(seed), 0
    for _ in range(n):
        new, what = edited(raw, rng, places)
        (edited_bundle.path / bundles.MANIFEST).write_text(bundles.sealed(new))
        try:
            opened = Bundle.open(edited_bundle.path)
            use(opened)
            assert logits(opened) == right, what
            accepted += 1
        except TinyQMoEError:
            continue
        except Exception as error:
            raise AssertionError(what) from error
    assert 0 < accepted < n // 2


def test_edited_manifests_are_refused_or_mean_the_same(both: Bundle, tmp_path: Path) -> None:
    check_edits(both, tmp_path / "edited", 250, seed=1)


@pytest.mark.long
def test_many_edited_manifests(
    both: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what, n = "edited manifests", soak.share(20_000)
    check_edits(both, tmp_path / "edited", n, seed=2 + soak.totals()[what])
    soak.add(capsys, what, n)


def test_edited_recipes_are_refused_or_make_the_same_package(both: Bundle, tmp_path: Path) -> None:
    foreign = copy(both, tmp_path / "foreign")
    artifact = foreign.artifact("mlprogram")
    file = foreign.file(artifact.details["recipe"])
    raw, rng, accepted = json.loads(file.read_text()), random.Random(3), 0
    places = list(paths(raw))
    for _ in range(250):
        new, what = edited(raw, rng, places)
        file.write_text(json.dumps(new))
        try:
            recipe = expansion.load_recipe(foreign, artifact)
            expansion.expand(foreign, recipe, tmp_path / artifact.path, lambda done, total: None)
            accepted += 1
        except TinyQMoEError:
            continue
        except Exception as error:
            raise AssertionError(what) from error
        for entry in foreign.manifest.expanded:
            assert bundles.sha256(tmp_path / entry.path) == entry.sha256, what
    assert accepted < 125

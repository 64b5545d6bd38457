"""The bundle: its manifest, what happens to damaged ones, and that it appears whole or not at
all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter import bundle as bundles
from exporter.bundle import Bundle, read_manifest
from exporter.codec import reference
from exporter.errors import BundleError, OutOfSpaceError, UsageError
from exporter.staging import staging_directory
from tests.support.bundles import (
    as_dict,
    copy,
    edit_manifest,
    place,
    write_small_bundle,
)


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return write_small_bundle(tmp_path / "small")


def check(path: Path) -> None:
    """What every command does before it uses a bundle."""
    Bundle.open(path).verify()


# ---- the manifest


def test_manifest_survives_json(small: Bundle, bundle: Bundle) -> None:
    for manifest in (small.manifest, bundle.manifest):
        assert read_manifest(json.loads(manifest.to_json())) == manifest


def test_manifest_json_is_standard(bundle: Bundle) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((bundle.path / bundles.MANIFEST).read_text(), parse_constant=refuse)


MISTYPED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "text for a number": (
        lambda m: m["interface"].update(context="48"),
        "interface.context must be int",
    ),
    "true for a number": (
        lambda m: m["interface"].update(context=True),
        "interface.context must be int",
    ),
    "a float for an integer": (
        lambda m: m["tensors"][0].update(rows=4.0),
        "tensors[0].rows must be int",
    ),
    "a number for a truth": (
        lambda m: m["tensors"][0].update(own_levels=1),
        "tensors[0].own_levels must be bool",
    ),
    "null for text": (lambda m: m.update(created=None), "created must be str"),
    "a list for an object": (lambda m: m.update(interface=[]), "interface must be an object"),
    "an object for a list": (lambda m: m.update(files={}), "files must be list[FileEntry]"),
    "a number in a list of objects": (lambda m: m["files"].append(3), "files[3] must be an object"),
    "text in a list of integers": (
        lambda m: m["interface"].update(eos_token_ids=["2"]),
        "interface.eos_token_ids",
    ),
    "a list in a map of integers": (
        lambda m: m["artifacts"][0].update(operators={"a": []}),
        "artifacts[0].operators",
    ),
    "a number in a list of texts": (lambda m: m.update(prompts=[1]), "prompts"),
    "missing": (lambda m: m["interface"].pop("context"), "interface.context is missing"),
    "missing in a list": (lambda m: m["tensors"][0].pop("codec"), "tensors[0].codec is missing"),
    "unknown": (lambda m: m.update(colour="red"), "colour is unknown"),
    "unknown inside": (lambda m: m["model"].update(colour="red"), "model.colour is unknown"),
}


@pytest.mark.parametrize("what", MISTYPED)
def test_wrong_fields_are_named(small: Bundle, what: str) -> None:
    change, named = MISTYPED[what]
    edit_manifest(small.path, change)
    with pytest.raises(BundleError) as caught:
        Bundle.open(small.path)
    assert len(caught.value.problems) == 1
    assert named in caught.value.problems[0]


def test_all_wrong_fields_are_named_at_once(small: Bundle) -> None:
    raw = as_dict(small)
    del raw["tools"]
    raw["interface"]["context"] = None
    raw["extra"] = 1
    with pytest.raises(BundleError) as caught:
        read_manifest(json.loads(bundles.sealed(raw)))
    assert sorted(p.split()[0] for p in caught.value.problems) == [
        "extra",
        "interface.context",
        "tools",
    ]


@pytest.mark.parametrize("version", [0, bundles.SCHEMA_VERSION + 1, "1", None])
def test_another_schema_version_is_refused_before_anything_else(version: object) -> None:
    with pytest.raises(BundleError, match="schema version") as caught:
        read_manifest({"schema_version": version, "what": "a later tool writes other fields"})
    assert "export again" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '"text"', "\ufeff{}", "[" * 100_000], ids=lambda t: repr(t[:8])
)
def test_a_manifest_that_is_no_object_is_refused(small: Bundle, text: str) -> None:
    (small.path / bundles.MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(small.path)


def test_a_truncated_manifest_is_refused_wherever_it_ends(small: Bundle) -> None:
    file = small.path / bundles.MANIFEST
    whole = file.read_bytes().rstrip()
    for n in range(0, len(whole), 37):
        file.write_bytes(whole[:n])
        with pytest.raises(BundleError):
            Bundle.open(small.path)


def test_bytes_that_are_not_utf8_are_refused(small: Bundle) -> None:
    (small.path / bundles.MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleError, match="not JSON"):
        Bundle.open(small.path)


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such directory"):
        Bundle.open(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"it has no manifest\.json"):
        Bundle.open(tmp_path)


# ---- damage


def remove(path: Path) -> None:
    (path / bundles.PROGRAM).unlink()


def add(path: Path) -> None:
    """A package of a listed file, and one beside it that is not."""
    (path / "deeper").mkdir()
    (path / "deeper" / "listed.bin").write_bytes(b"")
    (path / "deeper" / "extra.bin").write_bytes(b"x")
    listed = {"path": "deeper/listed.bin", "n_bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit_manifest(path, lambda m: m["files"].append(listed))


def flip(path: Path) -> None:
    data = bytearray((path / bundles.PROGRAM).read_bytes())
    data[-1] ^= 1
    (path / bundles.PROGRAM).write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path / bundles.REFERENCE, 3)


def swap_for_directory(path: Path) -> None:
    remove(path)
    (path / bundles.PROGRAM).mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (remove, "model.pte is missing"),
    "extra file": (add, "deeper/extra.bin is not in the manifest"),
    "changed byte": (flip, "model.pte has been changed"),
    "truncated file": (cut, "reference.safetensors has 3 bytes, expected 15"),
    "directory for a file": (swap_for_directory, "model.pte is missing"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(small: Bundle, what: str) -> None:
    check(small.path)
    damage, named = DAMAGE[what]
    damage(small.path)
    with pytest.raises(BundleError, match="is damaged") as caught:
        check(small.path)
    assert [p for p in caught.value.problems if named in p]


@pytest.mark.parametrize(
    "name", [".DS_Store", "README.md", ".gitattributes", "run.json", ".cache/huggingface/x.lock"]
)
def test_a_foreign_file_is_no_damage(small: Bundle, name: str) -> None:
    size = small.size_bytes
    (small.path / name).parent.mkdir(parents=True, exist_ok=True)
    (small.path / name).write_text("not ours")
    check(small.path)
    assert small.size_bytes == size


def test_all_damage_is_named_at_once(small: Bundle) -> None:
    for damage in (remove, add, cut):
        damage(small.path)
    with pytest.raises(BundleError) as caught:
        check(small.path)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "path", ["../outside.bin", "/etc/hostname", "deeper/../../outside.bin", "nul\0byte"]
)
def test_a_path_out_of_the_bundle_is_refused(small: Bundle, path: str) -> None:
    (small.path.parent / "outside.bin").write_bytes(b"x")
    edit_manifest(
        small.path, lambda m: m["files"].append({"path": path, "n_bytes": 1, "sha256": "0" * 64})
    )
    with pytest.raises(BundleError, match="is not valid") as caught:
        check(small.path)
    assert [p for p in caught.value.problems if repr(path) in p]


def test_a_link_out_of_the_bundle_is_refused(small: Bundle) -> None:
    outside = small.path.parent / "outside.bin"
    shutil.move(small.path / bundles.PROGRAM, outside)
    (small.path / bundles.PROGRAM).symlink_to(outside)
    with pytest.raises(BundleError, match="outside the bundle"):
        check(small.path)


# ---- a real one


def test_an_exported_bundle_is_whole(bundle: Bundle) -> None:
    bundle.verify()
    assert sorted(f.path for f in bundle.manifest.files) == [
        "chat_template.jinja",
        "generation_config.json",
        "model.pte",
        "reference.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("which", ["bundle", "other_bundle"])
def test_the_ledger_sums_to_the_bytes_on_disk(which: str, request: pytest.FixtureRequest) -> None:
    made: Bundle = request.getfixturevalue(which)
    on_disk = sum(f.stat().st_size for f in made.path.rglob("*") if f.is_file())
    assert sum(row.n_bytes for row in made.ledger) == made.size_bytes == on_disk
    for file in made.path.rglob("*"):
        name = file.relative_to(made.path).as_posix()
        if file.is_file():
            assert (
                sum(row.n_bytes for row in made.ledger if row.file == name) == file.stat().st_size
            ), name


@pytest.mark.parametrize("which", ["bundle", "other_bundle"])
def test_the_manifest_says_where_each_matrix_is(which: str, request: pytest.FixtureRequest) -> None:
    import numpy as np

    made: Bundle = request.getfixturevalue(which)
    program = (made.path / bundles.PROGRAM).read_bytes()
    for entry in made.manifest.tensors[:3]:
        at = place(made, entry.name)
        assert (at.file, at.form, at.n_bytes) == (bundles.PROGRAM, "tqlz", entry.blob_bytes)
        levels = reference.decode(program[at.offset : at.offset + at.n_bytes])
        assert levels.shape == (entry.rows, entry.cols)
        assert np.mean(levels == 0) == pytest.approx(entry.zeros, abs=1e-6)
        codes = np.frombuffer(program, "<u2", entry.scales_bytes // 2, at.scales_offset)
        assert codes.size == entry.rows * -(-entry.cols // entry.group_size)
        assert (entry.scale_type, (codes > 0).all()) == ("ue6m10", True)
        bits = 8 * (entry.blob_bytes + entry.scales_bytes) / (entry.rows * entry.cols)
        assert entry.bits_per_weight == pytest.approx(bits, abs=1e-6)


@pytest.mark.parametrize("which", ["bundle", "other_bundle"])
def test_the_manifest_says_where_each_vector_is(which: str, request: pytest.FixtureRequest) -> None:
    import numpy as np

    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.models.config import rope_frequencies

    made: Bundle = request.getfixturevalue(which)
    source = "checkpoint" if which == "bundle" else "other_checkpoint"
    checkpoint = Checkpoint.open(request.getfixturevalue(source))
    expected = checkpoint.vectors() | {"rope.frequencies": rope_frequencies(checkpoint.config)}
    data = (made.path / bundles.PROGRAM).read_bytes()
    artifact = made.artifact("pte")
    assert artifact.vectors.keys() == expected.keys()
    for name, at in artifact.vectors.items():
        assert (at.file, at.offset % 4) == (bundles.PROGRAM, 0)
        values = np.frombuffer(data, "<f4", at.n, at.offset)
        assert values.tobytes() == expected[name].numpy().tobytes()


def test_the_manifest_has_the_sizes_of_the_network(other_bundle: Bundle) -> None:
    network, config = other_bundle.manifest.network, other_bundle.manifest.model.config
    assert network.version == bundles.NETWORK_VERSION
    assert (network.hidden, network.inner) == (config["hidden_size"], config["intermediate_size"])
    assert (network.layers, network.heads) == (1, config["num_attention_heads"])
    assert (network.kv_heads, network.head_dim) == (4, config["head_dim"])
    assert network.vocab == other_bundle.manifest.interface.vocab_size
    assert network.context == other_bundle.manifest.interface.context
    assert network.eps == config["rms_norm_eps"]


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 9.999999747378752e-06, 0.1, 1 / 3e5, 1.00000001e-5])
def test_eps_has_few_digits_that_are_its_float32(eps: float) -> None:
    import numpy as np

    from exporter.backends.package import _shortest

    short = _shortest(eps)
    assert np.float32(short) == np.float32(eps)
    assert len(repr(short).split("e")[0].replace(".", "").lstrip("0")) <= 9


# ---- writing


def names(path: Path) -> list[str]:
    """Of everything in a directory, hidden things too."""
    return sorted(os.listdir(path))


@contextlib.contextmanager
def new_bundle(out: Path, *, force: bool) -> Iterator[Path]:
    """The directory of the bundle being made, of an export that starts from the beginning."""
    with staging_directory(out, {}, force=force, resume=False) as place:
        yield place.bundle


def test_a_new_bundle_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with new_bundle(out, force=False) as work:
        (work / "file").write_text("x")
        assert not out.exists()
    assert names(out.parent) == ["out"]
    assert names(out) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, PermissionError])
def test_nothing_is_left_of_a_failed_export(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_bundle(tmp_path / "out", force=False) as work:  # noqa: PT012
        (work / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_a_failed_export_leaves_the_old_bundle(small: Bundle) -> None:
    with pytest.raises(ValueError, match="midway"), new_bundle(small.path, force=True) as work:  # noqa: PT012
        (work / "file").write_text("x")
        raise ValueError("midway")
    check(small.path)
    assert names(small.path.parent) == ["small"]


def test_a_rename_that_fails_leaves_the_old_bundle(
    small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if str(source).endswith(".partial/bundle"):
            raise PermissionError(errno.EACCES, "no")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PermissionError), new_bundle(small.path, force=True):
        pass
    check(small.path)
    assert names(small.path.parent) == ["small"]


def test_an_existing_bundle_is_refused_without_force(small: Bundle) -> None:
    with (
        pytest.raises(UsageError, match="already exists") as caught,
        new_bundle(small.path, force=False),
    ):
        pytest.fail("the work began")
    assert "--force" in caught.value.hint
    check(small.path)


def test_force_replaces_a_bundle(small: Bundle) -> None:
    with new_bundle(small.path, force=True) as work:
        (work / "only").write_text("x")
    assert names(small.path) == ["only"]
    assert names(small.path.parent) == ["small"]


def test_an_empty_directory_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_bundle(tmp_path / "out", force=False) as work:
        (work / "only").write_text("x")
    assert names(tmp_path / "out") == ["only"]


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_force_replaces_only_bundles(tmp_path: Path, small: Bundle, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    elif kind == "link":
        out.symlink_to(small.path)
    else:
        out.mkdir()
        (out / "precious").write_text("x")
    with pytest.raises(UsageError, match="replaces only bundles"), new_bundle(out, force=True):
        pytest.fail("the work began")
    assert os.path.lexists(out)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    with (  # noqa: PT012
        pytest.raises(OutOfSpaceError, match="full"),
        new_bundle(tmp_path / "out", force=False) as work,
    ):
        (work / "file").write_text("x")
        raise OSError(code, "no space")
    assert names(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skips where it cannot be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("NOT TESTED on a real full disk: mounting needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    with pytest.raises(OutOfSpaceError), new_bundle(tiny_disk / "out", force=False) as work:
        (work / "file").write_bytes(bytes(2 << 20))
    assert names(tiny_disk) == []


def test_a_full_disk_while_the_answers_are_written(tiny_disk: Path) -> None:
    import torch

    from exporter.reference.answers import write_tensors

    with pytest.raises(OutOfSpaceError), new_bundle(tiny_disk / "out", force=False) as work:  # noqa: PT012
        (work / "filler").write_bytes(bytes((1 << 20) - 8192))
        write_tensors({"prompt.0": torch.zeros(10_000)}, work / bundles.REFERENCE)
    assert names(tiny_disk) == []


def test_copies_of_a_bundle_are_bundles(bundle: Bundle, tmp_path: Path) -> None:
    copy(bundle, tmp_path / "elsewhere").verify()

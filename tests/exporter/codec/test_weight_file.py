"""The coded weights of an ML Program and their expansion: round trips, interruptions, damage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.codec import weight_file
from exporter.codec.encoder import encode
from exporter.codec.weight_file import Piece, Recipe, WeightFile, expand, pack_uint2, unpack_uint2
from exporter.errors import BundleError, OutOfSpaceError, UsageError

TERNARY, WHOLE = (37, 50), (5, 9)  # 1850 levels: the last byte of the first matrix is not full


@given(st.lists(st.integers(-1, 1), max_size=100))
def test_packing_comes_back_and_is_as_documented(levels: list[int]) -> None:
    packed = pack_uint2(np.array(levels, np.int8))
    assert packed.size == -(-len(levels) // 4)
    assert unpack_uint2(packed, len(levels)).tolist() == levels
    bits = sum((level + 1) << (2 * i) for i, level in enumerate(levels))
    assert int.from_bytes(packed.tobytes(), "little") == bits


def weights() -> tuple[np.ndarray, np.ndarray]:
    """Levels of a ternary and of an int8 matrix."""
    random = np.random.default_rng(0)
    return random.integers(-1, 2, TERNARY).astype(np.int8), random.integers(
        -127, 128, WHOLE
    ).astype(np.int8)


def made(directory: Path) -> tuple[Recipe, dict[str, bytes]]:
    """A bundle of a template and a coded file, and what its two weight files must be."""
    template = directory / "t.mlpackage" / "Data"
    template.mkdir(parents=True)
    (template / "model.mlmodel").write_bytes(b"a model")
    (directory / "t.mlpackage" / "Manifest.json").write_bytes(b"{}")
    ternary, whole = weights()
    blobs = [
        bytes(encode(ternary, -1, 3, "lzw").blob),
        bytes(encode(whole, -127, 255, "auto").blob),
    ]
    expected = [b"head" + pack_uint2(ternary).tobytes() + b"tail", whole.tobytes()]
    parts = [
        ("bytes", b"head", 4),
        ("uint2", blobs[0], 463),
        ("bytes", b"tail", 4),
        ("int8", blobs[1], 45),
    ]
    pieces, coded = [], b""
    for form, data, n_bytes in parts:
        coded += bytes(-len(coded) % 64)
        pieces.append(Piece(form, n_bytes, len(coded), len(data)))
        coded += data
    (directory / "coded").write_bytes(coded)
    names = ["Data/weights/weight.bin", "Data/weights/weight-1.bin"]
    files = [
        WeightFile(name, len(content), hashlib.sha256(content).hexdigest(), own)
        for name, content, own in zip(names, expected, (pieces[:3], pieces[3:]), strict=True)
    ]
    return Recipe(1, "t.mlpackage", "m.mlpackage", "coded", files), dict(
        zip(names, expected, strict=True)
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return made(tmp_path)[0]


def files(package: Path) -> dict[str, bytes]:
    return {
        f.relative_to(package).as_posix(): f.read_bytes() for f in package.rglob("*") if f.is_file()
    }


def test_an_expanded_package_is_template_and_weights(tmp_path: Path) -> None:
    recipe, expected = made(tmp_path)
    done: list[int] = []
    expand(tmp_path, recipe, tmp_path / "m.mlpackage", done.append)
    assert files(tmp_path / "m.mlpackage") == expected | {
        "Data/model.mlmodel": b"a model",
        "Manifest.json": b"{}",
    }
    assert sum(done) == sum(map(len, expected.values()))
    assert sorted(os.listdir(tmp_path)) == ["coded", "m.mlpackage", "t.mlpackage"]


def test_the_hash_needs_no_file(tmp_path: Path, recipe: Recipe) -> None:
    coded = np.memmap(tmp_path / "coded", dtype=np.uint8, mode="r")
    for file in recipe.weight_files:
        assert weight_file.sha256_of(coded, file.pieces, lambda n: None) == file.sha256


def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_blocks_of_a_large_matrix_join(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe, expected = made(tmp_path)
    monkeypatch.setattr(weight_file, "BLOCK_WEIGHTS", 4 * TERNARY[1])  # four rows at a time
    expand(tmp_path, recipe, tmp_path / "m.mlpackage", lambda n: None)
    assert expected.items() <= files(tmp_path / "m.mlpackage").items()


@pytest.mark.parametrize("present", [0, 3, 4, 100, 467, 470, 471])
def test_an_interrupted_expansion_goes_on(
    tmp_path: Path, present: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole pieces that are there are kept, and hashed again; the torn one is written anew."""
    recipe, expected = made(tmp_path)
    content = expected["Data/weights/weight.bin"]
    staging = tmp_path / ".m.mlpackage.partial" / "new" / "Data" / "weights"
    staging.mkdir(parents=True)
    (staging / "weight.bin").write_bytes(content[:present])
    expanded: list[int] = []
    real = weight_file.expanded
    monkeypatch.setattr(
        weight_file, "expanded", lambda coded, p: expanded.append(p.n_bytes) or real(coded, p)
    )
    expand(tmp_path, recipe, tmp_path / "m.mlpackage", lambda n: None)
    assert expected.items() <= files(tmp_path / "m.mlpackage").items()
    pieces = recipe.weight_files[0].pieces
    ends = np.cumsum([p.n_bytes for p in pieces])
    assert expanded == [
        *(p.n_bytes for p, end in zip(pieces, ends, strict=True) if end > present),
        45,
    ]


def test_a_partial_file_that_was_damaged_is_seen_and_made_anew(tmp_path: Path) -> None:
    recipe, expected = made(tmp_path)
    staging = tmp_path / ".m.mlpackage.partial" / "new" / "Data" / "weights"
    staging.mkdir(parents=True)
    (staging / "weight.bin").write_bytes(
        b"HEAD" + expected["Data/weights/weight.bin"][4:467] + b"too long by far"
    )
    with pytest.raises(BundleError, match="another SHA-256"):
        expand(tmp_path, recipe, tmp_path / "m.mlpackage", lambda n: None)
    assert not (tmp_path / "m.mlpackage").exists()
    expand(tmp_path, recipe, tmp_path / "m.mlpackage", lambda n: None)
    assert expected.items() <= files(tmp_path / "m.mlpackage").items()


def old_package(path: Path) -> None:
    path.mkdir()
    (path / "Manifest.json").write_text("{}")
    (path / "old").write_text("old")


def test_an_existing_package_is_replaced_when_the_new_one_is_whole(
    tmp_path: Path, recipe: Recipe
) -> None:
    target = tmp_path / "m.mlpackage"
    old_package(target)
    seen = []
    expand(tmp_path, recipe, target, lambda n: seen.append(files(target)))
    assert all(each == {"Manifest.json": b"{}", "old": b"old"} for each in seen)
    assert "old" not in files(target)
    assert sorted(os.listdir(tmp_path)) == ["coded", "m.mlpackage", "t.mlpackage"]


@pytest.mark.parametrize("kind", ["file", "directory", "link", "web app"])
def test_what_is_no_package_is_not_replaced(tmp_path: Path, recipe: Recipe, kind: str) -> None:
    target, kept = tmp_path / "m.mlpackage", tmp_path / "kept"
    old_package(kept)
    if kind == "link":
        target.symlink_to(kept)
    elif kind == "file":
        target.write_text("old")
    else:
        target.mkdir()
    if kind == "web app":
        (target / "Manifest.json").write_text('{"name": "a page"}')
    with pytest.raises(UsageError, match="exists and is not a Core ML package"):
        expand(tmp_path, recipe, target, lambda n: None)
    assert files(kept) == {"Manifest.json": b"{}", "old": b"old"}
    is_kept = {"link": target.is_symlink, "file": target.is_file}.get(kind, target.is_dir)
    assert is_kept()
    assert not weight_file.staging_path(target).exists()


class KilledError(BaseException):
    """As if the process ended there."""


@pytest.mark.parametrize(
    "moment", ["second file", "old package out", "new package in", "work removed"]
)
def test_a_process_may_be_killed_at_any_moment(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is at the target then is the old package, the new one or nothing; and the next try makes
    it the new one."""
    recipe, expected = made(tmp_path)
    target, old = tmp_path / "m.mlpackage", {"Manifest.json": b"{}", "old": b"old"}
    old_package(target)

    def killed(owner: Any, name: str, when: Callable[..., bool]) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            if when(*args):
                raise KilledError
            return real(*args, **options)

        monkeypatch.setattr(owner, name, call)

    if moment == "second file":
        killed(
            weight_file,
            "_expand_file",
            lambda coded, file, path, progress: file == recipe.weight_files[1],
        )
    elif moment == "work removed":
        killed(shutil, "rmtree", lambda path: path == weight_file.staging_path(target))
    else:
        killed(
            os,
            "rename",
            lambda source, to: target == (source if moment == "old package out" else to),
        )
    with pytest.raises(KilledError):
        expand(tmp_path, recipe, target, lambda n: None)
    monkeypatch.undo()
    whole = expected | {"Data/model.mlmodel": b"a model", "Manifest.json": b"{}"}
    assert files(target) == {"new package in": {}, "work removed": whole}.get(moment, old)
    expand(tmp_path, recipe, target, lambda n: None)
    assert expected.items() <= files(target).items()
    assert "old" not in files(target)
    assert sorted(os.listdir(tmp_path)) == ["coded", "m.mlpackage", "t.mlpackage"]


def test_damaged_codes_are_an_error(tmp_path: Path, recipe: Recipe) -> None:
    coded = bytearray((tmp_path / "coded").read_bytes())
    at = recipe.weight_files[0].pieces[1].coded_offset
    coded[at] ^= 1  # the magic of the blob
    (tmp_path / "coded").write_bytes(coded)
    with pytest.raises(BundleError, match="BAD_MAGIC"):
        expand(tmp_path, recipe, tmp_path / "m.mlpackage", lambda n: None)
    assert not (tmp_path / "m.mlpackage").exists()


def test_a_changed_literal_is_an_error(tmp_path: Path, recipe: Recipe) -> None:
    coded = bytearray((tmp_path / "coded").read_bytes())
    coded[0] ^= 1
    (tmp_path / "coded").write_bytes(coded)
    with pytest.raises(BundleError, match=r"weight\.bin was rebuilt with another SHA-256"):
        expand(tmp_path, recipe, tmp_path / "m.mlpackage", lambda n: None)


def test_a_truncated_coded_file_is_an_error(tmp_path: Path, recipe: Recipe) -> None:
    with (tmp_path / "coded").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(BundleError, match="the coded file ends at 100 bytes"):
        expand(tmp_path, recipe, tmp_path / "m.mlpackage", lambda n: None)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(OutOfSpaceError, match=r"needs 0\.02 GB"):
        expand(tmp_path, recipe, tmp_path / "m.mlpackage", lambda n: None)
    assert sorted(os.listdir(tmp_path)) == ["coded", "t.mlpackage"]


def broken(recipe: Recipe, **changes: Any) -> str:
    raw = json.loads(recipe.to_json())
    raw["weight_files"][0]["pieces"][1].update(changes)
    return json.dumps(raw)


@pytest.mark.parametrize(
    "changes",
    [{"form": "uint4"}, {"n_bytes": 1}, {"coded_offset": -1}, {"coded_bytes": 1.5}, {"more": 1}],
)
def test_a_wrong_piece_is_refused(recipe: Recipe, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="recipe of the weight file"):
        Recipe.from_json(broken(recipe, **changes))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1}', "[" * 100_000])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="damaged"):
        Recipe.from_json(text)


def test_a_recipe_of_another_version_is_refused(recipe: Recipe) -> None:
    with pytest.raises(BundleError) as caught:
        Recipe.from_json(recipe.to_json().replace('"version": 1', '"version": 2'))
    assert caught.value.problems == ["version 2, expected 1"]


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x"])
def test_a_path_that_leads_outside_is_refused(recipe: Recipe, path: str) -> None:
    with pytest.raises(BundleError) as caught:
        Recipe.from_json(recipe.to_json().replace("Data/weights/weight.bin", path))
    assert "outside" in caught.value.problems[0]

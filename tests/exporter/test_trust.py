"""What a bundle from a stranger, or a folder of the user's, cannot make the tool do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter import real_files
from exporter.bundle import MANIFEST, Bundle
from exporter.cli.bundle_tables import summary_table
from exporter.codec import weight_file
from exporter.errors import BundleError, UsageError
from exporter.staging import staging_directory
from runtime_ref.coreml import expansion
from tests.support.bundles import (
    copy,
    edit_manifest,
    write_small_bundle,
)

SECRET = "kept"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder of the user's, outside of every bundle."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "secret.bin").write_text(SECRET)
    return folder


def is_untouched(private: Path) -> bool:
    names = [path.name for path in private.iterdir()]
    return names == ["secret.bin"] and (private / "secret.bin").read_text() == SECRET


def expand(bundle: Bundle) -> Path:
    recipe = expansion.load_recipe(bundle, bundle.artifact("mlprogram"))
    target = bundle.path / recipe.package
    expansion.expand(bundle, recipe, target, lambda done, total: None)
    return target


@pytest.fixture
def foreign(both: Bundle, tmp_path: Path) -> Bundle:
    """A bundle from a stranger, with an ML Program."""
    return copy(both, tmp_path / "foreign")


# ---- expansion


def link_to_folder(work: Path, private: Path) -> None:
    (work / "new").mkdir(parents=True)
    (work / "new" / "Data").symlink_to(private)


def link_to_file(work: Path, private: Path) -> None:
    (work / "new").mkdir(parents=True)
    (work / "new" / "Manifest.json").symlink_to(private / "secret.bin")


def second_name(work: Path, private: Path) -> None:
    (work / "new").mkdir(parents=True)
    os.link(private / "secret.bin", work / "new" / "Manifest.json")


def link_for_the_work_folder(work: Path, private: Path) -> None:
    work.symlink_to(private)


def another_folder(work: Path, private: Path) -> None:
    work.mkdir()
    (work / "thesis.txt").write_text("years of work")


@pytest.mark.parametrize(
    "plant",
    [link_to_folder, link_to_file, second_name, link_for_the_work_folder, another_folder],
)
def test_an_expansion_writes_through_no_link(
    foreign: Bundle, private: Path, plant: Callable[[Path, Path], None]
) -> None:
    recipe = expansion.load_recipe(foreign, foreign.artifact("mlprogram"))
    work = weight_file.staging_path(foreign.path / recipe.package)
    plant(work, private)
    with pytest.raises(UsageError, match="is not a work folder of this tool"):
        expand(foreign)
    assert is_untouched(private)
    assert work.is_symlink() or work.is_dir()


def test_a_linked_folder_in_a_template_does_not_get_into_the_package(
    foreign: Bundle, private: Path
) -> None:
    recipe = expansion.load_recipe(foreign, foreign.artifact("mlprogram"))
    (foreign.path / recipe.template / "Data" / "more").symlink_to(private)
    with pytest.raises(BundleError, match="is damaged") as caught:
        foreign.verify()
    assert "Data/more is not in the manifest" in caught.value.problems[0]
    with pytest.raises(BundleError, match="holds links where an expansion reads") as caught:
        expand(foreign)
    assert caught.value.problems == ["Data/more"]
    assert not (foreign.path / recipe.package).exists()


def test_a_linked_coded_file_is_not_read(foreign: Bundle, private: Path) -> None:
    recipe = expansion.load_recipe(foreign, foreign.artifact("mlprogram"))
    coded = foreign.path / recipe.coded_file
    shutil.move(coded, private.parent / "coded")
    coded.symlink_to(private.parent / "coded")
    with pytest.raises(BundleError, match="holds links where an expansion reads"):
        expand(foreign)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"coded_file": "../private/secret.bin"}, "outside the bundle"),
        ({"coded_file": "sub/coded"}, "is not the name of a file of the bundle"),
        ({"template": "."}, "is not the name of a package"),
        ({"package": "Documents"}, "is not the name of a package"),
        ({"package": "model.template.mlpackage"}, "the template is the package"),
    ],
)
def test_a_recipe_names_only_its_own_files(
    foreign: Bundle, changes: dict[str, str], named: str
) -> None:
    path = foreign.file(foreign.artifact("mlprogram").details["recipe"])
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BundleError, match="is not valid") as caught:
        expand(foreign)
    assert any(named in problem for problem in caught.value.problems)


# ---- verify


@pytest.mark.parametrize("name", ["model.pte", "tokenizer.json"])
def test_a_link_is_no_file_of_a_bundle(foreign: Bundle, name: str) -> None:
    """Not even to a file in the bundle: what it points to may be another a moment later."""
    (foreign.path / name).rename(foreign.path / "elsewhere")
    (foreign.path / name).symlink_to("elsewhere")
    with pytest.raises(BundleError, match="is damaged") as caught:
        foreign.verify()
    assert caught.value.problems == [
        f"{name} is a link, or lies behind one: copy what it points to"
    ]


def test_hidden_files_in_a_package_are_named(foreign: Bundle) -> None:
    template = expansion.load_recipe(foreign, foreign.artifact("mlprogram")).template
    (foreign.path / template / ".hidden").write_text("x")
    with pytest.raises(BundleError, match="is damaged") as caught:
        foreign.verify()
    assert caught.value.problems == [f"{template}/.hidden is not in the manifest"]


def test_foreign_files_beside_the_packages_are_shown(tmp_path: Path) -> None:
    small = write_small_bundle(tmp_path / "small")
    (small.path / ".DS_Store").write_text("x")
    (small.path / "loop").symlink_to(small.path)
    small.verify()
    assert small.foreign_files == [".DS_Store", "loop"]
    labels = list(summary_table(small).columns[0].cells)
    assert "not of the bundle" in labels


# ---- OUT and its work directory


def fill(out: Path) -> None:
    with staging_directory(out, {}, force=True, resume=False) as place:
        write_small_bundle(place.bundle / "x")


def test_a_linked_work_directory_is_not_emptied(tmp_path: Path, private: Path) -> None:
    (tmp_path / ".out.partial").symlink_to(private)
    with pytest.raises(UsageError, match="is not a work directory of this tool"):
        fill(tmp_path / "out")
    assert is_untouched(private)


@pytest.mark.parametrize("name", ["thesis.txt", "coded/link"])
def test_a_work_directory_that_is_not_ours_is_kept(
    tmp_path: Path, private: Path, name: str
) -> None:
    path = tmp_path / ".out.partial" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(private / "secret.bin")
    with pytest.raises(UsageError, match="is not a work directory of this tool") as caught:
        fill(tmp_path / "out")
    assert caught.value.problems == [f"it holds {name}"]
    assert path.is_symlink()


WEB_APP = {"name": "A page", "start_url": "/", "display": "standalone"}


@pytest.mark.parametrize("manifest", [WEB_APP, [], {"schema_version": 1}, {"tools": {}}])
def test_force_does_not_replace_what_only_has_a_manifest(tmp_path: Path, manifest: object) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="replaces only bundles"):
        fill(out)
    assert json.loads((out / MANIFEST).read_text()) == manifest


def test_force_replaces_a_bundle_of_an_older_schema(tmp_path: Path) -> None:
    out = write_small_bundle(tmp_path / "out").path
    edit_manifest(out, lambda manifest: manifest.update(schema_version=1, tools={"tiny-qmoe": "0"}))
    fill(out)
    assert not (out / MANIFEST).exists()


# ---- what is on the disk when a bundle appears


def test_everything_is_on_the_disk_before_a_bundle_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files and folders are synced before the rename, and the folder that names it after."""
    out, synced = tmp_path / "out", []
    real_sync, real_rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        files = [source, *source.rglob("*")]
        assert {path.stat().st_ino for path in files} <= set(synced)
        synced.clear()
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(real_files.os, "rename", rename)
    fill(out)
    assert synced == [tmp_path.stat().st_ino]


# ---- the manifest


def check_flips(bundle: Bundle, step: int) -> None:
    """Flips bits of every `step`-th byte of a manifest, each alone.

    All are seen but those in the space between its parts, which say nothing.
    """
    file = bundle.path / MANIFEST
    whole = file.read_bytes()
    content = json.loads(whole)
    for at in range(0, len(whole), step):
        for bit in (1 << (at % 8), 1 << ((at + 3) % 8)):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                Bundle.open(bundle.path)
            except BundleError:
                continue
            assert json.loads(file.read_bytes()) == content


def test_a_flipped_bit_of_a_manifest_is_seen(tmp_path: Path) -> None:
    check_flips(write_small_bundle(tmp_path / "small"), 23)


@pytest.mark.long
def test_every_flipped_byte_of_a_manifest_is_seen(tmp_path: Path) -> None:
    check_flips(write_small_bundle(tmp_path / "small"), 1)

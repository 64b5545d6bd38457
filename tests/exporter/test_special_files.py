"""Pipes, sockets, devices, folders and links where files are read or written: each is refused.

A read from a pipe would wait for ever, a write through a link would reach another place. What
test_trust.py has of links is not here again.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.bundle import MANIFEST, Bundle
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.codec import weight_file
from exporter.errors import BundleError, CheckpointError, UsageError
from exporter.staging import staging_directory
from runtime_ref.coreml import expansion
from tests.support.bundles import copy, write_small_bundle
from tests.support.checkpoints import write_llama

SECONDS = 60  # in which a refusal comes; a wait for a pipe never ends


@pytest.fixture(autouse=True)
def no_wait() -> Iterator[None]:
    def fail(number: int, frame: object) -> None:
        raise TimeoutError("it waits for a pipe")

    previous = signal.signal(signal.SIGALRM, fail)
    left = signal.alarm(SECONDS)
    yield
    signal.alarm(left)
    signal.signal(signal.SIGALRM, previous)


def put_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def put_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zeros without end
    except PermissionError:
        pytest.skip("NOT TESTED with a device: making one needs root")


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": put_socket,
    "device": put_device,
    "folder": os.mkdir,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to a folder": lambda path: path.symlink_to("/"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.fixture(params=SPECIAL)
def put(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Puts something that is no file at a path, in the place of what is there."""

    def replace(path: Path) -> None:
        path.unlink(missing_ok=True)
        SPECIAL[request.param](path)

    return replace


Put = Callable[[Path], None]


@pytest.mark.parametrize("name", ["model.pte", "tokenizer.json", "reference.safetensors", MANIFEST])
def test_a_file_of_a_bundle(tmp_path: Path, put: Put, name: str) -> None:
    small = write_small_bundle(tmp_path / "small")
    put(small.path / name)
    with pytest.raises(BundleError):
        Bundle.open(small.path).verify()


def test_a_manifest_that_is_a_link(tmp_path: Path) -> None:
    small = write_small_bundle(tmp_path / "small")
    (small.path / MANIFEST).rename(tmp_path / "elsewhere")
    (small.path / MANIFEST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is damaged") as caught:
        Bundle.open(small.path).verify()
    assert caught.value.problems == [f"{MANIFEST} is a link"]


@pytest.mark.parametrize("place", ["template", "coded", "target", "work"])
def test_where_an_expansion_reads_and_writes(
    both: Bundle, tmp_path: Path, put: Put, place: str
) -> None:
    foreign = copy(both, tmp_path / "foreign")
    recipe = expansion.load_recipe(foreign, foreign.artifact("mlprogram"))
    target = foreign.path / recipe.package
    places = {
        "template": foreign.path / recipe.template / "Data" / "more",
        "coded": foreign.path / recipe.coded_file,
        "target": target,
        "work": weight_file.staging_path(target) / "more",
    }
    places[place].parent.mkdir(exist_ok=True)
    put(places[place])
    if place == "template" and places[place].is_dir() and not places[place].is_symlink():
        pytest.skip("an empty folder in a template does no harm")
    if place == "coded" and not places[place].exists():
        expected: tuple[type[Exception], ...] = (BundleError, FileNotFoundError, OSError)
    else:
        expected = (BundleError, UsageError)
    with pytest.raises(expected):
        weight_file.expand(foreign.path, recipe, target, lambda done: None)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_file_of_a_checkpoint(small_model: Path, tmp_path: Path, put: Put, name: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    put(model / name)
    there = (model / name).exists()
    if not there and name.startswith("tokenizer"):
        pytest.skip("a link that leads nowhere is as no tokenizer")
    with pytest.raises(
        CheckpointError, match="no file, but" if there else "no weights|missing|neither"
    ):
        Checkpoint.open(model)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(
        tmp_path_factory.mktemp("model") / "small",
        tokenizer=True,
        vocab_size=258,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
    )


@pytest.mark.parametrize("force", [False, True])
def test_out(tmp_path: Path, put: Put, force: bool) -> None:
    out = tmp_path / "out"
    put(out)
    if out.is_dir() and not out.is_symlink():
        pytest.skip("an empty folder is as good as none")
    with (
        pytest.raises(UsageError, match="exists"),
        staging_directory(out, {}, force=force, resume=False),
    ):
        pytest.fail("the work began")


def test_the_manifest_of_what_is_replaced(tmp_path: Path, put: Put) -> None:
    out = tmp_path / "out"
    out.mkdir()
    put(out / MANIFEST)
    with (
        pytest.raises(UsageError, match="replaces only bundles"),
        staging_directory(out, {}, force=True, resume=False),
    ):
        pytest.fail("the work began")


@pytest.mark.parametrize("name", ["", "lock", "fingerprint.json", "coded", "coded/x.tqlz"])
def test_the_work_directory(tmp_path: Path, put: Put, name: str) -> None:
    place = tmp_path / ".out.partial" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    put(place)
    if place.is_dir() and not place.is_symlink():
        pytest.skip("a folder there is ours, or is removed")
    with (
        pytest.raises(UsageError, match="is not a work directory of this tool"),
        staging_directory(tmp_path / "out", {}, force=False, resume=True),
    ):
        pytest.fail("the work began")

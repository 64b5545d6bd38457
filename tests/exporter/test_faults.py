"""Kills and full disks at every operation that changes a file: what is left, and what goes on.

A normal run takes some operations of each kind of work. `-m long` takes all of them, and makes a
thousand kills at random, some of them while what was killed goes on.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.bundle import Bundle, sha256
from tests.support import faults, soak
from tests.support.checkpoints import write_llama
from tests.support.faults import FULL, KILL, NONE, End, Worker
from tests.support.hub import running_hub
from tests.support.paths import GOLDEN

REPO = "owner/name"
NEVER = 1 << 40  # an operation that is not reached
BLOB = GOLDEN / "decode" / "int8_lzw_7x43.tqlz"
# --force: what a kill came too late for is made again.
EXPORT = (
    *(
        "--scheme",
        "ternary",
        "--calibration",
        "none",
        "--allow-loss",
        "--context",
        "16",
        "--target",
        "both",
    ),
    *("--resume", "--force"),
)
PACKAGE = "model.mlpackage"

pytestmark = pytest.mark.skipif(faults.CC is None, reason="NO C COMPILER: no faults were made")


class Work(ABC):
    """Work that is cut off, in a folder of its own, and done again."""

    full_disk = 4  # the exit code
    few = 3  # operations in a normal run
    random_kills = 0  # of the thousand

    def __init__(self, worker: Worker, model: Path, expected: Path) -> None:
        """expected: a bundle of `model` that nothing disturbed."""
        self.worker, self.model, self.expected = worker, model, expected

    def prepare(self, folder: Path) -> None:
        folder.mkdir()

    @abstractmethod
    def run(self, folder: Path, kind: int, at: int) -> End: ...

    @abstractmethod
    def check(self, folder: Path, *, whole: bool) -> None:
        """Fails if anything but whole results and what can be gone on from is in the folder."""


class Export(Work):
    few = 1  # it takes seconds
    random_kills = 100

    def run(self, folder: Path, kind: int, at: int) -> End:
        arguments = ["export", self.model, folder / "out", *EXPORT]
        return self.worker.run("command", arguments, folder, kind, at)

    def check(self, folder: Path, *, whole: bool) -> None:
        names = {path.name for path in folder.iterdir()}
        assert names == {"out"} if whole else names <= {"out", ".out.partial"}
        if "out" in names:  # byte for byte as undisturbed: test_resume.py
            Bundle.open(folder / "out").verify()


class Expand(Work):
    random_kills = 200

    def prepare(self, folder: Path) -> None:
        shutil.copytree(self.expected, folder)

    def run(self, folder: Path, kind: int, at: int) -> End:
        return self.worker.run("command", ["expand", folder, "--force"], folder, kind, at)

    def check(self, folder: Path, *, whole: bool) -> None:
        bundle = Bundle.open(folder)
        bundle.verify()
        work = folder / f".{PACKAGE}.partial"
        assert set(os.listdir(folder)) - set(os.listdir(self.expected)) <= {PACKAGE, work.name}
        assert not (whole and work.exists())
        if whole or (folder / PACKAGE).exists():
            for entry in bundle.manifest.expanded:
                assert sha256(folder / entry.path) == entry.sha256


class Download(Work):
    random_kills = 200

    def run(self, folder: Path, kind: int, at: int) -> End:
        return self.worker.run("download", [REPO, folder], folder, kind, at)

    def check(self, folder: Path, *, whole: bool) -> None:
        found = [file for file in folder.rglob("snapshots/*/*") if file.is_file()]
        for file in found:
            assert file.read_bytes() == (self.model / file.name).read_bytes()
        read = {"config.json", "generation_config.json", "model.safetensors"}
        assert not whole or {file.name for file in found} == read


class Cache(Work):
    full_disk = 0  # the product is made from the codes
    random_kills = 500

    def run(self, folder: Path, kind: int, at: int) -> End:
        return self.worker.run("cache", [BLOB, folder], folder, kind, at)

    def check(self, folder: Path, *, whole: bool) -> None:
        names = os.listdir(folder)
        assert [name.endswith(".raw") for name in names] == [True] if whole else len(names) <= 2


KINDS = {"export": Export, "expand": Expand, "download": Download, "cache": Cache}
SLOW = ("export", "download")  # seconds each: in long runs only
PARAMETERS = [pytest.param(k, marks=pytest.mark.long) if k in SLOW else k for k in KINDS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of the smallest shape: 8 matrices."""
    return write_llama(
        tmp_path_factory.mktemp("model") / "tiny",
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("expected") / "out"


@pytest.fixture(scope="module")
def worker(
    model: Path, expected: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    """It makes the expected bundle first."""
    first = ("export", model, expected, *EXPORT)
    folder = tmp_path_factory.mktemp("worker")
    with running_hub() as hub:
        hub.commits[REPO] = []
        hub.commit(REPO, {file.name: file.read_bytes() for file in model.iterdir()})
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        with faults.worker(folder, *first, **settings) as made:
            yield made


@pytest.fixture(params=PARAMETERS)
def work(request: pytest.FixtureRequest, worker: Worker, model: Path, expected: Path) -> Work:
    kind: type[Work] = KINDS[request.param]
    return kind(worker, model, expected)


def attack(work: Work, folder: Path, kind: int, at: int) -> End:
    """One fault, what is left checked, and the work done to its end; the end of the first run."""
    work.prepare(folder)
    ended = work.run(folder, kind, at)
    work.check(folder, whole=False)
    again = work.run(folder, NONE, 0)
    assert again.code == 0, again.words
    work.check(folder, whole=True)
    shutil.rmtree(folder)
    return ended


def operations(work: Work, folder: Path, kind: int) -> int:
    """Number of operations at which there can be a fault of a kind."""
    ended = attack(work, folder, kind, NEVER)
    assert ended.code == 0, ended.words
    return ended.operations


def kill(work: Work, folder: Path, at: int) -> None:
    assert attack(work, folder, KILL, at).code == -signal.SIGKILL


def fill_disk(work: Work, folder: Path, at: int) -> None:
    """One message, and an exit code that says what is wrong."""
    ended = attack(work, folder, FULL, at)
    assert ended.code == work.full_disk, ended.words
    assert "Traceback" not in ended.words
    assert ended.words.count("is full") == (1 if ended.code else 0), ended.words


FAULTS = {"kill": (KILL, kill), "full disk": (FULL, fill_disk)}


@pytest.mark.parametrize("fault", FAULTS)
def test_some_operations(work: Work, fault: str, tmp_path: Path) -> None:
    kind, cause = FAULTS[fault]
    total = operations(work, tmp_path / "x", kind)
    for at in sorted({1 + (2 * i + 1) * total // (2 * work.few) for i in range(work.few)}):
        cause(work, tmp_path / "x", at)


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation(
    work: Work, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, cause = FAULTS[fault]
    total = operations(work, tmp_path / "x", kind)
    for at in range(1, total + 1):
        cause(work, tmp_path / "x", at)
    soak.add(capsys, f"{fault} at every operation: {type(work).__name__.lower()}", total)


@pytest.mark.long
def test_random_kills(work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand in all; what goes on after one may be killed again.

    One in so many runs is not killed, or work that begins anew each time would never end.
    """
    what = f"kill at random: {type(work).__name__.lower()}"
    folder, rng, kills = tmp_path / "x", random.Random(soak.totals()[what]), 0
    total = operations(work, folder, KILL)
    while kills < soak.share(work.random_kills):
        work.prepare(folder)
        while work.run(folder, KILL, rng.randint(1, total + 1)).code == -signal.SIGKILL:
            kills += 1
            work.check(folder, whole=False)
        assert work.run(folder, NONE, 0).code == 0
        work.check(folder, whole=True)
        shutil.rmtree(folder)
    soak.add(capsys, what, kills)

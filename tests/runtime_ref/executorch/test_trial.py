"""A program that ends the process that runs it ends a child, and is one message."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

import tinyqmoe
from exporter.bundle import PROGRAM, Bundle
from exporter.errors import BundleError, TinyQMoEError
from runtime_ref import notes, trial
from runtime_ref.executorch.runner import ExecuTorchRunner
from tests.support.bundles import patch, place, reseal


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of notes, with nothing in it; kernels are not compiled anew."""
    folders = SimpleNamespace(user_cache_path=lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(notes, "platformdirs", folders)
    return tmp_path / "cache" / "tiny-qmoe" / "tried"


def test_a_program_that_crashes_is_one_message(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExecuTorchRunner, "forward", lambda *_: os.abort())
    with pytest.raises(BundleError, match="ends the process with SIGABRT") as caught:
        tinyqmoe.open_runner(bundle, backend="executorch")
    assert caught.value.exit_code == 3


def test_a_program_that_went_well_is_tried_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tinyqmoe.open_runner(bundle, backend="executorch")
    monkeypatch.setattr(ExecuTorchRunner, "forward", lambda *_: os.abort())
    tinyqmoe.open_runner(bundle, backend="executorch")


def test_a_note_that_others_may_have_made_is_not_believed(cache: Path) -> None:
    trial.try_once("key", lambda: None)
    trial.try_once("key", os.abort)
    cache.chmod(0o770)
    with pytest.raises(ValueError, match="SIGABRT"):
        trial.try_once("key", os.abort)


def test_an_error_of_a_program_is_told_as_it_is(copied: Bundle) -> None:
    patch(copied, 0, bytes(64))
    with pytest.raises(BundleError, match="does not load"):
        tinyqmoe.open_runner(reseal(copied), backend="executorch")


def test_damaged_graphs_never_end_this_process(copied: Bundle) -> None:
    """Their hashes are made anew, so that only ExecuTorch can see the damage."""
    first = min(at.offset for at in copied.artifact("pte").places.values())
    graph = min(first, *(at.offset for at in copied.artifact("pte").vectors.values()))
    whole = (copied.path / PROGRAM).read_bytes()
    rng, refused = random.Random(4), 0
    assert place(copied, "model.embed_tokens.weight").offset >= graph
    for _ in range(12):
        at = rng.randrange(8, graph)
        patch(copied, at, bytes([whole[at] ^ (1 << rng.randrange(8))]))
        try:
            opened = tinyqmoe.open_runner(reseal(copied), backend="executorch")
            opened.forward([0], 0)
        except TinyQMoEError:
            refused += 1
        patch(copied, at, whole[at : at + 1])
    assert refused

"""The SHA-256 of the files that a model is made from, as sha256sum has it, and their state."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from exporter.backends.executorch import lowering
from exporter.checkpoint import source_files
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError
from tests.support import bundles as shared
from tests.support.bundles import CONTEXT, TERNARY
from tests.support.checkpoints import copy, write_llama
from tests.support.gguf_files import write_gguf
from tests.support.kinds import write_adapter, write_plain


def expected(folder: Path, pattern: str, prefix: str = "") -> dict[str, str]:
    """SHA-256 by name of the files of a folder, as another program computes it."""
    files = sorted(folder.glob(pattern))
    said = subprocess.run(["sha256sum", *files], capture_output=True, text=True, check=True).stdout
    digests = [line.split()[0] for line in said.splitlines()]
    return {prefix + file.name: digest for file, digest in zip(files, digests, strict=True)}


def hashed(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint by name."""
    with source_files.hashed_beside() as hashing:
        hashing.begin(checkpoint.files)
        return hashing.result()


def test_one_digest_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "PIECE_BYTES", 1000)
    write_llama(tmp_path, shards=3)
    digests = hashed(Checkpoint.open(tmp_path))
    assert digests == expected(tmp_path, "*.safetensors")
    assert len(digests) > 1


def test_an_error_beside_it_ends_the_hashing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def until_stopped(files: object, stop: threading.Event) -> dict[str, str]:
        begun.set()
        assert stop.wait(60)  # else the error below would be this one
        return {}

    def fail_beside() -> None:
        with source_files.hashed_beside() as hashing:
            hashing.begin({})
            assert begun.wait(60)
            raise ValueError("beside")

    monkeypatch.setattr(source_files, "hash_files", until_stopped)
    with pytest.raises(ValueError, match="beside"):
        fail_beside()


def test_a_file_that_changes_while_it_is_hashed(tmp_path: Path) -> None:
    write_llama(tmp_path)
    files = Checkpoint.open(tmp_path).files
    with source_files.hashed_beside() as hashing:
        hashing.begin(files)
        os.utime(files["model.safetensors"], ns=(1, 1))
        with pytest.raises(CheckpointError, match="changed while it was exported"):
            hashing.result()


@pytest.mark.parametrize("tokenizer", [True, False])
def test_the_files_are_known_while_the_tokenizer_is_read(tmp_path: Path, tokenizer: bool) -> None:
    write_llama(tmp_path, tokenizer=tokenizer)
    given: list[dict[str, Path]] = []
    checkpoint = Checkpoint.open(tmp_path, meanwhile=given.append)
    assert given == [checkpoint.files]


def test_nothing_is_read_after_a_stop(tmp_path: Path) -> None:
    write_llama(tmp_path)
    stop = threading.Event()
    stop.set()
    digests = source_files.hash_files(Checkpoint.open(tmp_path).files, stop)
    assert set(digests.values()) == {hashlib.sha256(b"").hexdigest()}


def test_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf")
    assert hashed(Checkpoint.open(tmp_path / "x.gguf")) == expected(tmp_path, "x.gguf")


def test_an_adapter_beside_its_base(tmp_path: Path) -> None:
    base, adapter = write_plain(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter)
    digests = hashed(Checkpoint.open(base, adapter=str(adapter)))
    files = expected(base, "*.safetensors") | expected(adapter, "adapter_*", "adapter/")
    assert digests == files


def test_a_file_that_changes_while_it_is_exported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy(checkpoint, tmp_path / "source")
    emit = lowering.emit

    def write_meanwhile(*args: object) -> object:
        os.utime(source / "model.safetensors", ns=(1, 1))
        return emit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(lowering, "emit", write_meanwhile)
    with pytest.raises(CheckpointError, match="changed while it was exported") as caught:
        shared.export(source, tmp_path / "out", TERNARY, context=CONTEXT)
    assert caught.value.problems[0].startswith("model.safetensors: ")
    assert os.listdir(tmp_path) == ["source"]

"""The SHA-256 of the files that a model is made from, as sha256sum has it, and their state."""

from __future__ import annotations

import os
import subprocess
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


def hashed(checkpoint: Checkpoint) -> tuple[dict[str, str], list[tuple[int, int]]]:
    """SHA-256 of the files of a checkpoint, and (bytes done, bytes in all) of the progress."""
    told: list[tuple[int, int]] = []
    digests = source_files.hash_files(checkpoint.files, lambda _, *done: told.append(done))
    return digests, told


def test_one_digest_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "PIECE_BYTES", 1000)
    write_llama(tmp_path, shards=3)
    digests, told = hashed(Checkpoint.open(tmp_path))
    assert digests == expected(tmp_path, "*.safetensors")
    assert len(digests) > 1
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert told[-1] == (size, size)
    assert told == sorted(set(told))


def test_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf")
    assert hashed(Checkpoint.open(tmp_path / "x.gguf"))[0] == expected(tmp_path, "x.gguf")


def test_an_adapter_beside_its_base(tmp_path: Path) -> None:
    base, adapter = write_plain(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter)
    digests, _ = hashed(Checkpoint.open(base, adapter=str(adapter)))
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

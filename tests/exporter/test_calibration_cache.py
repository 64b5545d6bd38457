"""Calibrations that exports of a model share: measured once, the same bytes, never another's."""

from __future__ import annotations

import fcntl
import shutil
import zlib
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter import allocation
from exporter.allocation import Allocation
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.config import ExportConfig
from exporter.errors import CheckpointError
from exporter.quant import calibration_cache, calibration_passes
from exporter.quant.calibration import Calibration
from exporter.quant.calibration_cache import LOCK, CalibrationCache, make_folder
from exporter.quant.config import QuantConfig
from tests.support.bundles import TEXT, no_progress, write_text_model
from tests.support.command_line import one_error, tinyqmoe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3)
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files of states that a calibration writes from now on."""
    written, real = list[str](), calibration_passes.States.write

    def write(self: Any, values: Any) -> None:
        written.append(self.path.name)
        real(self, values)

    monkeypatch.setattr(calibration_passes.States, "write", write)
    return written


def allocate(
    model: Path, text: Path, folder: Path, bits: float, cache: CalibrationCache | None
) -> Allocation:
    folder.mkdir()
    config = ExportConfig(QuantConfig(bits_per_weight=bits), context=24, calibration=str(text))
    made = allocation.allocate(Checkpoint.open(model), config, folder, cache, no_progress)
    assert made is not None
    return made


def test_two_rates_measure_once_and_allocate_the_same(
    model: Path, text: Path, tmp_path: Path, measured: list[str]
) -> None:
    cache = CalibrationCache(tmp_path / "new" / "cache", {"w": "0"})
    first, shared = (allocate(model, text, tmp_path / f"{b}", b, cache) for b in (4, 3))
    once = len(measured)
    alone = allocate(model, text, tmp_path / "alone", 3, None)
    assert len(measured) == 2 * once > 0
    assert shared.constants == alone.constants != first.constants
    for quantizers in zip(shared.quantizers, alone.quantizers, strict=True):
        for name in quantizers[0].names:
            (_, levels, scales), *_ = quantizers[0].blocks(name)
            (_, expected, expected_scales), *_ = quantizers[1].blocks(name)
            assert torch.equal(levels, expected)
            assert torch.equal(scales, expected_scales)


def test_a_calibration_depends_on_weights_configuration_and_text(
    model: Path, tmp_path: Path
) -> None:
    cache, windows = CalibrationCache(tmp_path, {"w": "0"}), torch.zeros((1, 8), dtype=torch.int64)
    checkpoint = Checkpoint.open(model)
    config = replace(checkpoint.config, rms_norm_eps=0.5)
    cases = (
        (cache, checkpoint, windows),
        (replace(cache, weights={"w": "1"}), checkpoint, windows),
        (cache, replace(checkpoint, config=config), windows),
        (cache, checkpoint, windows + 1),
        (cache, checkpoint, windows.T),
    )
    for case in (*cases, cases[0]):
        with case[0].calibration(*case[1:]):
            pass
    assert len(list(tmp_path.iterdir())) == len(cases)


def test_a_calibration_is_one_process_s_while_it_is_measured(model: Path, tmp_path: Path) -> None:
    cache, windows = CalibrationCache(tmp_path, {"w": "0"}), torch.zeros((1, 8), dtype=torch.int64)
    checkpoint = Checkpoint.open(model)
    with cache.calibration(checkpoint, windows) as calibration:
        with (calibration.folder / LOCK).open("ab") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        calibration.write("x", torch.ones(3))
    with cache.calibration(checkpoint, windows) as again:
        assert again.has("x")


def test_a_cache_that_is_no_folder_is_refused_before_work(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("--bits-per-weight", "4", "--calibration-cache", tmp_path / "file")
    said = one_error(tinyqmoe("export", model, tmp_path / "out", *words), 2)
    assert "cannot be a cache of calibrations: File exists" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("others", [0o020, 0o002])
def test_a_cache_that_others_may_write_is_refused(model: Path, tmp_path: Path, others: int) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o755 | others)
    words = ("--bits-per-weight", "4", "--calibration-cache", cache)
    said = one_error(tinyqmoe("export", model, tmp_path / "out", *words), 2)
    assert "others could change what is in it" in said
    assert f"chmod go-w {cache}" in said.replace("\n", "")
    assert not (tmp_path / "out").exists()


def test_a_cache_is_the_user_s_own(model: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "new")
    cache, windows = CalibrationCache(tmp_path / "new", {}), torch.zeros((1, 8), dtype=torch.int64)
    with cache.calibration(Checkpoint.open(model), windows) as calibration:
        assert {oct(f.stat().st_mode & 0o777) for f in (cache.folder, calibration.folder)} == {
            oct(0o700)
        }


def test_what_other_passes_computed_is_not_taken(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, windows = CalibrationCache(tmp_path, {}), torch.zeros((1, 8), dtype=torch.int64)
    with cache.calibration(Checkpoint.open(model), windows) as before:
        monkeypatch.setattr(calibration_cache, "PASSES", calibration_cache.PASSES + 1)
    with cache.calibration(Checkpoint.open(model), windows) as after:
        assert after.folder != before.folder


@pytest.mark.parametrize("content", [None, b"", b"abc", b"no array"])
def test_a_foreign_file_of_a_calibration_is_one_error(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        crc = zlib.crc32(content).to_bytes(4, "little")
        (tmp_path / "x").write_bytes(content + crc if len(content) > 3 else content)
    with pytest.raises(CheckpointError, match="x is missing or damaged"):
        Calibration(tmp_path).read("x")


def test_a_full_disk_of_a_cache_is_told(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    cache, real = tmp_path / "cache", shutil.disk_usage

    def disk_usage(path: Path) -> Any:
        return usage(1, 1, 0) if path == cache else real(path)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    words = ("--bits-per-weight", "4", "--calibration", text, "--calibration-cache", cache)
    said = one_error(tinyqmoe("export", model, tmp_path / "out", *words), 4)
    assert "0.0 GB are free" in said
    assert "choose another --calibration-cache" in said

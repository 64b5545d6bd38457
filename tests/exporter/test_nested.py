"""Files that are nested as deeply, or repeat as often, as a file can: one message each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.chat_template import read_config
from exporter.checkpoint import safetensors
from exporter.checkpoint.folder import read_json
from exporter.codec.weight_file import Recipe
from exporter.errors import BundleError, TinyQMoEError
from exporter.evaluation import questions as tasks
from runtime_ref.coreml.package import CoreMLPackage
from runtime_ref.device.profile import load_file

DEPTH = 100_000
NESTED = '{"a":' * DEPTH + "1" + "}" * DEPTH


def device(folder: Path) -> object:
    file = folder / "phone.toml"
    file.write_text("a = " + "[" * DEPTH + "]" * DEPTH)
    return load_file(file)


def tokenizer_config(folder: Path) -> object:
    (folder / "tokenizer_config.json").write_text(NESTED)
    return read_config(folder)


def core_ml(folder: Path) -> object:
    (folder / "Manifest.json").write_text(NESTED)
    return CoreMLPackage.open(folder)


def questions(folder: Path) -> object:
    (folder / "questions.jsonl").write_text(NESTED)
    return tasks._read_lines(folder / "questions.jsonl")


READERS = (device, tokenizer_config, core_ml, questions, lambda folder: Recipe.from_json(NESTED))


@pytest.mark.parametrize("read", READERS)
def test_a_nested_file_is_one_message(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(TinyQMoEError):
        read(tmp_path)


def test_a_nested_config_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(NESTED)
    problems: list[str] = []
    assert read_json(tmp_path / "config.json", problems) == {}
    assert len(problems) == 1


def test_a_recipe_with_a_member_twice_is_refused() -> None:
    with pytest.raises(BundleError, match="'version' is there twice"):
        Recipe.from_json('{"version": 1, "version": 1}')


def test_many_duplicate_names_are_a_short_message(tmp_path: Path) -> None:
    """It once took a time that grew with the square of their number: 40 s of 60,000."""
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    names = [f'"tensor {i}": {entry}' for i in range(30_000)]
    header = ("{" + ", ".join([*names, *names]) + "}").encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    problems: list[str] = []
    assert safetensors.read_header(file, problems) == {}
    assert len(problems) == 1
    assert "and 29,995 more" in problems[0]
    assert len(problems[0]) < 300

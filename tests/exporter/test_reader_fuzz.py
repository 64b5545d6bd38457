"""Damaged files of every kind that is read: each is read, or refused with an error of ours.

The examples of a normal run are the same every time; `-m long` makes many more.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings

from exporter import strict_json
from exporter.bundle import DIGEST, MANIFEST, Bundle, sealed
from exporter.checkpoint import gguf_header, safetensors
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.checkpoint.tokenizer import read_tokenizer
from exporter.codec.weight_file import RECIPE_VERSION, Piece, Recipe, WeightFile
from exporter.errors import TinyQMoEError
from runtime_ref.coreml.mil_program import MLProgram
from runtime_ref.coreml.package import BlobFile, CoreMLPackage, load_spec
from tests.support import custom_op, soak
from tests.support.bundles import Parts, write_small_bundle
from tests.support.checkpoints import write_llama
from tests.support.edits import damaged, damaged_json
from tests.support.gguf_files import write_gguf

SMALL = {"vocab_size": 258, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
Make = Callable[[Path, pytest.FixtureRequest], tuple[Path, Callable[[], object]]]


def manifest(folder: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[[], object]]:
    """Sealed anew where that can be done, so that the digest does not hide what it holds."""
    file = write_small_bundle(folder / "small").path / MANIFEST

    def read() -> None:
        text = file.read_bytes()
        try:
            raw = strict_json.parse(text)
        except ValueError:
            raw = None
        if isinstance(raw, dict):
            raw.pop(DIGEST, None)
            file.write_text(sealed(raw), encoding="utf-8")
        Bundle.open(file.parent)

    return file, read


def recipe(folder: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[[], object]]:
    pieces = [Piece("bytes", 64, 0, 64), Piece("uint2", 256, 64, 192), Piece("int8", 40, 256, 128)]
    weights = WeightFile("Data/weights/0.bin", 360, "0" * 64, pieces)
    file = folder / "recipe.json"
    made = Recipe(RECIPE_VERSION, "t.mlpackage", "model.mlpackage", "coded.bin", [weights])
    file.write_text(made.to_json())
    return file, lambda: Recipe.from_json(file.read_bytes())


def checkpoint_file(name: str) -> Make:
    def make(folder: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[[], object]]:
        model = write_llama(folder / "model", shards=2, **SMALL)
        name_there = next(file.name for file in sorted(model.glob(name)))
        return model / name_there, lambda: Checkpoint.open(model)

    return make


def safetensors_header(
    folder: Path, request: pytest.FixtureRequest
) -> tuple[Path, Callable[[], object]]:
    file = folder / "model.safetensors"
    tensor = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    other = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": tensor, "b": other}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))

    def read() -> None:
        problems: list[str] = []
        for tensor in safetensors.read_header(file, problems).values():
            if not problems and tensor.dtype in safetensors.TORCH_DTYPES and tensor.shape:
                tensor.rows(0, min(tensor.shape[0], 2))

    return file, read


def gguf_file(folder: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[[], object]]:
    file = folder / "model-F32.gguf"
    write_gguf(file, "llama")
    header = gguf_header.read_header(file)
    begin = min(part.begin for part in header.tensors.values())
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:begin])

    def read() -> None:
        os.truncate(file, size)  # the data are not read here: zeros
        gguf_header.read_header(file)

    return file, read


def tokenizer(folder: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[[], object]]:
    """As an export does, in a child process."""
    from tests.support.checkpoints import write_tokenizer

    write_tokenizer(folder)
    config = {"model_type": "llama"}
    return folder / "tokenizer.json", lambda: read_tokenizer(folder, config, 258, [])


def package_manifest(
    folder: Path, request: pytest.FixtureRequest
) -> tuple[Path, Callable[[], object]]:
    package = ml_program(folder, request)[0].parents[2]
    return package / "Manifest.json", lambda: CoreMLPackage.open(package)


def ml_program(folder: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[[], object]]:
    from tests.support.mil import mb, save

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 3))])
    def program(x):  # type: ignore[no-untyped-def]
        y = mb.linear(x=x, weight=np.ones((4, 3), np.float32), bias=np.ones(4, np.float32))
        return mb.softmax(x=y, axis=-1)

    package = save(program, folder / "small.mlpackage")

    def read() -> None:
        opened = CoreMLPackage.open(package.path)
        program = MLProgram(opened, None, "float32", 1 << 20)
        inputs = {
            name: np.zeros(info.shape, info.dtype)
            for name, info in program.inputs.items()
            if np.prod([int(n) for n in info.shape]) < 1 << 20
        }
        program.predict(inputs, {})

    return package.model_file, read


def coreml_spec(folder: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[[], object]]:
    file = ml_program(folder, request)[0]
    return file, lambda: load_spec(file)


def weight_file(folder: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[[], object]]:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    file = folder / "weight.bin"
    at = _BlobStorageWriter(str(file)).write_int8_data(np.arange(64, dtype=np.int8))
    return file, lambda: BlobFile(file).read(at, "int8", (8, 8)).array().sum()


def custom_layers(
    folder: Path, request: pytest.FixtureRequest
) -> tuple[Path, Callable[[], object]]:
    """The model of a package with custom layers, which our own reader of protobuf reads."""
    parts: Parts = request.getfixturevalue("parts")
    made = custom_op.emit(parts, folder / "small.mlpackage", context=8)
    return made.model_file, lambda: made.open()


@dataclass(frozen=True)
class Reader:
    """make: writes a good file in a folder; returns it and what reads it. examples: of a run."""

    make: Make
    text: bool
    examples: int
    long_examples: int


READERS = {
    "manifest": Reader(manifest, True, 60, 10_000),
    "recipe": Reader(recipe, True, 100, 50_000),
    "config": Reader(checkpoint_file("config.json"), True, 60, 10_000),
    "index": Reader(checkpoint_file("*.index.json"), True, 60, 10_000),
    "safetensors": Reader(safetensors_header, False, 200, 50_000),
    "GGUF": Reader(gguf_file, False, 60, 10_000),
    "tokenizer": Reader(tokenizer, True, 6, 1_000),
    "package manifest": Reader(package_manifest, True, 100, 20_000),
    "ML Program": Reader(ml_program, False, 60, 10_000),
    "Core ML model": Reader(coreml_spec, False, 100, 50_000),
    "weight file": Reader(weight_file, False, 100, 50_000),
    "custom layers": Reader(custom_layers, False, 30, 5_000),
}


def fuzz(
    reader: Reader, examples: int, folder: Path, request: pytest.FixtureRequest, number: int
) -> int:
    """Reads that many damaged files; returns their number. Others for each number."""
    file, read = reader.make(folder, request)
    good = file.read_bytes()
    read()
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged_json(good) if reader.text else damaged(good))
    def check(data: bytes) -> None:
        nonlocal count
        count += 1
        file.write_bytes(data)
        with contextlib.suppress(TinyQMoEError):
            read()

    check()
    return count


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert fuzz(READERS[name], READERS[name].examples, tmp_path, request, 0) > 1


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(
    name: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    what, examples = f"damaged files of {name}", soak.share(READERS[name].long_examples)
    number = soak.totals()[what]
    soak.add(capsys, what, fuzz(READERS[name], examples, tmp_path, request, number))

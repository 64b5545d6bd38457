"""Packages and weight files: what coremltools wrote reads back, and what lies is refused with its
place."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import BundleError
from runtime_ref.coreml.package import (
    STORAGE,
    BlobFile,
    BlobFiles,
    CoreMLPackage,
    Packed,
    load_spec,
    packed_bytes,
)
from tests.support.mil import mb, save

RNG = np.random.default_rng(0)
SHAPE = (5, 7)
LIMITS = {"int4": (-8, 8)} | {f"uint{bits}": (0, 2**bits) for bits in (1, 2, 3, 4, 6)}
WHOLE = [name for name, storage in STORAGE.items() if storage.bits >= 8]


def values_of(dtype: str) -> np.ndarray:
    unpacked = STORAGE[dtype].unpacked
    if unpacked.kind == "f":
        return RNG.standard_normal(SHAPE).astype(unpacked)
    low, high = LIMITS.get(dtype, (np.iinfo(unpacked).min, np.iinfo(unpacked).max + 1))
    return RNG.integers(low, high, SHAPE).astype(unpacked)


VALUES = {dtype: values_of(dtype) for dtype in STORAGE}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A weight file with a tensor of each type, by coremltools' own writer, and where they lie."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    path = tmp_path_factory.mktemp("blobs") / "weight.bin"
    writer = _BlobStorageWriter(str(path))
    names = {"float32": "float", "float16": "fp16"}
    offsets = {}
    for dtype, values in VALUES.items():
        flat = np.ascontiguousarray(values.reshape(-1))
        write = getattr(writer, f"write_{names.get(dtype, dtype)}_data")
        offsets[dtype] = write(flat.view(np.uint16) if dtype == "float16" else flat)
    return path, offsets


@pytest.mark.parametrize("dtype", STORAGE)
def test_a_tensor_reads_back(dtype: str, written: tuple[Path, dict[str, int]]) -> None:
    path, offsets = written
    packed = BlobFile(path).read(offsets[dtype], dtype, SHAPE)
    np.testing.assert_array_equal(packed.array(), VALUES[dtype])
    np.testing.assert_array_equal(packed.rows(1, 4), VALUES[dtype][1:4])
    assert packed.array().dtype == VALUES[dtype].dtype


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_bytes_are_not_copied(dtype: str, written: tuple[Path, dict[str, int]]) -> None:
    path, offsets = written
    packed = BlobFile(path).read(offsets[dtype], dtype, SHAPE)
    assert np.shares_memory(packed.array(), packed.raw)
    assert np.shares_memory(packed.rows(2, 3), packed.raw)


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from([*LIMITS, "uint8"]),
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_of_packed_values(
    dtype: str, rows: int, cols: int, data: st.DataObject, seed: int
) -> None:
    """Against packing bit by bit, lowest first, as a big number."""
    rng = np.random.default_rng(seed)
    low, high = LIMITS.get(dtype, (0, 256))
    bits = STORAGE[dtype].bits
    values = rng.integers(low, high, (rows, cols))
    number = sum((int(v) % 2**bits) << (i * bits) for i, v in enumerate(values.reshape(-1)))
    raw = np.frombuffer(number.to_bytes(packed_bytes(dtype, (rows, cols)), "little"), np.uint8)
    packed = Packed(raw, dtype, (rows, cols))
    begin = data.draw(st.integers(0, rows))
    end = data.draw(st.integers(begin, rows))
    np.testing.assert_array_equal(packed.rows(begin, end), values[begin:end])
    if dtype != "int4":
        table = rng.standard_normal(2**bits).astype(np.float32)
        np.testing.assert_array_equal(packed.look_up(table, begin, end), table[values[begin:end]])


def patched(path: Path, target: Path, offset: int, layout: str, value: int) -> BlobFile:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, value)
    target.write_bytes(content)
    return BlobFile(target)


# What to overwrite: bytes from the start of the metadata, layout, value; and what the error says.
LIES: dict[str, tuple[int, str, int, str]] = {
    "sentinel": (0, "<I", 0xDEADBEEE, "sentinel is 0xdeadbeee, expected 0xdeadbeef"),
    "type": (4, "<I", 2, "type is float32, expected uint2"),
    "unknown type": (4, "<I", 99, "type is number 99, expected uint2"),
    "size": (8, "<Q", 10, r"size in bytes is 10, expected 9, for uint2 \[5, 7\]"),
    "data offset, past the end": (
        16,
        "<Q",
        1 << 60,
        "data offset is 1152921504606846976, expected a multiple of 64",
    ),
    "data offset, in the header": (
        16,
        "<Q",
        0,
        r"data offset is 0, expected a multiple of 64 in \[64, ",
    ),
    "data offset, not aligned": (16, "<Q", 65, "data offset is 65"),
    "padding": (24, "<Q", 0, "padding in bits is 0, expected 2"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_blob_is_refused(
    lie: str, written: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    path, offsets = written
    at, layout, value, message = LIES[lie]
    offset = offsets["uint2"]
    file = patched(path, tmp_path / "weight.bin", offset + at, layout, value)
    with pytest.raises(BundleError, match=f"weight.bin, blob at {offset}: {message}"):
        file.read(offset, "uint2", SHAPE)


@pytest.mark.parametrize("offset", [0, 63, 65, 1 << 40])
def test_an_offset_without_a_blob_is_refused(
    offset: int, written: tuple[Path, dict[str, int]]
) -> None:
    with pytest.raises(
        BundleError,
        match=rf"blob at {offset}: offset is {offset}, expected a multiple of 64 in \[64",
    ):
        BlobFile(written[0]).read(offset, "int8", SHAPE)


def test_another_type_or_shape_is_refused(written: tuple[Path, dict[str, int]]) -> None:
    path, offsets = written
    with pytest.raises(BundleError, match="type is int8, expected uint8"):
        BlobFile(path).read(offsets["int8"], "uint8", SHAPE)
    with pytest.raises(BundleError, match=r"size in bytes is 35, expected 40, for int8 \[5, 8\]"):
        BlobFile(path).read(offsets["int8"], "int8", (5, 8))


def test_a_truncated_file_is_refused(written: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    path, offsets = written
    last = max(offsets, key=lambda dtype: offsets[dtype])
    cut = tmp_path / "weight.bin"
    cut.write_bytes(path.read_bytes()[: offsets[last] + 64 + 8])
    with pytest.raises(
        BundleError, match=f"blob at {offsets[last]}: data offset is {offsets[last] + 64}"
    ):
        BlobFile(cut).read(offsets[last], last, SHAPE)
    with pytest.raises(BundleError, match=f"blob at {offsets[last] + 64}: offset is"):
        BlobFile(cut).read(offsets[last] + 64, last, SHAPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a weight file"),
        (b"x" * 63, "63 bytes, expected 64"),
        (bytes(64), "storage version 0, expected 2"),
    ],
)
def test_what_is_no_weight_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "weight.bin").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        BlobFile(tmp_path / "weight.bin")


@pytest.mark.parametrize(
    "name",
    [
        "weight.bin",
        "@model_path/weight.bin",
        "@model_path/weights/../weight.bin",
        "@model_path/weights/",
        "/etc/passwd",
        "@model_path/weights/..",
        "@model_path/weights/a/b.bin",
        "@model_path/weights/a\\b.bin",
    ],
)
def test_a_file_outside_the_weights_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="which is not in @model_path/weights/"):
        BlobFiles(tmp_path).read(name, 64, "int8", (1,))


def test_several_weight_files(written: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    path, offsets = written
    for name in ("weight.bin", "more.bin"):
        (tmp_path / name).write_bytes(path.read_bytes())
    files = BlobFiles(tmp_path)
    for name in ("weight.bin", "more.bin"):
        packed = files.read(f"@model_path/weights/{name}", offsets["int8"], "int8", SHAPE)
        np.testing.assert_array_equal(packed.array(), VALUES["int8"])
    with pytest.raises(BundleError, match=r"absent\.bin is not a weight file"):
        files.read("@model_path/weights/absent.bin", 64, "int8", (1,))
    with pytest.raises(BundleError, match="lists no weights"):
        BlobFiles(None).read("@model_path/weights/weight.bin", 64, "int8", (1,))


# Packages.


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> CoreMLPackage:
    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 64))])
    def program(x: Any) -> Any:
        return mb.add(x=x, y=np.ones((2, 64), np.float32))

    return save(program, tmp_path_factory.mktemp("package") / "x.mlpackage")


def test_a_package_of_coremltools_opens(package: CoreMLPackage) -> None:
    assert package.model_file == package.path / "Data/com.apple.CoreML/model.mlmodel"
    assert package.weights_dir == package.path / "Data/com.apple.CoreML/weights"
    assert load_spec(package.model_file).WhichOneof("Type") == "mlProgram"


Manifest = dict[str, Any]


def _root(manifest: Manifest) -> Manifest:
    return manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]


def _set(entry: Manifest, key: str, value: str) -> None:
    entry[key] = value


MANIFESTS: dict[str, tuple[Callable[[Manifest], Any], str]] = {
    "version": (
        lambda m: _set(m, "fileFormatVersion", "2.0.0"),
        "fileFormatVersion '2.0.0', this reads '1.0.0'",
    ),
    "no root": (lambda m: m.pop("rootModelIdentifier"), "lacks an entry .*rootModelIdentifier"),
    "another root": (
        lambda m: _set(m, "rootModelIdentifier", "X"),
        "the root 'X', but no such item",
    ),
    "items of another kind": (lambda m: _set(m, "itemInfoEntries", "X"), "of another kind"),
    "absent": (
        lambda m: _set(_root(m), "path", "com.apple.CoreML/other"),
        "Data/com.apple.CoreML/other is absent",
    ),
    "outside": (lambda m: _set(_root(m), "path", "../../x"), "'../../x' points outside"),
    "absolute": (lambda m: _set(_root(m), "path", "/etc/passwd"), "'/etc/passwd' points outside"),
    "a folder": (
        lambda m: _set(_root(m), "path", "com.apple.CoreML"),
        "the root item com.apple.CoreML is not a file",
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_wrong_manifest_is_refused(name: str, package: CoreMLPackage, tmp_path: Path) -> None:
    edit, message = MANIFESTS[name]
    path = tmp_path / "x.mlpackage"
    shutil.copytree(package.path, path)
    manifest = json.loads((path / "Manifest.json").read_text())
    edit(manifest)
    (path / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        CoreMLPackage.open(path)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a Core ML package"):
        CoreMLPackage.open(tmp_path)
    (tmp_path / "Manifest.json").write_text("{")
    with pytest.raises(BundleError, match="is not a Core ML package"):
        CoreMLPackage.open(tmp_path)


def test_weights_that_are_not_listed_are_not_there(package: CoreMLPackage, tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    shutil.copytree(package.path, path)
    manifest = json.loads((path / "Manifest.json").read_text())
    entries = manifest["itemInfoEntries"]
    manifest["itemInfoEntries"] = {
        key: e for key, e in entries.items() if not e["path"].endswith("weights")
    }
    (path / "Manifest.json").write_text(json.dumps(manifest))
    assert CoreMLPackage.open(path).weights_dir is None


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xff\xff", "is not a Core ML model"), (b"", "holds no model")]
)
def test_what_is_no_model_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.mlmodel").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        load_spec(tmp_path / "model.mlmodel")

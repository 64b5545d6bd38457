"""Reader of `.mlpackage` folders: manifest, model, and weight files (MILBlob, version 2).

A file is taken for hostile: every offset and size is checked against the file before anything is
read through it.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import BundleError, require
from exporter.quiet import quiet

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model

MANIFEST, DATA, WEIGHTS = "Manifest.json", "Data", "weights"
FORMAT_VERSION = "1.0.0"
HINT = "export again, or copy the package again"

HEADER_BYTES = METADATA_BYTES = ALIGNMENT = 64
STORAGE_VERSION, SENTINEL = 2, 0xDEADBEEF


def check_tools() -> None:
    """Checks that the readers of the format are installed. Raises MissingComponentError."""
    hint = "run this on macOS or on Linux on x86-64: coremltools has builds for these only"
    require(["coremltools"], "a Core ML package", hint)


@dataclass(frozen=True)
class Storage:
    """Type of values in a weight file: MILBlob's number, bits, and the NumPy type when unpacked."""

    number: int
    bits: int
    unpacked: np.dtype[Any]


STORAGE = {
    name: Storage(number, bits, np.dtype(unpacked))
    for name, number, bits, unpacked in [
        ("float16", 1, 16, np.float16),
        ("float32", 2, 32, np.float32),
        ("uint8", 3, 8, np.uint8),
        ("int8", 4, 8, np.int8),
        ("int16", 6, 16, np.int16),
        ("uint16", 7, 16, np.uint16),
        ("int4", 8, 4, np.int8),
        ("uint1", 9, 1, np.uint8),
        ("uint2", 10, 2, np.uint8),
        ("uint4", 11, 4, np.uint8),
        ("uint3", 12, 3, np.uint8),
        ("uint6", 13, 6, np.uint8),
        ("int32", 14, 32, np.int32),
        ("uint32", 15, 32, np.uint32),
    ]
}
_NAMES = {storage.number: name for name, storage in STORAGE.items()}


@dataclass(frozen=True)
class CoreMLPackage:
    """Paths of an `.mlpackage`. `weights_dir` is None if the manifest lists no weights."""

    path: Path
    model_file: Path
    weights_dir: Path | None

    @classmethod
    def open(cls, path: Path) -> CoreMLPackage:
        """Package at `path`, whose manifest was checked.

        Raises BundleError if it is no package, its root is missing, or an item is absent or points
        outside.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version, root_id = manifest["fileFormatVersion"], manifest["rootModelIdentifier"]
            items = {key: str(entry["path"]) for key, entry in manifest["itemInfoEntries"].items()}
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{path} is not a Core ML package: {MANIFEST}: {error}", hint=HINT
            ) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{path}/{MANIFEST} lacks an entry or has one of another kind: {error}", hint=HINT
            ) from error
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{path} has fileFormatVersion {version!r}, this reads {FORMAT_VERSION!r}",
                hint=HINT,
            )
        if problems := [
            problem for item in items.values() for problem in _item_problems(path, item)
        ]:
            raise BundleError(
                f"{path}/{MANIFEST} lists what is not there", problems=problems, hint=HINT
            )
        if root_id not in items:
            raise BundleError(
                f"{path}/{MANIFEST} has the root {root_id!r}, but no such item", hint=HINT
            )
        model = PurePosixPath(items[root_id])
        if not (path / DATA / model).is_file():
            raise BundleError(f"{path}: the root item {model} is not a file", hint=HINT)
        weights = model.parent / WEIGHTS
        listed = weights in {PurePosixPath(item) for item in items.values()}
        return cls(path, path / DATA / model, path / DATA / weights if listed else None)


def _item_problems(package: Path, item: str) -> list[str]:
    """Problems of one item of the manifest; empty if there is none."""
    relative = PurePosixPath(item)
    if relative.is_absolute() or ".." in relative.parts or "\\" in item:
        return [f"{item!r} points outside the package"]
    return [] if (package / DATA / relative).exists() else [f"{DATA}/{item} is absent"]


def load_spec(model_file: Path) -> Model:
    """Model as protobuf. Raises BundleError if the file is not one."""
    with quiet():
        from coremltools.proto.Model_pb2 import Model
        from google.protobuf.message import DecodeError
    model = Model()
    try:
        model.ParseFromString(model_file.read_bytes())
    except (OSError, DecodeError) as error:
        raise BundleError(f"{model_file} is not a Core ML model: {error}", hint=HINT) from error
    if model.WhichOneof("Type") is None:
        raise BundleError(f"{model_file} holds no model", hint=HINT)
    return model


@dataclass(frozen=True)
class Packed:
    """Tensor as it lies in a file: `raw` uint8 [n_bytes], values of `dtype`.

    Values follow one another, lowest bits first.
    """

    raw: NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]

    @property
    def storage(self) -> Storage:
        return STORAGE[self.dtype]

    @property
    def row_elements(self) -> int:
        """Number of values of a row along axis 0."""
        return math.prod(self.shape[1:])

    def array(self) -> NDArray[Any]:
        """All values, [*shape].

        They are a view where a value takes whole bytes, unpacked to (u)int8 otherwise.
        """
        return self._values(0, math.prod(self.shape)).reshape(self.shape)

    def rows(self, begin: int, end: int) -> NDArray[Any]:
        """Values of rows `begin` to `end`, [end - begin, *shape[1:]], as `array` has them."""
        row = self.row_elements
        return self._values(begin * row, end * row).reshape(end - begin, *self.shape[1:])

    def look_up(self, table: NDArray[Any], begin: int, end: int) -> NDArray[Any]:
        """Entries `table[value]` for rows `begin` to `end`, [end - begin, *shape[1:]].

        `table` is [2 ** bits]. For unsigned types. Where a byte holds whole values, all of them are
        looked up at once.
        """
        row, bits = self.row_elements, self.storage.bits
        first, last = begin * row, end * row
        if 8 % bits == 0 and first * bits % 8 == 0:
            packed = self.raw[first * bits // 8 : -(-last * bits // 8)]
            values = np.take(_table_of_bytes(table, bits), packed).view(table.dtype)[: last - first]
        else:
            values = np.take(table, self._values(first, last))
        return values.reshape(end - begin, *self.shape[1:])

    def _values(self, first: int, last: int) -> NDArray[Any]:
        storage = self.storage
        if storage.bits >= 8:
            size = storage.bits // 8
            return self.raw[first * size : last * size].view(storage.unpacked)
        bits = storage.bits
        packed = self.raw[first * bits // 8 : -(-last * bits // 8)]
        ones = np.unpackbits(packed, bitorder="little")[first * bits % 8 :][: (last - first) * bits]
        values = np.packbits(ones.reshape(-1, bits), axis=-1, bitorder="little").reshape(-1)
        return ((values ^ 8).astype(np.int8) - np.int8(8)) if self.dtype == "int4" else values


def _table_of_bytes(table: NDArray[Any], bits: int) -> NDArray[Any]:
    """Entries of all values in a byte, for each byte, as one opaque element: [256]."""
    shifts = np.arange(0, 8, bits)
    rows = table[(np.arange(256)[:, None] >> shifts) & (2**bits - 1)]  # [256, values in a byte]
    return np.ascontiguousarray(rows).view(f"V{rows.shape[1] * rows.itemsize}").reshape(256)


def packed_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Size of a packed tensor in bytes, the last one filled up."""
    return -(-math.prod(shape) * STORAGE[dtype].bits // 8)


class BlobFile:
    """Weight file, memory-mapped. Raises BundleError if it is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Copy-on-write, so that PyTorch takes views of it without a warning; nobody writes, so
            # nothing is copied.
            self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} is not a weight file: {error}", hint=HINT) from error
        if len(self._bytes) < HEADER_BYTES:
            raise BundleError(
                f"{path} is not a weight file: {len(self._bytes)} bytes, expected {HEADER_BYTES}",
                hint=HINT,
            )
        _, version = struct.unpack_from("<II", self._bytes[:HEADER_BYTES].tobytes())
        if version != STORAGE_VERSION:
            raise BundleError(
                f"{path} has storage version {version}, expected {STORAGE_VERSION}", hint=HINT
            )

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Packed:
        """Tensor whose metadata lies at `offset`, in bytes.

        Raises BundleError, naming what was found, if there is no such blob or it is not of this
        type and shape.
        """
        self._check_place(offset, "offset", offset, METADATA_BYTES)
        metadata = self._bytes[offset : offset + METADATA_BYTES].tobytes()
        sentinel, number, n_bytes, begin, padding = struct.unpack_from("<IIQQQ", metadata)
        storage, expected_bytes = STORAGE[dtype], packed_bytes(dtype, shape)
        if sentinel != SENTINEL:
            self._fail(offset, "sentinel", f"{sentinel:#x}", f"{SENTINEL:#x}")
        if number != storage.number:
            self._fail(offset, "type", _NAMES.get(number, f"number {number}"), dtype)
        if n_bytes != expected_bytes:
            self._fail(
                offset, "size in bytes", n_bytes, f"{expected_bytes}, for {dtype} {list(shape)}"
            )
        self._check_place(offset, "data offset", begin, n_bytes)
        if storage.bits < 8 and padding != (spare := n_bytes * 8 - math.prod(shape) * storage.bits):
            self._fail(offset, "padding in bits", padding, spare)
        return Packed(self._bytes[begin : begin + n_bytes], dtype, shape)

    def _check_place(self, offset: int, what: str, begin: int, n_bytes: int) -> None:
        last = len(self._bytes) - n_bytes
        if begin % ALIGNMENT or not HEADER_BYTES <= begin <= last:
            self._fail(
                offset, what, begin, f"a multiple of {ALIGNMENT} in [{HEADER_BYTES}, {last}]"
            )

    def _fail(self, offset: int, what: str, got: object, expected: object) -> None:
        raise BundleError(
            f"{self.path}, blob at {offset}: {what} is {got}, expected {expected}", hint=HINT
        )


class BlobFiles:
    """Weight files of a package, opened when they are first named."""

    PREFIX = "@model_path/weights/"

    def __init__(self, weights_dir: Path | None) -> None:
        self.weights_dir = weights_dir
        self._open = functools.cache(BlobFile)

    def read(self, name: str, offset: int, dtype: str, shape: tuple[int, ...]) -> Packed:
        """Tensor of the file that a program calls `name`.

        Raises BundleError as BlobFile does, or for a name that leads outside the folder.
        """
        file = name.removeprefix(self.PREFIX)
        if (
            not name.startswith(self.PREFIX)
            or file in ("", ".", "..")
            or "/" in file
            or "\\" in file
            or "\0" in file
        ):
            raise BundleError(
                f"the program names the weight file {name!r}, which is not in {self.PREFIX}",
                hint=HINT,
            )
        if self.weights_dir is None:
            raise BundleError(
                f"the program names {name}, but {MANIFEST} lists no weights", hint=HINT
            )
        return self._open(self.weights_dir / file).read(offset, dtype, shape)

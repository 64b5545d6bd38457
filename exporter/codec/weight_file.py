"""Weight files of a Core ML package in coded form, and their expansion to the very bytes Core ML
maps.

An ML Program takes no custom operator on a device, so its weights are shipped coded and expanded
once, at install. A `Recipe` lists the pieces of every weight file in order: bytes taken as they
are, and matrices to be decoded from a TQLZ blob and packed as int8 or as 2-bit indices. All pieces
lie in one coded file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from exporter.codec.encoder import release
from exporter.codec.native import NativeTensor
from exporter.errors import BundleError, CodecError, OutOfSpaceError, UsageError

Levels = NDArray[np.int8]
Octets = NDArray[np.uint8]

RECIPE_VERSION = 1
# Levels decoded at a time; a multiple of 4, so that 2-bit blocks end on whole bytes.
BLOCK_WEIGHTS = 1 << 22
FORMS = ("bytes", "int8", "int4", "uint2")
PACKAGE_MANIFEST = "Manifest.json"  # what every `.mlpackage` has


@dataclass(frozen=True)
class Piece:
    """`n_bytes` of a weight file, made from `coded_bytes` at `coded_offset` of the coded file.

    form: "bytes" as they are, or the name of a `PlainForm` of the levels of a TQLZ blob, without
    padding between rows.
    """

    form: str
    n_bytes: int
    coded_offset: int
    coded_bytes: int


@dataclass(frozen=True)
class WeightFile:
    """One weight file: its path in the package, size, SHA-256 in hex, and pieces in order."""

    path: str
    n_bytes: int
    sha256: str
    pieces: list[Piece]


@dataclass(frozen=True)
class Recipe:
    """How a template and a coded file become an `.mlpackage`. Paths are relative to the bundle."""

    version: int
    template: str
    package: str
    coded_file: str
    weight_files: list[WeightFile]

    def to_json(self) -> str:
        """Indented JSON with a final newline."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Raises BundleError for anything that is not a recipe of this version."""
        try:
            raw = json.loads(text)
            files = [
                WeightFile(**f | {"pieces": [Piece(**p) for p in f["pieces"]]})
                for f in raw["weight_files"]
            ]
            recipe = cls(**raw | {"weight_files": files})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BundleError(
                f"the recipe of the weight file is damaged: {error}", hint="export again"
            ) from error
        if problems := recipe._problems():
            raise BundleError(
                "the recipe of the weight file is not valid", problems=problems, hint="export again"
            )
        return recipe

    def _problems(self) -> list[str]:
        problems = (
            []
            if self.version == RECIPE_VERSION
            else [f"version {self.version!r}, expected {RECIPE_VERSION}"]
        )
        paths = [
            self.template,
            self.package,
            self.coded_file,
            *(file.path for file in self.weight_files),
        ]
        problems += [
            f"{p!r} is outside the bundle"
            for p in paths
            if PurePosixPath(p).is_absolute() or ".." in p
        ]
        for file in self.weight_files:
            pieces = file.pieces
            numbers = [n for p in pieces for n in (p.n_bytes, p.coded_offset, p.coded_bytes)]
            if any(type(n) is not int or n < 0 for n in numbers) or any(
                p.form not in FORMS for p in pieces
            ):
                problems.append(f"{file.path}: a piece has an unknown form or a wrong number")
            elif sum(p.n_bytes for p in pieces) != file.n_bytes:
                problems.append(f"{file.path}: its pieces do not sum to {file.n_bytes:,} bytes")
        return problems


@dataclass(frozen=True)
class PlainForm:
    """Levels as plain numbers: "uint2" level + 1 in two bits, "int4" a level in four bits (two's
    complement), "int8" in eight; the first level in the lowest bits of a byte."""

    name: str
    bits: int

    def n_bytes(self, n_levels: int) -> int:
        """Size of so many levels, in bytes."""
        return -(-n_levels * self.bits // 8)

    def pack(self, levels: Levels) -> Octets:
        """Levels int8 [..] -> uint8 [n_bytes]."""
        if self.bits == 2:
            return pack_uint2(levels)
        return pack_int4(levels) if self.bits == 4 else levels.reshape(-1).view(np.uint8)

    def unpack(self, packed: Octets, n: int) -> Levels:
        """Inverse of `pack`: int8 [n]."""
        if self.bits == 2:
            return unpack_uint2(packed, n)
        return unpack_int4(packed, n) if self.bits == 4 else packed.view(np.int8)[:n]


PLAIN_FORMS = {form.name: form for form in map(PlainForm, ("uint2", "int4", "int8"), (2, 4, 8))}


def plain_form(n_levels: int) -> PlainForm:
    """The narrowest plain form for an alphabet of `n_levels` levels around zero."""
    name = "uint2" if n_levels <= 3 else "int4" if n_levels <= 15 else "int8"
    return PLAIN_FORMS[name]


def pack_int4(levels: Levels) -> Octets:
    """Levels int8 [n] from -8 to 7 -> uint8 [ceil(n / 2)], the first in the lower four bits."""
    nibbles = np.zeros(-(-levels.size // 2) * 2, np.uint8)
    nibbles[: levels.size] = levels.reshape(-1).view(np.uint8) & 15
    low, high = nibbles.reshape(-1, 2).T
    packed: Octets = low | (high << np.uint8(4))
    return packed


def unpack_int4(packed: Octets, n: int) -> Levels:
    """Inverse of `pack_int4`: int8 [n]."""
    nibbles = (packed[:, None] >> np.array([0, 4], np.uint8)) & 15
    return ((nibbles ^ 8).astype(np.int8) - 8).reshape(-1)[:n]


def pack_uint2(levels: Levels) -> Octets:
    """Ternary levels int8 [n] -> uint8 [ceil(n / 4)]: level + 1 in two bits, the first in the
    lowest."""
    indices = np.zeros(-(-levels.size // 4) * 4, np.uint8)
    np.add(levels.reshape(-1), 1, out=indices[: levels.size], casting="unsafe")
    first, second, third, fourth = indices.reshape(-1, 4).T
    packed: Octets = (
        first | (second << np.uint8(2)) | (third << np.uint8(4)) | (fourth << np.uint8(6))
    )
    return packed


def unpack_uint2(packed: Octets, n: int) -> Levels:
    """Inverse of `pack_uint2`: int8 [n]; an index of 3 becomes level 2, which no ternary matrix
    has."""
    shifted = packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)
    return ((shifted & 3).astype(np.int8) - 1).reshape(-1)[:n]


def expanded(coded: Octets, piece: Piece) -> Iterator[Octets]:
    """The bytes of a piece, in blocks of uint8. Raises CodecError or BundleError where the coded
    file is wrong."""
    source = coded[piece.coded_offset : piece.coded_offset + piece.coded_bytes]
    if source.size != piece.coded_bytes:
        what = (
            f"the coded file ends at {coded.size:,} bytes, a piece at "
            f"{piece.coded_offset + piece.coded_bytes:,}"
        )
        raise BundleError(what, hint="copy the bundle again")
    if piece.form == "bytes":
        yield source
        return
    with NativeTensor(source) as tensor:
        rows, cols = tensor.info.rows, tensor.info.cols
        step = max(4, BLOCK_WEIGHTS // cols // 4 * 4)
        for begin in range(0, rows, step):
            levels = tensor.decode_rows(begin, min(begin + step, rows)).reshape(-1)
            yield PLAIN_FORMS[piece.form].pack(levels)
            release(coded)


def sha256_of(coded: Octets, pieces: list[Piece], progress: Callable[[int], None]) -> str:
    """Hex digest of the weight file made of `pieces`, without writing it; `progress` is told the
    bytes done."""
    digest = hashlib.sha256()
    for piece in pieces:
        for block in expanded(coded, piece):
            digest.update(block.data)
            progress(block.size)
    return digest.hexdigest()


def expand(bundle: Path, recipe: Recipe, target: Path, progress: Callable[[int], None]) -> None:
    """Builds the `.mlpackage` at `target`, byte for byte as it was exported; replaces one that is
    there.

    Works in `.NAME.partial` beside it, from which the package goes to its place by a rename when
    complete: a process may be killed at any moment. An interrupted expansion goes on from the last
    whole piece; its bytes are hashed again, not trusted. Raises UsageError if something else than a
    package is at `target`, BundleError when the result is not what the recipe says, OutOfSpaceError
    before anything is written if the disk is too full.
    """
    if target.is_symlink() or (target.exists() and not (target / PACKAGE_MANIFEST).is_file()):
        raise UsageError(
            f"{target} exists and is not a Core ML package", hint="choose another TARGET"
        )
    work = staging_path(target)
    package, old = work / "new", work / "old"
    coded = np.memmap(bundle / recipe.coded_file, dtype=np.uint8, mode="r")
    _check_disk(recipe, package, target.parent)
    shutil.copytree(bundle / recipe.template, package, dirs_exist_ok=True)
    for file in recipe.weight_files:
        path = package / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _expand_file(coded, file, path, progress)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(package, target)
    shutil.rmtree(work)


def staging_path(target: Path) -> Path:
    """Where an expansion to `target` works."""
    return target.with_name(f".{target.name}.partial")


def _check_disk(recipe: Recipe, package: Path, disk: Path) -> None:
    done = sum(
        (package / f.path).stat().st_size
        for f in recipe.weight_files
        if (package / f.path).is_file()
    )
    needed = sum(f.n_bytes for f in recipe.weight_files) - done + (16 << 20)
    free = shutil.disk_usage(disk).free
    if free < needed:
        what = f"the package needs {needed / 1e9:.2f} GB in {disk}, {free / 1e9:.2f} GB are free"
        raise OutOfSpaceError(
            what, hint="free space, or expand to another disk: tinyqmoe expand BUNDLE TARGET"
        )


def _expand_file(
    coded: Octets, file: WeightFile, path: Path, progress: Callable[[int], None]
) -> None:
    digest = hashlib.sha256()
    with path.open("r+b" if path.exists() else "w+b") as out:
        present = out.seek(0, os.SEEK_END)
        out.seek(0)
        for piece in file.pieces:
            if out.tell() + piece.n_bytes <= present:
                _hash_again(out, piece.n_bytes, digest)
                progress(piece.n_bytes)
                continue
            try:
                for block in expanded(coded, piece):
                    digest.update(block.data)
                    out.write(block.data)
                    progress(block.size)
            except CodecError as error:
                raise BundleError(
                    f"{path.name} cannot be rebuilt: {error}", hint="copy the bundle again"
                ) from error
        out.truncate()
    if digest.hexdigest() != file.sha256:
        path.unlink()  # so that the next try begins anew
        what = f"{file.path} was rebuilt with another SHA-256 than it was exported with"
        raise BundleError(
            what, hint="run `tinyqmoe expand` again; if that fails, copy the bundle again"
        )


def _hash_again(file: BinaryIO, n_bytes: int, digest: Any) -> None:
    for begin in range(0, n_bytes, 1 << 20):
        digest.update(file.read(min(1 << 20, n_bytes - begin)))

"""Weight files of a Core ML package in coded form, and their expansion.

An expansion gives the very bytes that Core ML maps. An ML Program takes no custom operator on a
device, so its weights are shipped coded and expanded once, at install. A `Recipe` lists the pieces
of every weight file in order: bytes taken as they are, and matrices to be decoded from a TQLZ blob
and packed as int8 or as 2-bit indices. All pieces lie in one coded file.
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

from exporter import real_files, strict_json
from exporter.codec.encoder import release
from exporter.codec.native_tensor import NativeTensor
from exporter.codec.plain_bits import PLAIN_BITS, plain_bytes
from exporter.errors import BundleError, CodecError, OutOfSpaceError, UsageError

Levels = NDArray[np.int8]
Octets = NDArray[np.uint8]

RECIPE_VERSION = 1
# Levels decoded at a time; a multiple of 4, so that 2-bit blocks end on whole bytes.
BLOCK_WEIGHTS = 1 << 22
FORMS = ("bytes", *PLAIN_BITS)
PACKAGE_MANIFEST = "Manifest.json"  # what every `.mlpackage` has


@dataclass(frozen=True)
class Piece:
    """A piece of a weight file: `n_bytes` bytes, and the bytes of the coded file it is made from.

    The latter are `coded_bytes` from `coded_offset` on.

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
    """The recipe by which a template and a coded file become an `.mlpackage`.

    Paths are relative to the bundle.
    """

    version: int
    template: str
    package: str
    coded_file: str
    weight_files: list[WeightFile]

    def to_json(self) -> str:
        """The recipe as indented JSON with a final newline."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Recipe:
        """The recipe in a JSON text.

        Raises BundleError for anything that is not a recipe of this version.
        """
        try:
            raw = strict_json.parse(text)
            files = [
                WeightFile(**f | {"pieces": [Piece(**p) for p in f["pieces"]]})
                for f in raw["weight_files"]
            ]
            recipe = cls(**raw | {"weight_files": files})
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(
                f"the recipe of the weight file is damaged: {error}", hint="export again"
            ) from error
        if problems := recipe._problems():
            raise BundleError(
                "the recipe of the weight file is not valid", problems=problems, hint="export again"
            )
        return recipe

    def _problems(self) -> list[str]:
        if type(self.version) is not int or self.version != RECIPE_VERSION:
            return [f"version {self.version!r}, expected {RECIPE_VERSION}"]
        packages = (self.template, self.package)
        paths = [*packages, self.coded_file, *(file.path for file in self.weight_files)]
        if wrong := [p for p in paths if type(p) is not str or not _is_plain_path(p)]:
            return [f"{p!r} is outside the bundle, or no plain path" for p in wrong]
        problems = [
            f"{p!r} is not the name of a package"
            for p in packages
            if "/" in p or not p.endswith(".mlpackage")
        ]
        if "/" in self.coded_file:
            problems.append(f"{self.coded_file!r} is not the name of a file of the bundle")
        if self.template == self.package:
            problems.append("the template is the package")
        if len(set(paths)) < len(paths):
            problems.append("a file is named twice")
        return problems + [p for file in self.weight_files for p in _file_problems(file)]


def _is_plain_path(path: str) -> bool:
    """Whether a path leads downwards only, and is written in one way only."""
    plain = path != "" and str(PurePosixPath(path)) == path
    return plain and path[0] != "/" and ".." not in path and "\0" not in path


def _file_problems(file: WeightFile) -> list[str]:
    numbers = [n for p in file.pieces for n in (p.n_bytes, p.coded_offset, p.coded_bytes)]
    if any(type(n) is not int or not 0 <= n < 1 << 53 for n in (file.n_bytes, *numbers)):
        return [f"{file.path}: a number of bytes is none"]
    if any(p.form not in FORMS for p in file.pieces):
        return [f"{file.path}: a piece has an unknown form"]
    if sum(p.n_bytes for p in file.pieces) != file.n_bytes:
        return [f"{file.path}: its pieces do not sum to {file.n_bytes:,} bytes"]
    wrong = [p for p in file.pieces if p.form == "bytes" and p.n_bytes != p.coded_bytes]
    return [f"{file.path}: bytes as they are have another length"] if wrong else []


@dataclass(frozen=True)
class PlainForm:
    """A form of levels as plain numbers, the first level in the lowest bits of a byte.

    "uint2" is level + 1 in two bits, "int4" a level in four bits (two's complement), "int8" in
    eight.
    """

    name: str
    bits: int

    def n_bytes(self, n_levels: int) -> int:
        """Size of so many levels, in bytes."""
        return plain_bytes(self.name, n_levels)

    def pack(self, levels: Levels) -> Octets:
        """Levels int8 [..] packed into bytes, uint8 [n_bytes]."""
        if self.bits == 2:
            return pack_uint2(levels)
        return pack_int4(levels) if self.bits == 4 else levels.reshape(-1).view(np.uint8)

    def unpack(self, packed: Octets, n: int) -> Levels:
        """Levels of packed bytes, int8 [n]: the inverse of `pack`."""
        if self.bits == 2:
            return unpack_uint2(packed, n)
        return unpack_int4(packed, n) if self.bits == 4 else packed.view(np.int8)[:n]


PLAIN_FORMS = {name: PlainForm(name, bits) for name, bits in PLAIN_BITS.items()}


def plain_form(n_levels: int) -> PlainForm:
    """The narrowest plain form for an alphabet of `n_levels` levels around zero."""
    name = "uint2" if n_levels <= 3 else "int4" if n_levels <= 15 else "int8"
    return PLAIN_FORMS[name]


def pack_int4(levels: Levels) -> Octets:
    """Levels int8 [n] from -8 to 7, packed into uint8 [ceil(n / 2)].

    The first of two is in the lower four bits.
    """
    nibbles = np.zeros(-(-levels.size // 2) * 2, np.uint8)
    nibbles[: levels.size] = levels.reshape(-1).view(np.uint8) & 15
    low, high = nibbles.reshape(-1, 2).T
    packed: Octets = low | (high << np.uint8(4))
    return packed


def unpack_int4(packed: Octets, n: int) -> Levels:
    """Levels of packed bytes, int8 [n]: the inverse of `pack_int4`."""
    nibbles = (packed[:, None] >> np.array([0, 4], np.uint8)) & 15
    return ((nibbles ^ 8).astype(np.int8) - 8).reshape(-1)[:n]


def pack_uint2(levels: Levels) -> Octets:
    """Ternary levels int8 [n], packed into uint8 [ceil(n / 4)].

    Each takes two bits, as level + 1; the first is in the lowest.
    """
    indices = np.zeros(-(-levels.size // 4) * 4, np.uint8)
    np.add(levels.reshape(-1), 1, out=indices[: levels.size], casting="unsafe")
    first, second, third, fourth = indices.reshape(-1, 4).T
    packed: Octets = (
        first | (second << np.uint8(2)) | (third << np.uint8(4)) | (fourth << np.uint8(6))
    )
    return packed


def unpack_uint2(packed: Octets, n: int) -> Levels:
    """Levels of packed bytes, int8 [n]: the inverse of `pack_uint2`.

    An index of 3 becomes level 2, which no ternary matrix has.
    """
    shifted = packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)
    return ((shifted & 3).astype(np.int8) - 1).reshape(-1)[:n]


def expanded(coded: Octets, piece: Piece) -> Iterator[Octets]:
    """The bytes of a piece, in blocks of uint8.

    Raises CodecError or BundleError where the coded file is wrong.
    """
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
        if plain_bytes(piece.form, rows * cols) != piece.n_bytes:
            what = f"a piece has {rows} x {cols} levels, which are not {piece.n_bytes:,} bytes"
            raise BundleError(what, hint="copy the bundle again")
        step = max(4, BLOCK_WEIGHTS // cols // 4 * 4)
        for begin in range(0, rows, step):
            levels = tensor.decode_rows(begin, min(begin + step, rows)).reshape(-1)
            yield PLAIN_FORMS[piece.form].pack(levels)
            release(coded)


def sha256_of(coded: Octets, pieces: list[Piece], progress: Callable[[int], None]) -> str:
    """SHA-256 in hex digits of the weight file made of `pieces`, without writing it.

    `progress` is told the number of bytes of each block that is done.
    """
    digest = hashlib.sha256()
    for piece in pieces:
        for block in expanded(coded, piece):
            digest.update(block.data)
            progress(block.size)
    return digest.hexdigest()


def expand(bundle: Path, recipe: Recipe, target: Path, progress: Callable[[int], None]) -> None:
    """Builds the `.mlpackage` at `target`, byte for byte as it was exported.

    It replaces one that is there.

    Works in `.NAME.partial` beside it, from which the package goes to its place by a rename when
    complete: a process may be killed at any moment. An interrupted expansion goes on from the last
    whole piece; its bytes are hashed again, not trusted. Raises UsageError if something else than
    this package is at `target`, or than a folder of ours at `.NAME.partial`; BundleError when the
    result is not what the recipe says, or the template holds a link; OutOfSpaceError before
    anything is written if the disk is too full.
    """
    template, work = bundle / recipe.template, staging_path(target)
    _check_places(bundle / recipe.coded_file, template, target, work)
    package, old = work / "new", work / "old"
    coded = np.memmap(bundle / recipe.coded_file, dtype=np.uint8, mode="r")
    _check_disk(recipe, package, target.parent)
    _copy_template(template, package)
    for file in recipe.weight_files:
        path = package / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _expand_file(coded, file, path, progress)
    real_files.sync(package)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    real_files.rename(package, target)
    shutil.rmtree(work)


def _copy_template(template: Path, package: Path) -> None:
    """Copies all files. The first error ends it: `shutil.copytree` makes one without a number of
    all, by which a full disk is no longer known."""
    for name in real_files.regular_files(template):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template / name, package / name)


def _check_places(coded: Path, template: Path, target: Path, work: Path) -> None:
    """Refuses links where files are read from and written to, and a target that is not ours.

    A bundle may come from a stranger: nothing outside it may get into the package, and nothing
    outside the target may be written. Raises BundleError, UsageError.
    """
    plain = not coded.exists() or (coded.is_file() and not coded.is_symlink())
    if found := [*real_files.links(template), *([] if plain else [coded.name])]:
        raise BundleError(
            f"{template.parent} holds links where an expansion reads",
            problems=found,
            hint="put the files in place of the links",
        )
    marks = [folder / PACKAGE_MANIFEST for folder in (template, target)]
    if target.is_symlink() or (target.exists() and not _same_bytes(*marks)):
        raise UsageError(
            f"{target} exists and is not a Core ML package of this tool",
            hint="choose another TARGET",
        )
    others = real_files.unsafe_to_write(work)
    if not others and work.exists():
        others = sorted({path.name for path in work.iterdir()} - {"new", "old"})
    if others:
        what = f"{work} is not a work folder of this tool, and an expansion would write into it"
        raise UsageError(what, problems=others, hint="remove it")


def _same_bytes(a: Path, b: Path) -> bool:
    """Whether both are files with the same content."""
    return a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes()


def staging_path(target: Path) -> Path:
    """The directory in which an expansion to `target` works."""
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

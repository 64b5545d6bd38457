"""A bundle on disk: its files, and the comparison of them with the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path, PurePosixPath

from exporter import real_files, strict_json
from exporter.bundle.entries import (
    MANIFEST,
    REFERENCE,
    SIGNATURE,
    Artifact,
    FileEntry,
    LedgerRow,
    Manifest,
)
from exporter.bundle.reading import read_manifest
from exporter.errors import BundleError, UsageError

MAX_MANIFEST_BYTES = 16 << 20  # as in native/llm/bundle.cc


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Reads the manifest of a bundle; `verify` reads the other files.

        Raises BundleError.
        """
        path = Path(path)
        file = path / MANIFEST
        if not file.is_file():
            what = "no such directory" if not path.is_dir() else f"it has no {MANIFEST}"
            raise BundleError(
                f"{path} is not a bundle: {what}", hint="make one with `tinyqmoe export MODEL OUT`"
            )
        try:
            if (size := file.stat().st_size) > MAX_MANIFEST_BYTES:
                raise ValueError(f"{size:,} bytes, expected at most {MAX_MANIFEST_BYTES:,}")
            manifest = read_manifest(strict_json.parse(file.read_bytes()))
        except ValueError as error:
            raise BundleError(f"{file} is not JSON: {error}", hint="export again") from error
        return cls(path, manifest)

    def verify(self, hashed: Collection[str] | None = None) -> None:
        """Compares every file with the size in the manifest, and `hashed` with their SHA-256 too.

        `hashed` are paths as in the manifest; None is all of them. Raises BundleError naming all
        that differ.
        """
        manifest = self.manifest
        there = [e for e in manifest.expanded if self.file(e.path).exists()]
        regular = set(bundle_files(self.path))
        problems = [
            problem
            for entry in [*manifest.files, *there]
            for problem in self._file_problems(
                entry, entry.path in regular, hashed is None or entry.path in hashed
            )
        ]
        problems += [f"{name} is not in the manifest" for name in self._strangers()]
        beside = (MANIFEST, SIGNATURE)
        problems += [f"{name} is a link" for name in real_files.links(self.path) if name in beside]
        if problems:
            raise BundleError(
                f"{self.path} is damaged", problems=problems, hint="copy it again, or export again"
            )

    def files_of(self, artifact: Artifact) -> set[str]:
        """Paths of the files of a package, those that `tinyqmoe expand` makes included."""
        inside = f"{artifact.path}/"
        expanded = {e.path for e in self.manifest.expanded if e.path.startswith(inside)}
        return expanded | set(artifact.files)

    @property
    def shared_files(self) -> set[str]:
        """Paths of the files that all packages share: tokenizer, chat template, sources."""
        owned = {name for a in self.manifest.artifacts for name in self.files_of(a)}
        return {e.path for e in self.manifest.files} - owned - {REFERENCE}

    def _strangers(self) -> list[str]:
        """Files inside a package that the manifest does not name: a runtime might read them, and
        an expansion would ship them."""
        packages = {PurePosixPath(name).parts[0] for name in self._known if "/" in name}
        return [name for name in self._unknown if PurePosixPath(name).parts[0] in packages]

    @property
    def foreign_files(self) -> list[str]:
        """Files beside the packages that the manifest does not name, relative paths.

        They do no harm: what a hub or a file manager adds, or a result that someone keeps there.
        """
        strangers = set(self._strangers())
        return [name for name in self._unknown if name not in strangers]

    @property
    def _known(self) -> set[str]:
        """Paths that the manifest names."""
        return {entry.path for entry in [*self.manifest.files, *self.manifest.expanded]}

    @property
    def _unknown(self) -> list[str]:
        """Paths of all that is in the directory and not named by the manifest, links included."""
        known = {*self._known, MANIFEST, SIGNATURE}
        return [name for name, _ in real_files.walk(self.path) if name not in known]

    def _file_problems(self, entry: FileEntry, regular: bool, hashed: bool) -> list[str]:
        file = self.file(entry.path)
        if not file.is_file():
            return [f"{entry.path} is missing"]
        if not regular:
            return [f"{entry.path} is a link, or lies behind one: copy what it points to"]
        if file.stat().st_size != entry.n_bytes:
            return [f"{entry.path} has {file.stat().st_size:,} bytes, expected {entry.n_bytes:,}"]
        if hashed and sha256(file) != entry.sha256:
            return [f"{entry.path} has been changed: its SHA-256 differs from the manifest's"]
        return []

    def artifact(self, wanted: str) -> Artifact:
        """The package of a format, or the first one of a backend.

        Raises UsageError if the bundle has none.
        """
        for a in self.manifest.artifacts:
            if wanted in (a.format, a.backend):
                return a
        there = ", ".join(f"{a.format} ({a.backend})" for a in self.manifest.artifacts)
        raise UsageError(
            f"{self.path} has no package for {wanted}: it has {there}",
            hint="export it with --target",
        )

    def file(self, relative: str) -> Path:
        """The path of a file that the manifest names.

        Raises BundleError if it points outside the bundle.
        """
        path = self.path / relative
        # Of a link to itself `Path.resolve` raises.
        if "\0" in relative or not Path(realpath(path)).is_relative_to(realpath(self.path)):
            raise BundleError(f"{MANIFEST} names {relative!r}, which is outside the bundle")
        return path

    def shipped_bytes(self, artifact: Artifact) -> int:
        """Size of the files that an app carries for a package, in bytes."""
        return sum(self.file(name).stat().st_size for name in artifact.files)

    @property
    def ledger(self) -> list[LedgerRow]:
        """The ledger of every byte on disk: the manifest's rows and one for the manifest itself."""
        own = LedgerRow(MANIFEST, "manifest", (self.path / MANIFEST).stat().st_size)
        return [*self.manifest.ledger, own]

    @property
    def size_bytes(self) -> int:
        """Size of the bundle's own files on disk, in bytes."""
        entries = [*self.manifest.files, *self.manifest.expanded]
        files = (self.path / name for name in (*(e.path for e in entries), MANIFEST))
        return sum(file.stat().st_size for file in files if file.is_file())


def bundle_files(path: Path) -> list[str]:
    """Paths of all regular files but the manifest and its signature, relative and sorted."""
    beside = (MANIFEST, SIGNATURE)
    return sorted(name for name in real_files.regular_files(path) if name not in beside)


def logits_sha256(rows: Iterable[memoryview]) -> bytes:
    """SHA-256 of rows of logits float32, little-endian, one after another."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row)
    return digest.digest()


def file_entries(path: Path) -> list[FileEntry]:
    """The manifest's file list for what lies in `path`."""
    return [
        FileEntry(name, (path / name).stat().st_size, sha256(path / name))
        for name in bundle_files(path)
    ]


def sha256(path: Path) -> str:
    """SHA-256 of a file as hex digits; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_bundle(path: Path) -> bool:
    """Whether a directory has a manifest of this tool, of any schema version."""
    if not (path / MANIFEST).is_file():
        return False
    try:
        raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return isinstance(raw["schema_version"], int) and "tiny-qmoe" in raw["tools"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_target(out: Path, *, force: bool) -> None:
    """Checks that a bundle may be written to `out`.

    An empty directory is as good as none. Raises UsageError if `out` exists and `force` is not
    given, or is not a bundle.
    """
    if not (out.is_symlink() or out.exists()):
        return
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if not force:
        raise UsageError(
            f"{out} already exists", hint="choose another directory, or give --force to replace it"
        )
    if out.is_symlink() or not is_bundle(out):
        what = f"{out} exists and is not a bundle; --force replaces only bundles"
        raise UsageError(what, hint="choose another directory")

"""The bundle: a directory with the packages, what describes them, and what they must answer.

`manifest.json` says what every tensor and every byte is. A bundle is written under a temporary name and renamed when
complete, so a directory that looks like a bundle is one. Nothing here imports torch: the reference runtime reads
bundles too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from exporter.errors import BundleError, OutOfSpaceError, UsageError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PROGRAM = "model.pte"
REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class TensorEntry:
    """One matrix in the package. Offsets are from the artifact's start; `bits_per_weight` counts blob and scales."""

    name: str
    rows: int
    cols: int
    scheme: str
    group_size: int
    codec: str
    code_bits: int
    cap: int
    bits_per_weight: float
    entropy_bits: float
    zeros: float
    levels_crc32: int
    blob_offset: int
    blob_bytes: int
    scales_offset: int
    scales_bytes: int
    sizes_bytes: dict[str, int]


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle, its path relative to it, in POSIX form."""

    path: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class LedgerRow:
    """What some bytes of a file are. The rows of a file sum to its size."""

    file: str
    what: str
    n_bytes: int


@dataclass(frozen=True)
class ModelEntry:
    """The model the bundle was made from. `config` is its config.json."""

    name: str
    parameters: int
    source_bytes: int
    config: dict[str, Any]


@dataclass(frozen=True)
class ProgramEntry:
    """The ExecuTorch program: the contract with whoever runs it."""

    file: str
    context: int
    prefill_tokens: int
    activations: str
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: list[int]
    arena_bytes: int
    kv_cache_bytes: int
    delegates: int
    operators: dict[str, int]


@dataclass(frozen=True)
class QuantizationLoss:
    """What quantization cost, over the positions of one text, against the float model. Not a parity verdict."""

    positions: int
    kl_mean: float
    top1_agreement: float
    perplexity_original: float
    perplexity_quantized: float


@dataclass(frozen=True)
class Manifest:
    """Everything in `manifest.json`."""

    schema_version: int
    created: str
    tools: dict[str, str]
    model: ModelEntry
    quantization: dict[str, Any]
    quantization_loss: QuantizationLoss
    program: ProgramEntry
    prompts: list[str]
    tensors: list[TensorEntry] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    files: list[FileEntry] = field(default_factory=list)

    def to_json(self) -> str:
        """Indented JSON with a final newline."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, raw: object) -> Manifest:
        """Parsed JSON -> Manifest. Raises BundleError with all fields that are missing, unknown or of a wrong type."""
        if not isinstance(raw, dict):
            raise BundleError(f"{MANIFEST} must hold an object, got {type(raw).__name__}")
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST} has schema version {version!r}, this tool reads {SCHEMA_VERSION}",
                do="export again, or use the version of tiny-qmoe the bundle was made with",
            )
        problems: list[str] = []
        manifest = _build(cls, raw, "", problems)
        if problems:
            raise BundleError(f"{MANIFEST} is not valid", problems=problems, do="export again")
        return manifest


def _build(kind: Any, raw: object, where: str, problems: list[str]) -> Any:
    """A dataclass from a dict, checking names and types of what it holds; None where that fails."""
    if not isinstance(raw, dict):
        problems.append(f"{where.removesuffix('.') or 'manifest'} must be an object, got {type(raw).__name__}")
        return None
    known = {f.name: f.type for f in fields(kind)}
    problems += [f"{where}{name} is missing" for name in known if name not in raw]
    problems += [f"{where}{name} is unknown" for name in raw if name not in known]
    values = {name: _value(str(known[name]), raw[name], f"{where}{name}", problems) for name in known if name in raw}
    return kind(**values) if known.keys() <= values.keys() else None


_NESTED: dict[str, Any] = {
    c.__name__: c for c in (TensorEntry, FileEntry, LedgerRow, ModelEntry, ProgramEntry, QuantizationLoss)
}
_PLAIN: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "int | None": (int, type(None))}


def _value(kind: str, raw: object, where: str, problems: list[str]) -> Any:
    if kind in _NESTED:
        return _build(_NESTED[kind], raw, f"{where}.", problems)
    if kind.startswith("list[") and isinstance(raw, list):
        inner = kind.removeprefix("list[").removesuffix("]")
        return [_value(inner, item, f"{where}[{i}]", problems) for i, item in enumerate(raw)]
    if kind.startswith("dict[") and isinstance(raw, dict):  # the keys of a JSON object are always texts
        inner = kind.removeprefix("dict[str, ").removesuffix("]")
        return {key: _value(inner, item, f"{where}.{key}", problems) for key, item in raw.items()}
    if kind == "Any" or (kind in _PLAIN and isinstance(raw, _PLAIN[kind]) and not isinstance(raw, bool)):
        return raw
    problems.append(f"{where} must be {kind}, got {type(raw).__name__}")
    return None


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Reads the manifest; `verify` reads the rest. Raises BundleError."""
        file = path / MANIFEST
        if not file.is_file():
            what = "no such directory" if not path.is_dir() else f"it has no {MANIFEST}"
            raise BundleError(f"{path} is not a bundle: {what}", do="make one with `tinyqmoe export MODEL OUT`")
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{file} is not JSON: {error}", do="export again") from error
        return cls(path, Manifest.from_dict(raw))

    def verify(self) -> None:
        """Compares every file with the size and SHA-256 in the manifest. Raises BundleError naming all that differ."""
        problems = []
        for entry in self.manifest.files:
            file = self.file(entry.path)
            if not file.is_file():
                problems.append(f"{entry.path} is missing")
            elif file.stat().st_size != entry.n_bytes:
                problems.append(f"{entry.path} has {file.stat().st_size:,} bytes, expected {entry.n_bytes:,}")
            elif sha256(file) != entry.sha256:
                problems.append(f"{entry.path} has been changed: its SHA-256 differs from the manifest's")
        listed = {entry.path for entry in self.manifest.files}
        problems += [f"{name} is not in the manifest" for name in bundle_files(self.path) if name not in listed]
        for needed in (self.manifest.program.file, REFERENCE):
            if needed not in listed:
                problems.append(f"{needed} is not listed in the manifest")
        if problems:
            raise BundleError(f"{self.path} is damaged", problems=problems, do="copy it again, or export again")

    def file(self, relative: str) -> Path:
        """The path of a file the manifest names. Raises BundleError if it points outside the bundle."""
        path = self.path / relative
        if "\0" in relative or not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{MANIFEST} names {relative!r}, which is outside the bundle")
        return path

    @property
    def ledger(self) -> list[LedgerRow]:
        """What every byte on disk is: the manifest's rows and one for the manifest itself."""
        own = LedgerRow(MANIFEST, "manifest", (self.path / MANIFEST).stat().st_size)
        return [*self.manifest.ledger, own]

    @property
    def size_bytes(self) -> int:
        """Of all files on disk."""
        return sum((self.path / name).stat().st_size for name in [*bundle_files(self.path), MANIFEST])


def bundle_files(path: Path) -> list[str]:
    """All files but the manifest, relative and sorted."""
    files = (f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())
    return sorted(f for f in files if f != MANIFEST)


def file_entries(path: Path) -> list[FileEntry]:
    """The manifest's file list for what lies in `path`."""
    return [FileEntry(name, (path / name).stat().st_size, sha256(path / name)) for name in bundle_files(path)]


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_target(out: Path, *, force: bool) -> None:
    """Raises UsageError if `out` exists and `force` is not given, or is not a bundle."""
    if not (out.is_symlink() or out.exists()):
        return
    if not force:
        raise UsageError(f"{out} already exists", do="choose another directory, or give --force to replace it")
    if out.is_symlink() or not (out / MANIFEST).is_file():
        what = f"{out} exists and is not a bundle; --force replaces only bundles"
        raise UsageError(what, do="choose another directory")


@contextlib.contextmanager
def new_bundle(out: Path, *, force: bool) -> Iterator[Path]:
    """A temporary directory beside `out` that takes its place when the block ends well, and is removed otherwise.

    Raises UsageError as `check_target`; OutOfSpaceError when the disk fills.
    """
    check_target(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    work.chmod(0o755)
    try:
        yield work
        _replace(work, out)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            what = f"the disk that holds {out.parent} is full"
            raise OutOfSpaceError(what, do="free space, or choose another OUT") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(work: Path, out: Path) -> None:
    """Renames `work` to `out`; an old bundle stays whole until the new one is in its place."""
    if not out.exists():
        os.rename(work, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    os.rename(out, old / "bundle")
    try:
        os.rename(work, out)
    except OSError:
        os.rename(old / "bundle", out)
        old.rmdir()
        raise
    shutil.rmtree(old)

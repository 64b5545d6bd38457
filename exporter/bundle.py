"""The bundle: a directory with the packages, what describes them, and what they must answer.

`manifest.json` says what every tensor and every byte is. A bundle is written under a temporary name
and renamed when complete, so a directory that looks like a bundle is one. Nothing here imports
torch: the reference runtime reads bundles too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from exporter import real_files
from exporter.errors import BundleError, UsageError

SCHEMA_VERSION = 8
MANIFEST = "manifest.json"
PROGRAM = "model.pte"
NETWORK_VERSION = 2  # of native/llm/MANIFEST.md
REFERENCE = "reference.safetensors"
DIGEST = "sha256"  # the field of the manifest that holds the digest of all others
# Past them the best token is another one more often than not, and a chat model babbles.
LARGE_KL, SMALL_AGREEMENT = 1.0, 0.5
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Activations = Literal["int16", "float32"]
ACTIVATIONS: tuple[Activations, ...] = ("int16", "float32")
HALF = "float16"  # activations of what Core ML itself computes
KVType = Literal["float16", "float32", "int8"]
KV_TYPES: tuple[KVType, ...] = ("float16", "float32", "int8")
# The backend of each format of an artifact.
BACKENDS = {"pte": "executorch", "mlprogram": "coreml", "custom-op": "coreml"}
NATIVE = "native"  # the backend that runs the weights of a `.pte` in a session of the core
COREML_REAL = "coreml-real"  # the backend that runs an ML Program in Core ML itself, on macOS


@dataclass(frozen=True)
class TensorEntry:
    """One matrix, the same in every package of the bundle.

    `bits_per_weight` counts blob and scales. own_levels: levels and scales are those of the
    checkpoint, which is ternary; nothing was quantized.
    """

    name: str
    rows: int
    cols: int
    scheme: str
    n_levels: int
    group_size: int
    codec: str
    code_bits: int
    cap: int
    bits_per_weight: float
    entropy_bits: float
    zeros: float
    levels_crc32: int
    blob_bytes: int
    scales_bytes: int
    sizes_bytes: dict[str, int]
    own_levels: bool


@dataclass(frozen=True)
class Location:
    """The place of a matrix: the file of its levels, their first byte, and their number of bytes.

    `scales_offset` is the first byte of its `scales_bytes` of scales, in the form of the package;
    `scales_crc32` is the CRC-32 that they should have. They lie in `scales_file`; None: in the file
    of the levels. There are none where the graph itself holds the scales, and in an estimate.

    form: "tqlz" a TQLZ blob, or the name of a `codec.weight_file.PlainForm`.
    """

    file: str
    form: str
    offset: int
    n_bytes: int
    scales_offset: int = 0
    scales_bytes: int = 0
    scales_crc32: int = 0
    scales_file: str | None = None


@dataclass(frozen=True)
class VectorLocation:
    """Location of the float32 values of a vector: file, first byte and number.

    offset: a multiple of 4.
    """

    file: str
    offset: int
    n: int


@dataclass(frozen=True)
class Network:
    """The sizes of the decoder, as a session reads them (native/llm/MANIFEST.md).

    eps: of the norms, at most 9 digits, which are its float32.
    """

    version: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eps: float


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle; its path is relative to the bundle, in POSIX form."""

    path: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class LedgerRow:
    """A row of the byte ledger: what some bytes of a file are.

    The rows of a file sum to its size.
    """

    file: str
    what: str
    n_bytes: int


@dataclass(frozen=True)
class Origin:
    """Where the weights came from.

    repo_id, revision: on the hub, with the commit. adapter: the LoRA adapter that was merged.
    stored_as: number of tensors by their type on disk, such as {"BF16": 272} or {"Q4_1": 210}.
    """

    repo_id: str | None
    revision: str | None
    adapter: str | None
    stored_as: dict[str, int]


@dataclass(frozen=True)
class ModelEntry:
    """The model that the bundle was made from.

    `config` is its config.json.
    """

    name: str
    parameters: int
    source_bytes: int
    config: dict[str, Any]
    origin: Origin


@dataclass(frozen=True)
class Interface:
    """The properties that all packages of the bundle share, for whoever runs them.

    `context` counts positions. `bos_rule` says who puts `bos_token_id` in front of a plain prompt:
    "tokenizer": tokenizer.json does it, an app must not; "none": nobody, the model has none there;
    "unknown": there is no tokenizer, and the id is that of config.json. A chat template writes all
    tokens itself.
    """

    context: int
    vocab_size: int
    bos_rule: str
    bos_token_id: int | None
    eos_token_ids: list[int]


@dataclass(frozen=True)
class ChatFormat:
    """The chat format of the model as six strings, as exporter/chat_format.py joins them.

    strings: by name, those that were proven against the template. trims: roles whose texts lose the
    spaces around them first. problem: what did not derive and why, or empty.
    """

    strings: dict[str, str]
    trims: list[str]
    problem: str


@dataclass(frozen=True)
class Arithmetic:
    """An arithmetic of a model: what its products read, and how keys and values are stored."""

    activations: Activations
    kv_type: KVType

    @property
    def name(self) -> str:
        return f"{self.activations}-{self.kv_type}"


EXACT = Arithmetic("float32", "float32")


@dataclass(frozen=True)
class Artifact:
    """One package: a `.pte`, or an `.mlpackage` of one of two formats.

    path: what a runner opens; an ML Program's comes into being by `tinyqmoe expand`. files: what
    ships for it. activations: the arithmetic of the products, "int16", "float32" or "float16".
    kv_type: how keys and values are stored, a KVType. prefill_tokens: number of tokens of the
    longest call. operators: how often each is in it. places: by name of the matrix. vectors: by
    name, of what lies in float32 where a session can read it, or none. details: what only its kind
    has.
    """

    format: str  # pte | mlprogram | custom-op
    path: str
    files: list[str]
    activations: str
    kv_type: str
    prefill_tokens: int
    kv_cache_bytes: int
    operators: dict[str, int]
    places: dict[str, Location]
    vectors: dict[str, VectorLocation]
    details: dict[str, Any]

    @property
    def backend(self) -> str:
        return BACKENDS[self.format]

    @property
    def exact(self) -> bool:
        """Whether the core alone computes it, so that its logits have the same bits everywhere."""
        return bool(self.vectors) and self.activations == "int16"

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic that answers in PyTorch for it; half precision is judged by the exact."""
        if self.activations == HALF:
            return EXACT
        return Arithmetic(cast(Activations, self.activations), cast(KVType, self.kv_type))


@dataclass(frozen=True)
class QuantizationLoss:
    """The loss that quantization cost against the float model, over the positions of one text.

    It is not a parity verdict. text: name of the text. kl_mean: KL(original || quantized) in nats.
    kl_standard_error: of that mean, by blocks of neighbouring positions.
    """

    text: str
    positions: int
    kl_mean: float
    kl_standard_error: float
    top1_agreement: float
    perplexity_original: float
    perplexity_quantized: float

    @property
    def kl_words(self) -> str:
        """The mean KL with its standard error and number of positions, in words."""
        kl = f"KL {self.kl_mean:.4f} ± {self.kl_standard_error:.4f}"
        return f"{kl} ({self.positions:,} positions)"

    @property
    def is_large(self) -> bool:
        """Whether the quantized model says other things than the original: see LARGE_KL."""
        return self.kl_mean > LARGE_KL or self.top1_agreement < SMALL_AGREEMENT


@dataclass(frozen=True)
class RateEntry:
    """The rate that the weights were quantized at.

    Bits per weight count codes, tables and scales of all matrices at the rate. constant: what the
    steps follow from. text: the file that was calibrated on, if any, with `tokens` read of it.
    """

    bits_asked: float
    bits_per_weight: float
    constant: float
    text: str | None
    text_sha256: str | None
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    schema_version: int
    created: str
    tools: dict[str, str]
    model: ModelEntry
    quantization: dict[str, Any]
    rate: RateEntry | None  # where one was asked for
    quantization_loss: QuantizationLoss
    interface: Interface
    network: Network
    artifacts: list[Artifact]
    prompts: list[str]
    chat: ChatFormat = ChatFormat({}, [], "not derived")
    # What will disappoint, in whole sentences.
    warnings: list[str] = field(default_factory=list)
    tensors: list[TensorEntry] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    files: list[FileEntry] = field(default_factory=list)
    # These are made by `tinyqmoe expand`, beside the files.
    expanded: list[FileEntry] = field(default_factory=list)

    def to_json(self) -> str:
        """The manifest as indented JSON with a final newline, and its own digest in it."""
        return sealed(asdict(self))

    @classmethod
    def from_dict(cls, raw: object) -> Manifest:
        """The manifest of parsed JSON.

        Raises BundleError if it is not what was sealed, or with all fields that are missing,
        unknown or of a wrong type.
        """
        if not isinstance(raw, dict):
            raise BundleError(f"{MANIFEST} must hold an object, got {type(raw).__name__}")
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST} has schema version {version!r}, this tool reads {SCHEMA_VERSION}",
                hint="export again, or use the version of tiny-qmoe the bundle was made with",
            )
        content = {key: value for key, value in raw.items() if key != DIGEST}
        if raw.get(DIGEST) != _digest(content):
            raise BundleError(
                f"{MANIFEST} has been changed: its digest is that of another content",
                hint="copy the bundle again, or export again",
            )
        problems: list[str] = []
        manifest: Manifest = _build(cls, content, "", problems)
        if not problems:
            problems = [
                f"format {a.format!r} is unknown"
                for a in manifest.artifacts
                if a.format not in BACKENDS
            ]
            problems += [
                f"{a.path}: activations {a.activations!r} are unknown"
                for a in manifest.artifacts
                if a.activations not in (*ACTIVATIONS, HALF)
            ]
            problems += [
                f"{a.path}: kv_type {a.kv_type!r} is unknown"
                for a in manifest.artifacts
                if a.kv_type not in KV_TYPES
            ]
            problems += [] if manifest.artifacts else ["there is no artifact"]
        if problems:
            raise BundleError(f"{MANIFEST} is not valid", problems=problems, hint="export again")
        return manifest


def _build(kind: Any, raw: object, where: str, problems: list[str]) -> Any:
    """A dataclass from a dict, checking names and types of what it holds.

    It is None where that fails, with notes in `problems`.
    """
    if not isinstance(raw, dict):
        problems.append(
            f"{where.removesuffix('.') or 'manifest'} must be an object, got {type(raw).__name__}"
        )
        return None
    known = {f.name: f.type for f in fields(kind)}
    problems += [f"{where}{name} is missing" for name in known if name not in raw]
    problems += [f"{where}{name} is unknown" for name in raw if name not in known]
    values = {
        name: _value(str(known[name]), raw[name], f"{where}{name}", problems)
        for name in known
        if name in raw
    }
    return kind(**values) if known.keys() <= values.keys() else None


_NESTED: dict[str, Any] = {
    c.__name__: c
    for c in (
        TensorEntry,
        Location,
        VectorLocation,
        Network,
        FileEntry,
        LedgerRow,
        Origin,
        ModelEntry,
        Interface,
        ChatFormat,
        Artifact,
        QuantizationLoss,
        RateEntry,
    )
}
_PLAIN: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
}


def _value(kind: str, raw: object, where: str, problems: list[str]) -> Any:
    nested = kind.removesuffix(" | None")
    if nested in _NESTED:
        absent = raw is None and nested != kind
        return None if absent else _build(_NESTED[nested], raw, f"{where}.", problems)
    if kind.startswith("list[") and isinstance(raw, list):
        inner = kind.removeprefix("list[").removesuffix("]")
        return [_value(inner, item, f"{where}[{i}]", problems) for i, item in enumerate(raw)]
    # The keys of a JSON object are always texts.
    if kind.startswith("dict[") and isinstance(raw, dict):
        inner = kind.removeprefix("dict[str, ").removesuffix("]")
        return {key: _value(inner, item, f"{where}.{key}", problems) for key, item in raw.items()}
    # In Python a bool is an int too.
    is_plain = kind in _PLAIN and isinstance(raw, _PLAIN[kind])
    if kind == "Any" or (is_plain and isinstance(raw, bool) == (kind == "bool")):
        return raw
    problems.append(f"{where} must be {kind}, got {type(raw).__name__}")
    return None


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
            manifest = Manifest.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
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
        listed = {entry.path for entry in manifest.files}
        problems += [f"{name} is not in the manifest" for name in self._strangers()]
        needed = [REFERENCE, *(name for a in manifest.artifacts for name in a.files)]
        problems += [
            f"{name} is not listed in the manifest" for name in needed if name not in listed
        ]
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
        known = {*self._known, MANIFEST}
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
        if "\0" in relative or not path.resolve().is_relative_to(self.path.resolve()):
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
    """Paths of all regular files but the manifest, relative to the bundle and sorted."""
    return sorted(name for name in real_files.regular_files(path) if name != MANIFEST)


def sealed(content: dict[str, Any]) -> str:
    """The text of a manifest: its content, and under DIGEST the digest of that."""
    whole = content | {DIGEST: _digest(content)}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 in hex digits of a JSON object, whatever its layout and the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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

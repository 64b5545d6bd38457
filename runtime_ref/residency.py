"""Residency: where the weights of products lie.

They are coded as shipped, expanded in memory under a budget, or expanded in files. Every mode gives
the same bits. The managers are in the C++ core (exporter/native/include/tinyqmoe/tinyqmoe.h), one
in each shared library: `native.library()` for sessions and for what the codec's extension computes,
`kernels.load()` for ExecuTorch.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import platformdirs

from exporter import real_files
from exporter.bundle import EMBEDDING, HEAD, Artifact, Bundle, TensorEntry
from exporter.bundle.sealing import digest_of
from exporter.codec.format import (
    ALIGNMENT,
    HEADER_BYTES,
    TAIL_BYTES,
    CodecId,
    Header,
    align,
    packed_bytes,
)
from exporter.codec.native_residency import UNLIMITED, ResidencyManager, ResidencyStats
from exporter.errors import BundleError, OutOfSpaceError, UsageError
from exporter.memory import available_bytes

Mode = Literal["stream", "expand", "file", "auto"]


class Form(NamedTuple):
    """Expanded form: bits of a level, and whether levels are clipped.

    Clipped levels and their exceptions are those of exporter/native/core/clipped.h.
    """

    bits: int
    clipped: bool = False


# Nanoseconds a weight by expanded form: the table of exporter/native/core/entries.cc.
FORM_NS = {
    **{Form(2): 0.060, Form(4): 0.081, Form(8): 0.134},
    **{Form(4, True): 0.093, Form(5, True): 0.106, Form(6, True): 0.113},
}
LZW_NS = {Form(2): 0.37, Form(4): 0.56}  # and others
LZW_OTHERS_NS = 0.77
BASE3_NS = 0.088

# Of exporter/native/core/kernels.h, clipped.h and clipped.cc.
CLIPPED_COLUMNS, CLIPPED_ROWS = 64, 16
EXCEPTION_BYTES, WEIGHTS_PER_BLOCK = 25, 256
MOST_RATES = {4: 365, 5: 465, 6: 550}  # hundredths of bits a weight


@dataclass(frozen=True)
class Residency:
    """Choice of where the weights of products lie.

    `stream`: products read the codes. `expand`: all are expanded in memory. `file`: all are
    expanded in files. `auto`: expanded in memory up to `budget_bytes`, the rest in `cache_dir` if
    one is given, else streamed. `cache_dir`: the folder of the files; None is, for `file`, the
    user's cache. `clean_budget_bytes`: memory that pages of mapped weights may take where memory is
    short; None leaves it to the system. Raises UsageError.
    """

    mode: Mode = "stream"
    budget_bytes: int | None = None
    cache_dir: Path | None = None
    clean_budget_bytes: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if (self.budget_bytes is not None) != (self.mode == "auto"):
            problems.append(
                f"mode {self.mode} "
                + ("needs a budget" if self.mode == "auto" else "takes no budget")
            )
        if self.cache_dir is not None and self.mode not in ("file", "auto"):
            problems.append(f"mode {self.mode} takes no cache directory")
        for name, value in (
            ("budget", self.budget_bytes),
            ("clean budget", self.clean_budget_bytes),
        ):
            if value is not None and not 0 <= value <= UNLIMITED:
                problems.append(f"the {name} is {value} bytes")
        if problems:
            what = "these settings of residency contradict each other"
            raise UsageError(
                what,
                problems=problems,
                hint="give a budget with mode auto, a directory with file or auto",
            )

    @classmethod
    def of_this_machine(cls) -> Residency:
        """Weights expanded in memory as far as they fit half of what this process could take."""
        return cls("auto", budget_bytes=available_bytes() // 2)

    @property
    def folder(self) -> Path | None:
        """Folder of expanded forms; None if they are not in files."""
        if self.mode == "file" and self.cache_dir is None:
            return default_cache_dir()
        return self.cache_dir

    def of(self, bundle: Bundle) -> Residency:
        """The same, with a folder of a bundle's own in the folder of expanded forms.

        A form is found by the header of what it was made from, whose CRC-32 another maker can meet
        with other weights.
        """
        if self.folder is None:
            return self
        return replace(self, cache_dir=self.folder / digest_of(bundle.manifest.to_json()))

    @property
    def budget(self) -> int:
        """Size that expanded forms may take in memory, in bytes."""
        return UNLIMITED if self.mode == "expand" else self.budget_bytes or 0


@dataclass(frozen=True)
class CodedTensor:
    """Matrix that products read, as its package stores it.

    coded_bytes: of its blob.
    """

    name: str
    header: Header
    coded_bytes: int

    @classmethod
    def of_entry(cls, entry: TensorEntry) -> CodedTensor:
        """Matrix as the manifest describes it.

        All is known but the name of its cache file, which has checksums in it.
        """
        header = Header(
            *(CodecId[entry.codec.upper()], entry.code_bits, entry.cap, 0, entry.n_levels),
            *(entry.rows, entry.cols, 0, 0),
        )
        return cls(entry.name, header, entry.blob_bytes)

    @property
    def form(self) -> Form:
        """Form that it is expanded to.

        Clipped levels with more exceptions than there is room for take more bits: that is not known
        here.
        """
        h = self.header
        if h.n_levels <= 16:
            return Form(2 if h.n_levels <= 4 else 4)
        for bits, rate in MOST_RATES.items():
            if h.n_levels > 1 << bits and self.coded_bytes * 800 <= rate * h.rows * h.cols:
                return Form(bits, clipped=True)
        return Form(8)

    @property
    def gain(self) -> float:
        """Time that a product saves for a byte of the expanded form, in nanoseconds.

        It is 0 where there is nothing to expand.
        """
        if self.header.codec == CodecId.RAW:
            return 0.0
        form = self.form
        lzw = self.header.codec == CodecId.LZW
        coded = LZW_NS.get(form, LZW_OTHERS_NS) if lzw else BASE3_NS
        exception_bits = 8 * EXCEPTION_BYTES / WEIGHTS_PER_BLOCK if form.clipped else 0.0
        return (coded - FORM_NS[form]) * 8 / (form.bits + exception_bits)

    @property
    def blob_bytes(self) -> int:
        """Size of the expanded form in bytes, with all the room for exceptions."""
        rows, cols, form = self.header.rows, self.header.cols, self.form
        index = 0
        if form.clipped:
            payload = rows * align(cols, CLIPPED_COLUMNS) * form.bits // 8
            tiles = -(-rows // CLIPPED_ROWS)
            room = max(rows, rows * cols // WEIGHTS_PER_BLOCK)
            index = align(4 * (tiles + 1) + EXCEPTION_BYTES * room, 4)
        else:
            payload = rows * packed_bytes(cols, form.bits)
        return align(align(HEADER_BYTES + index, ALIGNMENT) + payload + TAIL_BYTES, ALIGNMENT)

    @property
    def form_bytes(self) -> int:
        """Size that the budget counts for the expanded form, in bytes: whole pages."""
        return align(self.blob_bytes, mmap.PAGESIZE)

    @property
    def file_bytes(self) -> int:
        """Size of its cache file, in bytes."""
        return self.blob_bytes + HEADER_BYTES

    @property
    def file_name(self) -> str:
        """Name of its cache file."""
        h = self.header
        sealed = int.from_bytes(h.pack()[-4:], "little")
        return f"tqlz-{h.rows}x{h.cols}-{h.tables_crc32:08x}-{h.payload_crc32:08x}-{sealed:08x}.raw"


def coded_tensors(bundle: Bundle, artifact: Artifact) -> list[CodedTensor]:
    """TQLZ blobs that the products of a package read, in the order of use.

    A tied head comes last. Raises BundleError, CodecError.
    """
    places = artifact.places
    used = in_order_of_use([t for t in bundle.manifest.tensors if places[t.name].form == "tqlz"])
    return [
        CodedTensor(
            t.name, _header(bundle, places[t.name].file, places[t.name].offset), t.blob_bytes
        )
        for t in used
    ]


def in_order_of_use(entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Matrices that are multiplied, the head last.

    An embedding that is no head is only looked up.
    """
    untied = any(t.name == HEAD for t in entries)
    used = [t for t in entries if not (untied and t.name == EMBEDDING)]
    return sorted(used, key=lambda t: t.name in (EMBEDDING, HEAD))


def _header(bundle: Bundle, relative: str, offset: int) -> Header:
    """Header of a blob in a file of the bundle. Raises BundleError, CodecError."""
    path = bundle.file(relative)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return Header.parse(file.read(HEADER_BYTES))
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error}", hint="copy the bundle again"
        ) from error


def plan(tensors: Sequence[CodedTensor], budget_bytes: int) -> set[str]:
    """Names of the matrices that the core expands in memory.

    The most time saved a byte comes first, among equals the first used.
    """
    names = set()
    for tensor in sorted(tensors, key=lambda t: -t.gain):
        if tensor.gain > 0 and tensor.form_bytes <= budget_bytes:
            names.add(tensor.name)
            budget_bytes -= tensor.form_bytes
    return names


def default_cache_dir() -> Path:
    """Folder where expanded forms of this user lie."""
    return platformdirs.user_cache_path("tiny-qmoe") / "expanded"


def apply(library: ctypes.CDLL, residency: Residency, tensors: Sequence[CodedTensor] = ()) -> None:
    """Sets how the products of `library` find their weights, from the next product on.

    It makes the cache directory. `tensors`: those that will be multiplied, to see before anything
    is written whether the disk holds their files. Raises OutOfSpaceError, and UsageError where
    others may write to the cache directory.
    """
    folder = residency.folder
    if folder is not None:
        _make_room(folder, residency, tensors)
    manager = ResidencyManager(library)
    manager.set_cache_dir(folder)
    manager.set_budget(residency.budget)
    clean = residency.clean_budget_bytes
    manager.set_clean_budget(UNLIMITED if clean is None else clean)


def _make_room(folder: Path, residency: Residency, tensors: Sequence[CodedTensor]) -> None:
    """Makes the cache directory.

    Raises UsageError if others may write to it, OutOfSpaceError if its files would not fit the
    disk.
    """
    hint = "free disk space, give another cache directory, or choose another mode"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutOfSpaceError(
            f"the cache directory {folder} cannot be used: {error}", hint=hint
        ) from error
    if not real_files.is_private_folder(folder):
        raise UsageError(
            f"expanded weights are not read from {folder}: others could change them, or it is a "
            "link",
            hint=f"remove it, or `chmod go-w {folder}`",
        )
    in_memory = plan(tensors, residency.budget)
    missing = {t.file_name: t.file_bytes for t in tensors if t.gain > 0 and t.name not in in_memory}
    needed = sum(n for name, n in missing.items() if not (folder / name).is_file())
    if needed > free:
        raise OutOfSpaceError(
            f"expanded weights need {needed:,} bytes in {folder}, {free:,} are free", hint=hint
        )


def stats(library: ctypes.CDLL) -> ResidencyStats:
    """Memory that the core in `library` holds now, in bytes, and counts of what it did."""
    return ResidencyManager(library).stats()


def trim(library: ctypes.CDLL, n_bytes: int) -> int:
    """Size of the expanded forms that were freed, in bytes: at least `n_bytes` if there are.

    It may be called from any thread, at any time.
    """
    return ResidencyManager(library).trim(n_bytes)

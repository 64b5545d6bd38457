"""The header of a GGUF file: its metadata, and where its tensors lie.

The `gguf` package parses it, but for the list of tensors: it refuses a file with one type that it
does not know, and shows the tensors of others as memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.gguf_types import Q2_0, q2_0_kind, stored_bytes, type_name
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import ReaderField

COUNT_AT, COUNT_BYTES = 8, 8  # of the number of tensors


@dataclass(frozen=True)
class GgufPart:
    """The place, type and shape of a tensor in a file; a type that is not known has no bytes."""

    begin: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return stored_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """A header.

    fields: metadata but for long lists. tensors: by the names of the file. metadata_end: the first
    byte after the metadata.
    """

    fields: dict[str, Any]
    tensors: dict[str, GgufPart]
    metadata_end: int


def read_header(path: Path) -> GgufHeader:
    """The header of one file, checked against its size.

    Raises CheckpointError for a file that is damaged.
    """
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """A reader that keeps the list of tensors as it is."""

        def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
            self.listed = fields

    try:
        reader = Reader(path)
        size = path.stat().st_size
        tensors = _tensors(reader.listed, int(reader.data_offset), size, int(reader.alignment))
        fields = {
            key: field.contents()
            for key, field in reader.fields.items()
            if len(field.data) <= 1 or key == f"{key.split('.')[0]}.feed_forward_length"
        }
        end = reader.listed[0].offset if reader.listed else reader.data_offset
    except Exception as error:  # the library checks nothing: it raises whatever comes
        raise CheckpointError(
            f"{path} is not a GGUF file that can be read: {error}",
            hint="download it again: it is damaged or cut short",
        ) from error
    return GgufHeader(fields, tensors, int(end))


def write_metadata(path: Path, out: Path) -> None:
    """Writes a GGUF file with the metadata of another and without tensors."""
    with path.open("rb") as file:
        metadata = bytearray(file.read(read_header(path).metadata_end))
    metadata[COUNT_AT : COUNT_AT + COUNT_BYTES] = bytes(COUNT_BYTES)
    out.write_bytes(metadata)


def _tensors(
    listed: Sequence[ReaderField], data_begin: int, file_bytes: int, alignment: int
) -> dict[str, GgufPart]:
    """The tensors of a list. Raises ValueError where they do not fit the file."""
    tensors: dict[str, GgufPart] = {}
    for field in listed:
        _, name_bytes, _, dimensions, number, offset = field.parts
        name = str(bytes(name_bytes), encoding="utf-8")
        if name in tensors:
            raise ValueError(f"there are two tensors {name}")
        shape = tuple(int(n) for n in reversed(dimensions.tolist()))
        tensors[name] = GgufPart(data_begin + int(offset[0]), type_name(int(number[0])), shape)
    tensors = _with_q2_0_kind(tensors, file_bytes, alignment)
    for name, part in tensors.items():
        if part.begin + part.size_bytes > file_bytes:
            raise ValueError(f"{name} ends past the end of the file")
    return tensors


def _with_q2_0_kind(
    tensors: dict[str, GgufPart], file_bytes: int, alignment: int
) -> dict[str, GgufPart]:
    """The same tensors, those of the number of Q2_0 by the kind that their places tell."""
    two_bit = {name: part for name, part in tensors.items() if part.dtype == Q2_0}
    if not two_bit:
        return tensors
    begins = sorted([*(part.begin for part in tensors.values()), file_bytes])
    ends = dict(itertools.pairwise(begins))
    spaces = [(part.shape, ends[part.begin] - part.begin) for part in two_bit.values()]
    kind = q2_0_kind(spaces, alignment)
    return tensors | {n: GgufPart(p.begin, kind, p.shape) for n, p in two_bit.items()}

"""Tensors in safetensors files: their headers, checked in full, and blocks of their rows."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.checkpoint.folder import (
    GET_ANOTHER,
    INDEX_FILE,
    SINGLE_FILE,
    read_json,
)
from exporter.checkpoint.tensors import check_range
from exporter.errors import CheckpointError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}
TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
MOST_NAMED = 5  # of the names that are there twice


@dataclass(frozen=True)
class StoredTensor:
    """The place, dtype and shape of a tensor in a safetensors file.

    `begin` and `end` are its bytes in the file. `dtype` is that of safetensors; only those of
    TORCH_DTYPES have values, others are packed.
    """

    file: Path
    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        values = torch.from_numpy(self.raw_rows(begin, end)).view(TORCH_DTYPES[self.dtype])
        return values.float().reshape(end - begin, *self.shape[1:])

    def raw_rows(self, begin: int, end: int) -> NDArray[np.uint8]:
        """The bytes of rows [begin, end), uint8 [end - begin, row bytes]; only they are read.

        Raises CheckpointError if the file has changed since it was opened.
        """
        check_range(begin, end, self.shape[0])
        row_bytes = self.size_bytes // self.shape[0]
        raw = read_bytes(self.file, self.begin + begin * row_bytes, (end - begin) * row_bytes)
        return raw.reshape(end - begin, row_bytes)


def read_entries(directory: Path, problems: list[str]) -> dict[str, StoredTensor] | None:
    """All tensors of all files.

    It is None, with notes in `problems`, where files are missing or damaged.
    """
    before = len(problems)
    entries: dict[str, StoredTensor] = {}
    if (directory / SINGLE_FILE).is_file():
        entries = read_header(directory / SINGLE_FILE, problems)
    elif (directory / INDEX_FILE).is_file():
        entries = _read_indexed(directory, problems)
    elif shards := sorted(f for f in directory.iterdir() if SHARD.fullmatch(f.name)):
        entries = _read_shards(shards, {}, _missing_shards(shards), problems)
    else:
        raise _no_weights(directory)
    return entries if len(problems) == before else None


def _no_weights(directory: Path) -> CheckpointError:
    """The reason why a directory has no weights that this tool reads, and the next step."""
    found = sorted(file.name for file in directory.iterdir())
    if any(name.endswith((".bin", ".pth", ".pt")) for name in found):
        return CheckpointError(
            f"{directory}: the weights are pickled PyTorch files, which can run code",
            hint="convert them with transformers: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW_FOLDER) writes safetensors",
        )
    listing = ", ".join(found[:10]) or "nothing"
    return CheckpointError(
        f"{directory}: neither {SINGLE_FILE} nor {INDEX_FILE} is there; found {listing}",
        hint=f"give a directory with {SINGLE_FILE} or its shards and config.json, a GGUF file, or "
        "a hub id (owner/name)",
    )


def _missing_shards(shards: list[Path]) -> list[str]:
    """Names of the shards that are not there, by the number of shards that the others state."""
    stem, count = shards[0].name.split("-")[0], shards[0].name.split("-of-")[1]
    names = [f"{stem}-{i + 1:05}-of-{count}" for i in range(int(count.split(".")[0]))]
    return sorted(set(names) - {file.name for file in shards})


def _read_indexed(directory: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """The tensors of the shards that an index names."""
    index = read_json(directory / INDEX_FILE, problems).get("weight_map")
    if not isinstance(index, dict) or not index:
        problems.append(f"{INDEX_FILE} must hold a weight_map of tensor names to files")
        return {}
    files = sorted({str(file) for file in index.values()})
    unsafe = [file for file in files if not re.fullmatch(r"[\w-][\w.-]*", file)]
    problems += [
        f"{INDEX_FILE} names {file!r}, which is not a plain file name beside it" for file in unsafe
    ]
    plain = sorted(set(files) - set(unsafe))
    missing = [file for file in plain if not (directory / file).is_file()]
    there = [directory / file for file in plain if file not in missing]
    return _read_shards(there, index, missing, problems)


def _read_shards(
    shards: list[Path], index: dict[str, str], missing: list[str], problems: list[str]
) -> dict[str, StoredTensor]:
    """The tensors of several files.

    Of a tensor that is in two, the one counts that the index names. An index that lists more, such
    as a head that was dropped, does no harm: what the network lacks is told by name.
    """
    problems += [f"shard {name} is missing" for name in missing]
    entries: dict[str, StoredTensor] = {}
    for file in shards:
        for name, tensor in read_header(file, problems).items():
            if name in entries and index.get(name) not in (entries[name].file.name, file.name):
                problems.append(f"{name} is both in {entries[name].file.name} and in {file.name}")
            if name not in entries or index.get(name) == file.name:
                entries[name] = tensor
    return entries


def read_header(file: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """The tensors that one safetensors file declares, checked against its size.

    What is wrong is noted in `problems`.

    Format: u64 little-endian header length, JSON {name: {dtype, shape, data_offsets}}, then the
    data without holes.
    """
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or header_bytes > min(size_bytes - 8, MAX_HEADER_BYTES):
            problems.append(
                f"{file.name}: the header claims {header_bytes} bytes, the file has "
                f"{size_bytes}: truncated?"
            )
            return {}
        text = stream.read(header_bytes)
    try:
        pairs = json.loads(text.decode(), object_pairs_hook=_unique)
        spans = {
            name: _parse_entry(name, value)
            for name, value in pairs.items()
            if name != "__metadata__"
        }
    except (ValueError, AttributeError, RecursionError) as error:
        problems.append(f"{file.name}: the header is damaged: {error}")
        return {}
    data_begin = 8 + header_bytes
    problems += _layout_problems(
        file, [span for span, _, _ in spans.values()], size_bytes - data_begin
    )
    return {
        name: StoredTensor(file, data_begin + span[0], data_begin + span[1], dtype, shape)
        for name, (span, dtype, shape) in spans.items()
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object with unique keys.

    Raises ValueError if a key occurs twice.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = sorted(name for name, n in counts.items() if n > 1)
        more = f" and {len(twice) - MOST_NAMED:,} more" if len(twice) > MOST_NAMED else ""
        raise ValueError(f"duplicate keys {twice[:MOST_NAMED]}{more}")
    return result


def _parse_entry(name: str, value: Any) -> tuple[tuple[int, int], str, tuple[int, ...]]:
    """Data offsets, dtype and shape of one tensor.

    Raises ValueError if the entry is malformed or if bytes and shape disagree.
    """
    fields = value if isinstance(value, dict) else {}
    dtype, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(span) and len(span) == 2):
        raise ValueError(f"{name} lacks a valid dtype, shape or data_offsets")
    expected = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
    if dtype in ITEM_BYTES and span[1] - span[0] != expected:
        raise ValueError(
            f"{name} {dtype} {shape} needs {expected} bytes, its offsets hold {span[1] - span[0]}"
        )
    return (span[0], span[1]), dtype, tuple(shape)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _layout_problems(file: Path, spans: list[tuple[int, int]], data_bytes: int) -> list[str]:
    """Problems of the data section: tensors must lie end to end and fill it."""
    at = 0
    for begin, end in sorted(spans):
        if begin != at or end < begin:
            return [
                f"{file.name}: data_offsets [{begin}, {end}] overlap or leave a hole, expected "
                f"to begin at {at}"
            ]
        at = end
    if at != data_bytes:
        return [
            f"{file.name}: the tensors need {at} bytes, the file holds {data_bytes}: truncated?"
        ]
    return []


def read_bytes(file: Path, begin: int, n_bytes: int) -> NDArray[np.uint8]:
    """Bytes of a file from `begin` on.

    Raises CheckpointError if the file has changed since it was opened.
    """
    try:
        raw = np.fromfile(file, np.uint8, count=n_bytes, offset=begin)
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read any more: {error}", hint=GET_ANOTHER
        ) from error
    if raw.size != n_bytes:
        raise CheckpointError(f"{file} was shortened: a tensor ends early", hint=GET_ANOTHER)
    return raw

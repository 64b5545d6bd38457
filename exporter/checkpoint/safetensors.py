"""Tensors in safetensors files: their headers, checked in full, and blocks of their rows."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from exporter.checkpoint.folder import (
    GET_ANOTHER,
    INDEX_FILE,
    SINGLE_FILE,
    read_json,
)
from exporter.errors import CheckpointError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, first byte there, safetensors dtype (F32, F16 or BF16) and
    shape."""

    file: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_entries(directory: Path, problems: list[str]) -> dict[str, StoredTensor] | None:
    """All tensors of all files; None with notes in `problems` where files are missing or
    damaged."""
    before = len(problems)
    entries: dict[str, StoredTensor] = {}
    if (directory / SINGLE_FILE).is_file():
        entries = _read_header(directory / SINGLE_FILE, problems)
    elif (directory / INDEX_FILE).is_file():
        entries = _read_shards(directory, problems)
    else:
        problems.append(_no_weights(directory))
    return entries if len(problems) == before else None


def _no_weights(directory: Path) -> str:
    """Why a directory has no weights this tool reads."""
    found = sorted(file.name for file in directory.iterdir())
    if any(name.endswith(".gguf") for name in found):
        return (
            "the weights are GGUF, which is quantized already; the original safetensors "
            "checkpoint is needed"
        )
    if any(name.startswith("pytorch_model") or name.endswith((".bin", ".pth")) for name in found):
        return (
            "the weights are pickled PyTorch files; convert with save_pretrained(..., "
            "safe_serialization=True)"
        )
    listing = ", ".join(found[:10]) or "nothing"
    return f"neither {SINGLE_FILE} nor {INDEX_FILE} is there; found {listing}"


def _read_shards(directory: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """The tensors of a sharded checkpoint, checked against its index both ways."""
    index = read_json(directory / INDEX_FILE, problems).get("weight_map")
    if not isinstance(index, dict) or not index:
        problems.append(f"{INDEX_FILE} must hold a weight_map of tensor names to files")
        return {}
    files = sorted({str(file) for file in index.values()})
    unsafe = [file for file in files if not re.fullmatch(r"[\w-][\w.-]*", file)]
    problems += [
        f"{INDEX_FILE} names {file!r}, which is not a plain file name beside it" for file in unsafe
    ]
    entries: dict[str, StoredTensor] = {}
    for file in sorted(set(files) - set(unsafe)):
        if not (directory / file).is_file():
            problems.append(f"shard {file} is missing")
            continue
        before = len(problems)
        found = _read_header(directory / file, problems)
        listed = {name for name, where in index.items() if where == file}
        if len(problems) == before:
            problems += [
                f"{file} lacks {name}, which {INDEX_FILE} places there"
                for name in sorted(listed - set(found))
            ]
        problems += [
            f"{file} has {name}, which {INDEX_FILE} does not place there"
            for name in sorted(set(found) - listed)
        ]
        entries |= found
    return entries


def _read_header(file: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """The tensors one safetensors file declares, checked against its size; appends to `problems`.

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
    for name, (_, dtype, _) in spans.items():
        if dtype not in ITEM_BYTES:
            problems.append(f"{name} is {dtype} in {file.name}, supported: {', '.join(ITEM_BYTES)}")
    return {
        name: StoredTensor(file, data_begin + span[0], dtype, shape)
        for name, (span, dtype, shape) in spans.items()
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError if a key occurs twice."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"duplicate keys {sorted({name for name in names if names.count(name) > 1})}"
        )
    return result


def _parse_entry(name: str, value: Any) -> tuple[tuple[int, int], str, tuple[int, ...]]:
    """(data offsets, dtype, shape) of one tensor. Raises ValueError if malformed or if bytes and
    shape disagree."""
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
    """What is wrong with the data section: tensors must lie end to end and fill it."""
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


def read_rows(name: str, entry: StoredTensor, begin: int, end: int) -> torch.Tensor:
    """Rows [begin, end) of a tensor as float32. Raises CheckpointError if the file has changed
    since it was opened."""
    if not 0 <= begin <= end <= entry.shape[0]:
        raise IndexError(f"rows {begin}..{end} of {name}, which has {entry.shape[0]}")
    row_bytes = entry.size_bytes // entry.shape[0]
    wanted = (end - begin) * row_bytes
    try:
        raw = np.fromfile(
            entry.file, np.uint8, count=wanted, offset=entry.begin + begin * row_bytes
        )
    except OSError as error:
        raise CheckpointError(
            f"{entry.file} cannot be read any more: {error}", hint=GET_ANOTHER
        ) from error
    if raw.size != wanted:
        raise CheckpointError(f"{entry.file} was shortened: {name} ends early", hint=GET_ANOTHER)
    values = torch.from_numpy(raw.reshape(end - begin, row_bytes)).view(TORCH_DTYPES[entry.dtype])
    return values.float().reshape(end - begin, *entry.shape[1:])

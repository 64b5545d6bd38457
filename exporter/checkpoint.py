"""A Hugging Face checkpoint on disk, validated before any work and read row block by row block.

`Checkpoint.open` takes a directory or a hub id and refuses with everything that is wrong at once.
Safetensors files are parsed here: the library's errors name neither the file nor the expected
bytes, and through its memory map a file read for the first time comes several times slower than
with plain reads, and one truncated meanwhile kills the process.
"""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from exporter import models
from exporter.bundle import EMBEDDING, HEAD
from exporter.errors import CheckpointError, OutOfSpaceError
from exporter.models.llama import LlamaConfig
from exporter.progress import Progress

"""Called with (what, done, total): the name of a tensor, and the weights finished so far and in
all."""

Block = tuple[int, torch.Tensor]
"""The number of its first row, and rows as float32 [n, ..]."""

BLOCK_WEIGHTS = 1_000_000  # larger blocks leave the CPU's cache: measured twice as slow to quantize
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
GET_ANOTHER = (
    "download the checkpoint again, or use an unquantized Llama 3.x checkpoint in "
    "Hugging Face format"
)


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: its file, first byte there, safetensors dtype (F32, F16 or BF16) and
    shape."""

    file: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """A validated checkpoint. Made by `open`; holds no weights and no open file."""

    path: Path
    config_dict: dict[str, Any]
    config: LlamaConfig
    entries: Mapping[str, TensorEntry]
    eos_token_ids: tuple[int, ...]

    @classmethod
    def open(cls, model: str | Path, *, progress: Progress | None = None) -> Checkpoint:
        """Open a local directory, or download a hub id (`progress` then shows the hub's own bars).

        Raises CheckpointError with every reason to refuse, OutOfSpaceError if a download does not
        fit the disk.
        """
        directory = _local_directory(model, show_bars=progress is not None)
        problems: list[str] = []
        raw, config = _read_config(directory, problems)
        generation = _read_json(directory / "generation_config.json", problems, required=False)
        eos = _eos_ids(generation, config, problems)
        entries = _read_entries(directory, problems)
        if config is not None and entries is not None:
            entries = _match(config, raw, entries, problems)
        if problems or config is None or entries is None:
            raise CheckpointError(
                f"{directory} cannot be exported", problems=problems, do=GET_ANOTHER
            )
        return cls(directory, raw, config, entries, eos)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of the network."""
        return tuple(self.entries)

    @property
    def parameters(self) -> int:
        """How many weights there are, a tied head counted once."""
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors in the dtypes of the checkpoint."""
        return sum(entry.size_bytes for entry in self.entries.values())

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer, chat template and generation config files that exist."""
        return tuple(self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor: (out_features, in_features) of a matrix, (length,) of a vector."""
        return self.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor on disk: float32, float16 or bfloat16."""
        return TORCH_DTYPES[self.entries[name].dtype]

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) of a matrix as float32 [end - begin, cols]; only they are read."""
        return _read_rows(name, self.entries[name], begin, end)

    def vector(self, name: str) -> torch.Tensor:
        """A whole vector as float32 [length]."""
        return _read_rows(name, self.entries[name], 0, self.shape(name)[0])

    def blocks(self, name: str) -> Iterator[Block]:
        """A whole tensor, about 1M weights at a time."""
        shape = self.shape(name)
        step = max(1, BLOCK_WEIGHTS // math.prod(shape[1:]))
        for begin in range(0, shape[0], step):
            yield begin, self.rows(name, begin, min(begin + step, shape[0]))

    def check_finite(self, progress: Progress | None = None) -> None:
        """Read every weight. Raises CheckpointError naming each tensor with NaN or infinite values,
        with counts."""
        problems, done = [], 0
        for name in self.names:
            nans = infs = 0
            for _, block in one_thread(self.blocks(name)):
                if not block.isfinite().all():
                    nans += int(block.isnan().sum())
                    infs += int(block.isinf().sum())
            done += math.prod(self.shape(name))
            if progress:
                progress("check weights", done, self.parameters)
            if nans or infs:
                problems.append(
                    f"{name}: {nans} NaN, {infs} infinite of {math.prod(self.shape(name))} weights"
                )
        if problems:
            raise CheckpointError(
                f"{self.path} has weights that are not finite", problems=problems, do=GET_ANOTHER
            )


def one_thread(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks, with torch at one thread while they are worked on.

    A block is too short to share out: on a busy machine, threads that wait for each other took five
    times the CPU time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from blocks
    finally:
        torch.set_num_threads(threads)


# ---- where the files are -------------------------------------------------------------------------


def _local_directory(model: str | Path, *, show_bars: bool) -> Path:
    """The directory of a local or downloaded checkpoint. Raises CheckpointError where there is
    none."""
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"{path} is a file, not a checkpoint directory", do="give the directory it lies in"
        )
    if isinstance(model, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise CheckpointError(
            f"there is no directory {path}",
            do="give a Hugging Face directory or a hub id (owner/name)",
        )
    return _download(model, show_bars=show_bars)


def _download(repo_id: str, *, show_bars: bool) -> Path:
    """The snapshot of a hub model; files already in the cache are not fetched again, broken
    downloads resume."""
    from huggingface_hub import errors, snapshot_download, utils

    weights = [SINGLE_FILE, "model-*.safetensors", INDEX_FILE]
    were_off = utils.are_progress_bars_disabled()
    if not show_bars:
        utils.disable_progress_bars()
    try:
        return Path(
            snapshot_download(repo_id, allow_patterns=["config.json", *weights, *TOKENIZER_FILES])
        )
    except errors.GatedRepoError as error:
        do = (
            f"accept the licence at https://huggingface.co/{repo_id}, then set HF_TOKEN or run "
            "`hf auth login`"
        )
        raise CheckpointError(
            f"{repo_id} on the hub is gated, and access was refused", do=do
        ) from error
    except errors.RepositoryNotFoundError as error:
        do = (
            "check the spelling; for a private model set HF_TOKEN; for a local model give its "
            "directory"
        )
        raise CheckpointError(
            f"there is no directory {repo_id} and no such model on the hub", do=do
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        do = "connect to the internet, unset HF_HUB_OFFLINE, or give a local directory"
        raise CheckpointError(
            f"{repo_id} is no local directory, and the hub cannot be reached", do=do
        ) from error
    except (
        Exception
    ) as error:  # whatever the hub's HTTP library raises: that library changes between versions
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OutOfSpaceError(
                f"the disk is full: {error}", do="free space; the download will resume"
            ) from error
        raise CheckpointError(
            f"{repo_id} could not be downloaded: {error}", do="try again; it will resume"
        ) from error
    finally:
        if not were_off:
            utils.enable_progress_bars()


# ---- config --------------------------------------------------------------------------------------


def _read_json(file: Path, problems: list[str], *, required: bool = True) -> dict[str, Any]:
    """A JSON object, or {} with a note in `problems`. An optional file may be absent."""
    if not file.is_file():
        if required:
            problems.append(f"{file.name} is missing")
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        problems.append(f"{file.name} is not JSON: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{file.name} must hold an object, got {type(value).__name__}")
        return {}
    return value


def _read_config(directory: Path, problems: list[str]) -> tuple[dict[str, Any], LlamaConfig | None]:
    """config.json as it is and as the config of its family; None with notes in `problems` where it
    is not usable."""
    before = len(problems)
    raw = _read_json(directory / "config.json", problems)
    if len(problems) > before:
        return raw, None
    try:
        return raw, models.load(raw.get("model_type")).Config.from_dict(raw)
    except CheckpointError as error:
        problems.extend([f"config.json: {p}" for p in error.problems] or [error.what])
        return raw, None


def _eos_ids(
    generation: dict[str, Any], config: LlamaConfig | None, problems: list[str]
) -> tuple[int, ...]:
    """End tokens: those of generation_config.json if it has any, for Instruct models add some
    there."""
    eos = generation.get("eos_token_id")
    if eos is None:
        return config.eos_token_ids if config else ()
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not all(map(models.is_id, ids)):
        problems.append(
            f"generation_config.json: eos_token_id must be one or more token ids, got {eos!r}"
        )
    return ids


# ---- safetensors ---------------------------------------------------------------------------------


def _read_entries(directory: Path, problems: list[str]) -> dict[str, TensorEntry] | None:
    """All tensors of all files; None with notes in `problems` where files are missing or
    damaged."""
    before = len(problems)
    entries: dict[str, TensorEntry] = {}
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


def _read_shards(directory: Path, problems: list[str]) -> dict[str, TensorEntry]:
    """The tensors of a sharded checkpoint, checked against its index both ways."""
    index = _read_json(directory / INDEX_FILE, problems).get("weight_map")
    if not isinstance(index, dict) or not index:
        problems.append(f"{INDEX_FILE} must hold a weight_map of tensor names to files")
        return {}
    files = sorted({str(file) for file in index.values()})
    unsafe = [file for file in files if not re.fullmatch(r"[\w-][\w.-]*", file)]
    problems += [
        f"{INDEX_FILE} names {file!r}, which is not a plain file name beside it" for file in unsafe
    ]
    entries: dict[str, TensorEntry] = {}
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


def _read_header(file: Path, problems: list[str]) -> dict[str, TensorEntry]:
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
        name: TensorEntry(file, data_begin + span[0], dtype, shape)
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


def _match(
    config: LlamaConfig, raw: dict[str, Any], found: dict[str, TensorEntry], problems: list[str]
) -> dict[str, TensorEntry]:
    """The tensors of the network, in its order; notes missing, surplus and misshapen ones in
    `problems`."""
    expected = models.load(raw["model_type"]).tensor_shapes(config)
    for name in expected:
        if name not in found:
            problems.append(f"{name} {list(expected[name])} is missing")
        elif found[name].shape != expected[name]:
            problems.append(
                f"{name} has shape {list(found[name].shape)}, expected {list(expected[name])}"
            )
    for name in sorted(found.keys() - expected.keys()):
        if name == HEAD and EMBEDDING in found and not problems:
            if not _same(found, HEAD, EMBEDDING):
                problems.append(
                    f"{HEAD} differs from {EMBEDDING}, though tie_word_embeddings is true"
                )
        elif not name.endswith(
            "rotary_emb.inv_freq"
        ):  # a buffer that old versions saved; computed from the config
            problems.append(f"{name} is not part of this model")
    return {name: found[name] for name in expected if name in found}


def _same(entries: Mapping[str, TensorEntry], first: str, second: str) -> bool:
    """Whether two matrices hold the same values."""
    a, b = entries[first], entries[second]
    if a.shape != b.shape:
        return False
    step = max(1, BLOCK_WEIGHTS // a.shape[1])
    spans = ((begin, min(begin + step, a.shape[0])) for begin in range(0, a.shape[0], step))
    return all(
        torch.equal(_read_rows(first, a, *span), _read_rows(second, b, *span)) for span in spans
    )


def _read_rows(name: str, entry: TensorEntry, begin: int, end: int) -> torch.Tensor:
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
            f"{entry.file} cannot be read any more: {error}", do=GET_ANOTHER
        ) from error
    if raw.size != wanted:
        raise CheckpointError(f"{entry.file} was shortened: {name} ends early", do=GET_ANOTHER)
    values = torch.from_numpy(raw.reshape(end - begin, row_bytes)).view(TORCH_DTYPES[entry.dtype])
    return values.float().reshape(end - begin, *entry.shape[1:])

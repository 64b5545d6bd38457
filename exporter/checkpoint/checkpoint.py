"""A Hugging Face checkpoint on disk, validated before any work and read row block by row block.

`Checkpoint.open` takes a directory or a hub id and refuses with everything that is wrong at once.
Safetensors files are parsed here: the library's errors name neither the file nor the expected
bytes, and through its memory map a file read for the first time comes several times slower than
with plain reads, and one truncated meanwhile kills the process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from exporter import models
from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.folder import (
    GET_ANOTHER,
    TOKENIZER_FILES,
    local_directory,
    read_json,
)
from exporter.checkpoint.safetensors import (
    TORCH_DTYPES,
    StoredTensor,
    read_entries,
    read_rows,
)
from exporter.errors import CheckpointError
from exporter.models.config import ModelConfig, is_id
from exporter.models.layers import Decoder, Layers
from exporter.progress import Progress

Block = tuple[int, torch.Tensor]
"""The number of its first row, and rows as float32 [n, ..]."""

BLOCK_WEIGHTS = 1_000_000  # larger blocks leave the CPU's cache: measured twice as slow to quantize


@dataclass(frozen=True)
class Checkpoint:
    """A validated checkpoint. Made by `open`; holds no weights and no open file."""

    path: Path
    config_dict: dict[str, Any]
    config: ModelConfig
    entries: Mapping[str, StoredTensor]
    eos_token_ids: tuple[int, ...]

    @classmethod
    def open(cls, model: str | Path, *, progress: Progress | None = None) -> Checkpoint:
        """Open a local directory, or download a hub id (`progress` then shows the hub's own bars).

        Raises CheckpointError with every reason to refuse, OutOfSpaceError if a download does not
        fit the disk.
        """
        directory = local_directory(model, show_bars=progress is not None)
        problems: list[str] = []
        raw, config = _read_config(directory, problems)
        generation = read_json(directory / "generation_config.json", problems, required=False)
        eos = _eos_ids(generation, config, problems)
        entries = read_entries(directory, problems)
        if config is not None and entries is not None:
            entries = _match(config, raw, entries, problems)
        if problems or config is None or entries is None:
            raise CheckpointError(
                f"{directory} cannot be exported", problems=problems, hint=GET_ANOTHER
            )
        return cls(directory, raw, config, entries, eos)

    @property
    def family(self) -> ModuleType:
        """The module of the model's family, of exporter.models."""
        return models.load(self.config_dict["model_type"])

    def network(self, context: int, layers: Layers) -> Decoder:
        """The network of the family with `context` cache slots, over the weights of `layers`."""
        network: Decoder = self.family.Model(self.config, context, layers)
        return network

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
        return read_rows(name, self.entries[name], begin, end)

    def vector(self, name: str) -> torch.Tensor:
        """A whole vector as float32 [length]."""
        return read_rows(name, self.entries[name], 0, self.shape(name)[0])

    def vectors(self) -> dict[str, torch.Tensor]:
        """All vectors by name, such as norm weights: float32."""
        return {name: self.vector(name) for name in self.names if len(self.shape(name)) == 1}

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
                f"{self.path} has weights that are not finite", problems=problems, hint=GET_ANOTHER
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


# ---- config --------------------------------------------------------------------------------------


def _read_config(directory: Path, problems: list[str]) -> tuple[dict[str, Any], ModelConfig | None]:
    """config.json as it is and as the config of its family; None with notes in `problems` where it
    is not usable."""
    before = len(problems)
    raw = read_json(directory / "config.json", problems)
    if len(problems) > before:
        return raw, None
    try:
        return raw, models.load(raw.get("model_type")).read_config(raw)
    except CheckpointError as error:
        problems.extend([f"config.json: {p}" for p in error.problems] or [error.what])
        return raw, None


def _eos_ids(
    generation: dict[str, Any], config: ModelConfig | None, problems: list[str]
) -> tuple[int, ...]:
    """End tokens: those of generation_config.json if it has any, for Instruct models add some
    there."""
    eos = generation.get("eos_token_id")
    if eos is None:
        return config.eos_token_ids if config else ()
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not all(map(is_id, ids)):
        problems.append(
            f"generation_config.json: eos_token_id must be one or more token ids, got {eos!r}"
        )
    return ids


# ---- safetensors ---------------------------------------------------------------------------------


def _match(
    config: ModelConfig, raw: dict[str, Any], found: dict[str, StoredTensor], problems: list[str]
) -> dict[str, StoredTensor]:
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
        elif not name.endswith("rotary_emb.inv_freq"):
            # Old versions saved this buffer, which is computed from the config.
            problems.append(f"{name} is not part of this model")
    return {name: found[name] for name in expected if name in found}


def _same(entries: Mapping[str, StoredTensor], first: str, second: str) -> bool:
    """Whether two matrices hold the same values."""
    a, b = entries[first], entries[second]
    if a.shape != b.shape:
        return False
    step = max(1, BLOCK_WEIGHTS // a.shape[1])
    spans = ((begin, min(begin + step, a.shape[0])) for begin in range(0, a.shape[0], step))
    return all(
        torch.equal(read_rows(first, a, *span), read_rows(second, b, *span)) for span in spans
    )

"""A checkpoint on disk, validated before any work and read row block by row block.

`Checkpoint.open` takes a directory, a GGUF file or a hub id. It reads and tries everything that an
export depends on but the weights' values, and refuses with everything that is wrong at once. Of
matrices that are ternary it reads the values too: they decide what becomes of them.
Safetensors files are parsed here: the library's errors name neither the file nor the expected
bytes, and through its memory map a file read for the first time comes several times slower than
with plain reads, and one truncated meanwhile kills the process.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from exporter import models
from exporter.bundle import HEAD, Origin
from exporter.checkpoint import adapter as adapters
from exporter.checkpoint import names
from exporter.checkpoint.folder import (
    ADAPTER_CONFIG,
    GET_ANOTHER,
    SHIPPED_FILES,
    Located,
    check_fetched,
    locate,
    read_json,
)
from exporter.checkpoint.gguf import read_gguf
from exporter.checkpoint.packed import unpack
from exporter.checkpoint.safetensors import read_entries
from exporter.checkpoint.tensors import (
    Block,
    TensorSource,
    all_finite,
    blocks_of,
    one_thread,
    row_spans,
)
from exporter.checkpoint.ternary import TernaryTensor, find_ternary, scaled
from exporter.checkpoint.tokenizer import TokenizerFacts, read_tokenizer, write_tokenizer
from exporter.errors import CheckpointError
from exporter.in_order import in_order
from exporter.models.config import ModelConfig, is_id
from exporter.models.layers import Decoder, Layers
from exporter.progress import Progress


@dataclass(frozen=True)
class Checkpoint:
    """A validated checkpoint, made by `open`.

    It holds no weights and no open file. path: its folder or GGUF file. tokenizer: None where it
    has none. warnings: what will disappoint, in whole sentences.
    """

    path: Path
    config_dict: dict[str, Any]
    config: ModelConfig
    entries: Mapping[str, TensorSource]
    eos_token_ids: tuple[int, ...]
    tokenizer: TokenizerFacts | None
    origin: Origin
    warnings: tuple[str, ...]

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        adapter: str | None = None,
        progress: Progress | None = None,
        meanwhile: Callable[[dict[str, Path]], None] | None = None,
    ) -> Checkpoint:
        """Opens a local directory or GGUF file, or downloads a hub id.

        `revision` is a branch, tag or commit on the hub; `adapter` the folder or hub id of a LoRA
        adapter to merge. With `progress`, the hub's own bars show a download. `meanwhile` gets the
        `files` while a child process reads the tokenizer, which takes seconds. Raises
        CheckpointError with every reason to refuse, OutOfSpaceError if a download does not fit the
        disk, UsageError for a revision of a local model.
        """
        shown = progress is not None
        located = locate(model, revision=revision, show_bars=shown)
        lora = None if adapter is None else locate(adapter, show_bars=shown)
        _refuse_bare_adapter(model, located.path, lora)
        problems: list[str] = []
        warnings: list[str] = []
        raw, found = _read(located.path, problems)
        generation = _generation_config(located.path, problems)
        config = _config(raw, problems) if raw else None
        entries: dict[str, TensorSource] = {}
        if config is not None and found is not None:
            try:
                entries = names.match(raw, config, _shapes(raw, config), found, problems, warnings)
            except CheckpointError as cause:
                raise CheckpointError(f"{located.path}: {cause.what}", hint=cause.hint) from None
        if config is None or problems:
            what = f"{located.path} cannot be exported"
            raise CheckpointError(what, problems=problems, hint=GET_ANOTHER)
        entries = find_ternary(entries, warnings, progress)
        if lora is not None:
            entries = adapters.merge(lora.path, entries)
        config, entries = _as_computed(raw, config, entries)

        def beside() -> None:
            if meanwhile is not None:
                meanwhile(_files(located.path, entries))

        tokenizer = read_tokenizer(located.path, raw, config.vocab_size, warnings, beside)
        eos = _end_tokens(generation, config, tokenizer, warnings)
        _note_code(raw, warnings)
        origin = _origin(located, lora, entries)
        return cls(located.path, raw, config, entries, eos, tokenizer, origin, tuple(warnings))

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

    def ternary(self, name: str) -> TernaryTensor | None:
        """A matrix that is ternary in the checkpoint, with levels of its own; else None."""
        tensor = self.entries[name]
        return tensor if isinstance(tensor, TernaryTensor) else None

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    @property
    def source_bytes(self) -> int:
        """Size of all tensors in the dtypes of the checkpoint, in bytes."""
        return sum(entry.size_bytes for entry in self.entries.values())

    @property
    def files(self) -> dict[str, Path]:
        """The files that tensors are read from, sorted, by name; an adapter's as adapter/NAME."""
        return _files(self.path, self.entries)

    @property
    def bos_token_id(self) -> int | None:
        """The token that a plain prompt begins with: the tokenizer's, not the config's.

        Without a tokenizer it is the config's.
        """
        return self.tokenizer.bos_token_id if self.tokenizer else self.config.bos_token_id

    @property
    def bos_rule(self) -> str:
        """Who puts the BOS token in front of a plain prompt: see `bundle.Interface`."""
        if self.tokenizer is None:
            return "unknown"
        return "none" if self.bos_token_id is None else "tokenizer"

    @property
    def text_files(self) -> dict[str, int]:
        """The tokenizer, chat template and generation config that ship: sizes in bytes by name."""
        files = {name: self.path / name for name in SHIPPED_FILES} if self.path.is_dir() else {}
        sizes = {name: file.stat().st_size for name, file in files.items() if file.is_file()}
        return sizes | ({"tokenizer.json": self.tokenizer.json_bytes} if self.tokenizer else {})

    def write_texts(self, out: Path) -> None:
        """Writes the files of `text_files` into a folder."""
        write_tokenizer(self.path, self.config_dict, self.tokenizer, out)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor: (out_features, in_features) of a matrix, (length,) of a vector."""
        return self.entries[name].shape

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) of a matrix as float32 [end - begin, cols]; only they are read."""
        return self.entries[name].rows(begin, end)

    def vector(self, name: str) -> torch.Tensor:
        """A whole vector as float32 [length]."""
        return self.entries[name].rows(0, self.shape(name)[0])

    def vectors(self) -> dict[str, torch.Tensor]:
        """All vectors by name, such as norm weights, as float32 [length]."""
        return {name: self.vector(name) for name in self.names if len(self.shape(name)) == 1}

    def blocks(self, name: str) -> Iterator[Block]:
        """The blocks of a whole tensor: see `tensors.blocks_of`."""
        return blocks_of(self.entries[name])

    def check_finite(self, progress: Progress | None = None) -> None:
        """Reads every weight and refuses NaN and infinite values.

        Raises CheckpointError naming each tensor that has some, with counts.
        """
        problems, done = [], 0
        for name in self.names:
            nans, infs = _not_finite(self.entries[name])
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


def _files(path: Path, entries: Mapping[str, TensorSource]) -> dict[str, Path]:
    """What `Checkpoint.files` says."""
    files = sorted({file for entry in entries.values() for file in entry.files})
    own = path if path.is_dir() else path.parent
    return {f.name if f.parent == own else f"adapter/{f.name}": f for f in files}


def _not_finite(tensor: TensorSource) -> tuple[int, int]:
    """The numbers of NaN and of infinite values of a tensor."""

    def counted(span: tuple[int, int]) -> tuple[int, int]:
        block = tensor.rows(*span)
        return (0, 0) if all_finite(block) else (int(block.isnan().sum()), int(block.isinf().sum()))

    nans, infs = zip(*one_thread(in_order(row_spans(tensor.shape), counted)), strict=True)
    return sum(nans), sum(infs)


# ---- the parts of `open` -------------------------------------------------------------------------


def _refuse_bare_adapter(model: str | Path, path: Path, lora: Located | None) -> None:
    """Raises CheckpointError for a folder with an adapter that nobody asked to merge."""
    if lora is not None or not path.is_dir() or not (path / ADAPTER_CONFIG).is_file():
        return
    base = read_json(path / ADAPTER_CONFIG, []).get("base_model_name_or_path") or "BASE"
    if (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} has full weights and a LoRA adapter beside them, which is not merged",
            hint=f"give --adapter {path} to merge it, or move {ADAPTER_CONFIG} away",
        )
    raise CheckpointError(
        f"{path} is a LoRA adapter, not a model: it was trained on {base}",
        hint=f"tinyqmoe export {base} OUT --adapter {model}",
    )


def _read(
    path: Path, problems: list[str]
) -> tuple[dict[str, Any], Mapping[str, TensorSource] | None]:
    """The content of config.json, and all tensors; of a GGUF file what stands for them."""
    if path.is_file():
        model = read_gguf(path)
        return model.config, model.tensors
    check_fetched(path)
    raw = read_json(path / "config.json", problems)
    found = read_entries(path, problems)
    return raw, None if found is None else unpack(raw, found, problems)


def _config(raw: dict[str, Any], problems: list[str]) -> ModelConfig | None:
    """The config of the model's family, or None with notes in `problems`."""
    try:
        config: ModelConfig = models.load(raw.get("model_type")).read_config(raw)
        return config
    except CheckpointError as error:
        problems.extend([f"config.json: {p}" for p in error.problems] or [error.what])
        return None


def _shapes(raw: dict[str, Any], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the network and their shapes, in its order, with a head of its own."""
    shapes: dict[str, tuple[int, ...]] = models.load(raw["model_type"]).tensor_shapes(
        names.untied(config)
    )
    return shapes


def _as_computed(
    raw: dict[str, Any], config: ModelConfig, entries: dict[str, TensorSource]
) -> tuple[ModelConfig, dict[str, TensorSource]]:
    """The config and the tensors as the network computes with them.

    A head that is none of the embedding's unties the model. The attention factor of a stretched
    RoPE is folded into queries and keys, so that no backend has to know it.
    """
    if HEAD in entries:
        config = names.untied(config)
    factor = config.rope.attention_factor if config.rope else 1.0
    if factor != 1.0:
        projections = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
        ends = ("q_norm.weight", "k_norm.weight") if config.head_norm else projections
        entries = entries | {n: scaled(t, factor) for n, t in entries.items() if n.endswith(ends)}
    return config, {name: entries[name] for name in _shapes(raw, config) if name in entries}


def _generation_config(path: Path, problems: list[str]) -> dict[str, Any]:
    """The content of generation_config.json, its end tokens checked; a GGUF file has none."""
    if path.is_file():
        return {}
    raw = read_json(path / "generation_config.json", problems, required=False)
    if not all(map(is_id, _ids(raw))):
        problems.append(
            "generation_config.json: eos_token_id must be one or more token ids, got "
            f"{raw['eos_token_id']!r}"
        )
    return raw


def _ids(generation: dict[str, Any]) -> list[Any]:
    given = generation.get("eos_token_id")
    return given if isinstance(given, list) else [] if given is None else [given]


def _end_tokens(
    generation: dict[str, Any],
    config: ModelConfig,
    tokenizer: TokenizerFacts | None,
    warnings: list[str],
) -> tuple[int, ...]:
    """Ids of the end tokens.

    They are those of generation_config.json if it has any, for Instruct models add some there, else
    those of the config; and that of the tokenizer, with which it ends a text.
    """
    own = [] if tokenizer is None or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = list(dict.fromkeys([*(_ids(generation) or config.eos_token_ids), *own]))
    beyond = [i for i in ids if i >= config.vocab_size]
    if beyond:
        warnings.append(
            f"the end tokens {beyond} are past the vocabulary of {config.vocab_size}: left out"
        )
    known = tuple(i for i in ids if i not in beyond)
    if not known:
        warnings.append("there is no end token: every answer runs into its token limit")
    return known


def _note_code(raw: dict[str, Any], warnings: list[str]) -> None:
    if raw.get("auto_map"):
        warnings.append(
            f"config.json names code of its own (auto_map): it is not run, the network is "
            f"{raw['model_type']}'s"
        )


def _origin(located: Located, lora: Located | None, entries: Mapping[str, TensorSource]) -> Origin:
    """Where the weights came from; of what is on this machine no more than its name."""
    types = Counter(entry.dtype for entry in entries.values())
    adapter = None if lora is None else lora.repo_id or lora.path.resolve().name
    adapter_revision = None if lora is None else lora.revision
    hub = (located.repo_id, located.revision)
    return Origin(*hub, adapter, adapter_revision, dict(sorted(types.items())))

"""LoRA adapters of PEFT, merged into the weights block by block as they are read.

W + scale * B A, with scale = alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2106.09685,
2312.03732). What changes more than that is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from exporter.checkpoint.safetensors import TORCH_DTYPES, StoredTensor, read_header
from exporter.checkpoint.tensors import TensorSource, check_range
from exporter.errors import CheckpointError

# What says nothing of the merged weights, or is read here.
KNOWN = {
    *("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode"),
    *("lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "layers_pattern"),
    *("layers_to_transform", "fan_in_fan_out", "runtime_config", "megatron_core", "eva_config"),
    *("loftq_config", "corda_config", "ensure_weight_tying", "qalora_group_size"),
}
# Of init_lora_weights: these leave the base model as it is.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "true", "false")
ON_EMBEDDING = "lora_embedding_"
HINT = (
    "merge it with PEFT: model.merge_and_unload().save_pretrained(FOLDER), then export that folder"
)


@dataclass(frozen=True)
class MergedTensor:
    """A matrix of the base model plus scale * B A.

    A is float32 [r, in_features], B [out_features, r]; of an embedding they are A [r, rows] and
    B [cols, r], and the product is transposed.
    """

    base: TensorSource
    a: StoredTensor
    b: StoredTensor
    scale: float
    config: Path
    is_embedding: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def size_bytes(self) -> int:
        return self.base.size_bytes

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.base.files, *self.a.files, self.config)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        check_range(begin, end, self.shape[0])
        rank = self.a.shape[0]
        if self.is_embedding:
            columns = torch.stack([self.a.rows(i, i + 1)[0, begin:end] for i in range(rank)], 1)
            delta = columns @ self.b.rows(0, self.b.shape[0]).T
        else:
            delta = self.b.rows(begin, end) @ self.a.rows(0, rank)
        return self.base.rows(begin, end) + self.scale * delta


def merge(folder: Path, entries: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """The tensors of a model with those of an adapter merged in.

    Raises CheckpointError with all that does not fit.
    """
    problems: list[str] = []
    config = read_json(folder / ADAPTER_CONFIG, problems)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        problems.append(f"{ADAPTER_WEIGHTS} is missing")
    if problems:
        raise CheckpointError(
            f"{folder} is not a LoRA adapter",
            problems=problems,
            hint="give what PEFT's save_pretrained has written, with safetensors",
        )
    _refuse_kinds(folder, config)
    tensors = read_header(folder / ADAPTER_WEIGHTS, problems)
    merged = dict(entries)
    pairs, whole = _sorted(tensors, merged, problems)
    for (name, on_embedding), pair in pairs.items():
        base, scale = merged[name], _scale(name, pair, config, problems)
        problems += _misfits(name, base, pair, on_embedding)
        if len(pair) == 2:
            merged[name] = MergedTensor(
                base, pair["A"], pair["B"], scale, folder / ADAPTER_CONFIG, on_embedding
            )
    for name, tensor in whole.items():
        shape = merged[EMBEDDING if name == HEAD else name].shape
        if tensor.shape != shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, the model's {list(shape)}")
        merged[name] = tensor
    problems += _tied_problems(entries, {name for name, _ in pairs}, set(whole))
    problems += [
        f"{name} is {t.dtype}, supported: {', '.join(TORCH_DTYPES)}"
        for name, t in tensors.items()
        if t.dtype not in TORCH_DTYPES
    ]
    if problems or not tensors:
        raise CheckpointError(
            f"the adapter {folder} does not fit the model",
            problems=problems or ["it has no tensors"],
            hint=f"give the base model that it was trained on, or {HINT}",
        )
    return merged


def _refuse_kinds(folder: Path, config: dict[str, Any]) -> None:
    """Raises CheckpointError for an adapter that is more than W + scale * B A."""
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')!r}, supported: 'LORA'")
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}, supported: 'none'")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        problems.append(f"init_lora_weights is {start!r}, which changes the base model too")
    others = set(config) - KNOWN - {"bias", "init_lora_weights"}
    problems += [f"{key} is {config[key]!r}" for key in sorted(others) if config[key]]
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key, 8), int | float) or config.get(key, 8) <= 0:
            problems.append(f"{key} must be a positive number, got {config[key]!r}")
    if problems:
        raise CheckpointError(
            f"the adapter {folder} is of a kind that is not supported", problems=problems, hint=HINT
        )


Pairs = dict[tuple[str, bool], dict[str, StoredTensor]]
"""A and B by the name of the matrix, and whether they are of an embedding."""


def _sorted(
    tensors: Mapping[str, StoredTensor], base: Mapping[str, TensorSource], problems: list[str]
) -> tuple[Pairs, dict[str, StoredTensor]]:
    """The pairs A, B of an adapter, and its whole tensors (modules_to_save), by our names."""
    pairs: Pairs = {}
    whole: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        short = key.removeprefix("base_model.model.")
        lora = re.fullmatch(
            r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight)[^.]+)?(?:\.weight)?", short
        )
        name = f"{lora[1]}.weight" if lora else re.sub(r"\.modules_to_save(\.[^.]+)?", "", short)
        if name not in base and f"model.{name}" in base:
            name = f"model.{name}"
        if name not in base and not (name == HEAD and not lora):
            problems.append(f"{key} is for {name}, which the model has not")
        elif lora:
            pairs.setdefault((name, bool(lora[2])), {})[lora[3]] = tensor
        else:
            whole[name] = tensor
    return pairs, whole


def _pattern(patterns: Any, module: str, default: float) -> float:
    """The value of the first pattern that fits the end of a module's name, as PEFT matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return default


def _scale(
    name: str, pair: dict[str, StoredTensor], config: dict[str, Any], problems: list[str]
) -> float:
    """The factor of B A; a rank that is not that of the config is noted in `problems`."""
    module = name.removesuffix(".weight")
    rank = _pattern(config.get("rank_pattern"), module, config.get("r", 8))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    if "A" in pair and pair["A"].shape[0] != rank:
        problems.append(f"{name}: A has rank {pair['A'].shape[0]}, {ADAPTER_CONFIG} says {rank:g}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _misfits(
    name: str, base: TensorSource, pair: dict[str, StoredTensor], on_embedding: bool
) -> list[str]:
    """Why A and B do not fit a matrix of the model."""
    if missing := {"A", "B"} - pair.keys():
        return [f"{name}: {missing.pop()} is missing"]
    a, b = pair["A"].shape, pair["B"].shape
    outer = (b[0], a[-1]) if not on_embedding else (a[-1], b[0])
    if len(a) == len(b) == 2 and b[1] == a[0] and outer == base.shape:
        return []
    return [f"{name}: A {list(a)} and B {list(b)} do not make {list(base.shape)}"]


def _tied_problems(
    entries: Mapping[str, TensorSource], paired: set[str], whole: set[str]
) -> list[str]:
    """Changes of a tied embedding or head, which would change both or untie them."""
    if HEAD in entries or {EMBEDDING, HEAD} <= whole:
        return []
    return [
        f"{name} is changed, and the model ties its embedding and its head"
        for name in sorted((paired | whole) & {EMBEDDING, HEAD})
    ]

"""Kinds of checkpoint as people have them: each a change of a small plain one, and what comes of
it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporter.bundle import EMBEDDING, HEAD
from tests.support.checkpoints import edit_config, write_llama, write_tokenizer

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 17209920\n"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL, WEIGHTS = "model", "model.safetensors"


def write_plain(directory: Path, **overrides: Any) -> Path:
    """Two layers, tied, with a byte-level tokenizer of 258 tokens."""
    write_llama(directory, vocab_size=260, eos_token_id=257, bos_token_id=256, **overrides)
    write_tokenizer(directory)
    return directory


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return dict(load_file(directory / WEIGHTS))


def put(directory: Path, tensors: dict[str, Tensor], name: str = WEIGHTS) -> None:
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, directory / name)


def edit_json(file: Path, **changes: Any) -> None:
    """Changes keys of a JSON object in a file; without a file it begins empty."""
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | changes))


def renamed(change: Callable[[str], str]) -> Callable[[Path], object]:
    """The same weights under other names."""
    return lambda d: put(d, {change(name): t for name, t in tensors_of(d).items()})


def added(**tensors: Callable[[dict[str, Tensor]], Tensor]) -> Callable[[Path], object]:
    """More weights, each made from those that are there."""

    def change(directory: Path) -> None:
        there = tensors_of(directory)
        put(directory, there | {name: make(there) for name, make in tensors.items()})

    return change


def config(**changes: Any) -> Callable[[Path], object]:
    return lambda d: edit_config(d, **changes)


def template(text: str | list[dict[str, str]]) -> Callable[[Path], object]:
    return lambda d: edit_json(d / "tokenizer_config.json", chat_template=text)


def without(*names: str) -> Callable[[Path], object]:
    return lambda d: [(d / name).unlink() for name in names] and None


def both(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda d: [change(d) for change in changes] and None


def head_only(directory: Path) -> None:
    tensors = tensors_of(directory)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    put(directory, tensors)


def shards(index: Callable[[dict[str, str]], dict[str, str]] | None) -> Callable[[Path], object]:
    """Two files, with an index that is perhaps wrong, or with none."""

    def change(directory: Path) -> None:
        tensors = tensors_of(directory)
        (directory / WEIGHTS).unlink()
        where = {}
        for i, part in enumerate((list(tensors)[:5], list(tensors)[5:])):
            file = f"model-0000{i + 1}-of-00002.safetensors"
            put(directory, {name: tensors[name] for name in part}, file)
            where |= dict.fromkeys(part, file)
        if index:
            text = json.dumps({"metadata": {}, "weight_map": index(where)})
            (directory / "model.safetensors.index.json").write_text(text)

    return change


def cache_root(directory: Path) -> None:
    """The root of a model in the hub's cache, with two snapshots."""
    files = list(directory.iterdir())
    for commit in (COMMIT, "f" * 40):
        (directory / "snapshots" / commit).mkdir(parents=True)
        for file in files:
            shutil.copy(file, directory / "snapshots" / commit / file.name)
    for file in files:
        file.unlink()
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text(COMMIT)


def write_adapter(directory: Path, rank: int = 3, **changes: Any) -> None:
    """A LoRA adapter for queries and values of both layers, as PEFT writes it."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(2):
        for kind, outputs in (("q_proj", 48), ("v_proj", 24)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{kind}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, 48, generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator)
    put(directory, tensors, "adapter_model.safetensors")
    edit_json(
        directory / "adapter_config.json",
        **{
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "owner/base",
            "r": rank,
            "lora_alpha": 8,
            "bias": "none",
            "target_modules": ["q_proj", "v_proj"],
        }
        | changes,
    )


def adapter_only(directory: Path) -> None:
    without("config.json", WEIGHTS)(directory)
    write_adapter(directory)


@dataclass(frozen=True)
class Kind:
    """A change of the plain checkpoint and its outcome.

    told: parts of the refusal, or else of the warnings. by_transformers: whether transformers reads
    the changed checkpoint; else the logits are those of the plain one.
    """

    change: Callable[[Path], object]
    told: tuple[str, ...] = ()
    refused: bool = False
    by_transformers: bool = True


def fine(change: Callable[[Path], object], *warnings: str, by_transformers: bool = True) -> Kind:
    return Kind(change, warnings, by_transformers=by_transformers)


def refused(change: Callable[[Path], object], *told: str) -> Kind:
    return Kind(change, told, refused=True)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
KINDS: dict[str, Kind] = {
    # names
    "DistributedDataParallel": fine(renamed(lambda n: f"module.{n}"), by_transformers=False),
    "torch.compile": fine(renamed(lambda n: f"_orig_mod.{n}"), by_transformers=False),
    "both wrappers": fine(renamed(lambda n: f"_orig_mod.module.{n}"), by_transformers=False),
    "a wrapper inside": fine(
        renamed(lambda n: n.replace("self_attn", "_fsdp_wrapped_module.self_attn")),
        by_transformers=False,
    ),
    "a base model": fine(
        both(renamed(lambda n: n.removeprefix("model.")), config(architectures=["LlamaModel"]))
    ),
    "a model with a value head": fine(
        both(
            renamed(lambda n: f"pretrained_model.{n}"),
            added(**{"v_head.summary.weight": lambda t: torch.ones(1, 48)}),
        ),
        by_transformers=False,
    ),
    "a value head beside": fine(added(**{"v_head.summary.weight": lambda t: torch.ones(1, 48)})),
    "tied weights under the head's name": fine(head_only),
    "an equal head of another type": fine(added(**{HEAD: lambda t: t[EMBEDDING].double()})),
    "a head of its own though tied": fine(
        added(**{HEAD: lambda t: t[EMBEDDING] + 0.5}), "differs from"
    ),
    "float64": fine(lambda d: put(d, {k: v.double() for k, v in tensors_of(d).items()})),
    "no index": fine(shards(None), by_transformers=False),
    "an index that lists a dropped head": fine(
        shards(lambda where: where | {HEAD: where[EMBEDDING]})
    ),
    "another spelling of the architecture": fine(config(architectures=["LLaMAForCausalLM"])),
    "no architecture": fine(config(architectures=None)),
    "a stale quantization_config": fine(
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "plain floats",
        by_transformers=False,
    ),
    "nulls": fine(
        config(head_dim=None, quantization_config=None, attention_bias=None, mlp_bias=None),
        by_transformers=False,
    ),
    "code of its own": fine(
        config(auto_map={"AutoModelForCausalLM": "other.Other"}), "auto_map", by_transformers=False
    ),
    # rope
    "linear rope": fine(config(rope_parameters={"rope_type": "linear", "factor": 2.0})),
    "linear rope as it was spelt": fine(
        both(
            lambda d: edit_config(d, remove=("rope_parameters",)),
            config(rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 3.0}),
        )
    ),
    "yarn": fine(config(rope_parameters=YARN | {"rope_theta": 10000.0})),
    "yarn with its own factors": fine(
        config(
            rope_parameters=YARN
            | {"rope_theta": 5000.0, "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 16.0}
        )
    ),
    "yarn with an attention factor": fine(
        config(rope_parameters=YARN | {"rope_theta": 1e5, "attention_factor": 1.7})
    ),
    # the tokenizer, and what goes with it
    "no tokenizer": fine(without("tokenizer.json"), "no tokenizer"),
    "no end token": fine(
        both(
            config(eos_token_id=None),
            without("generation_config.json"),
            lambda d: edit_json(d / "tokenizer_config.json", eos_token=None),
        ),
        "no end token",
    ),
    "end tokens past the vocabulary": fine(
        both(config(eos_token_id=9999), without("generation_config.json")), "[9999] are past"
    ),
    "a tokenizer with more tokens": fine(
        lambda d: (
            edit_json(d / "tokenizer_config.json", pad_token="[PAD]", sep_token="[SEP]")
            or edit_json(d / "tokenizer_config.json", extra_special_tokens=["[A]", "[B]"])
        ),
        "tokens of the tokenizer that the model lacks: 2",
    ),
    "a template that needs a system message": fine(
        template(
            "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}"
            + CHATML
        ),
        "needs a system message",
    ),
    "a template of parts": fine(
        template(
            "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
            "{% endfor %}"
        )
    ),
    "named templates": fine(
        template([{"name": "default", "template": CHATML}, {"name": "rag", "template": "R"}])
    ),
    "a template that raises TypeError": refused(
        template("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}"),
        "the chat template does not render: TypeError",
        "export without chat",
    ),
    "a template that is no template": refused(
        template("{% for %}"), "the chat template does not render", "export without chat"
    ),
    "named templates without a default": refused(
        template([{"name": "rag", "template": "R"}, {"name": "tool", "template": "T"}]),
        "the chat template does not render",
        "export without chat",
    ),
    "a tokenizer that is a pointer": refused(
        lambda d: (d / "tokenizer.json").write_text(POINTER), "git-lfs pointer", "git lfs pull"
    ),
    "weights and config that are pointers": refused(
        lambda d: [(d / n).write_text(POINTER) for n in (WEIGHTS, "config.json")],
        "config.json, model.safetensors",
        "git lfs pull",
    ),
    "a damaged tokenizer": refused(
        lambda d: (d / "tokenizer.json").write_text('{"version": "1.0"}'),
        "the tokenizer cannot be read",
        "export without a tokenizer",
    ),
    # other formats
    "an adapter": refused(
        adapter_only,
        "is a LoRA adapter",
        "trained on owner/base",
        "export owner/base OUT --adapter",
    ),
    "an adapter beside full weights": refused(
        write_adapter, "LoRA adapter beside them", "--adapter"
    ),
    "an adapter inside": refused(
        added(**{"model.layers.0.self_attn.q_proj.lora_A.default.weight": lambda t: torch.ones(2)}),
        "an adapter that is not merged",
        "merge_and_unload",
    ),
    "Meta's names": refused(
        renamed(lambda n: n.removeprefix("model.").replace("embed_tokens", "tok_embeddings")),
        "Meta's original names",
        "convert_llama_weights_to_hf",
    ),
    "pickled weights": refused(
        both(without(WEIGHTS), lambda d: (d / "pytorch_model.bin").write_bytes(b"PK")),
        "pickled",
        "save_pretrained",
    ),
    "packed weights": refused(
        both(
            config(quantization_config={"quant_method": "gptq", "bits": 4}),
            renamed(lambda n: n.replace("q_proj.weight", "q_proj.qweight")),
        ),
        "quantized already by gptq",
        "original checkpoint",
    ),
    "packed weights without a word": refused(
        added(**{"model.layers.0.mlp.up_proj.weight_scale": lambda t: torch.ones(1)}),
        "quantized already (it has",
        "original checkpoint",
    ),
    "weights that are quantized while they run": refused(
        config(quantization_config={"quant_method": "bitnet", "linear_class": "autobitlinear"}),
        "'bitnet'",
        "original checkpoint",
    ),
    "a classifier": refused(config(architectures=["LlamaForSequenceClassification"]), "classifies"),
    "a stretched rope that is not known": refused(
        config(rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0}), "'longrope'"
    ),
}

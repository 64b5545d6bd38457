"""Small random Hugging Face Llama checkpoints of any shape, for every test that needs an input
model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def hf_model(*, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A random transformers LlamaForCausalLM in eval mode."""
    return random_family("llama", dtype=dtype, seed=seed, **overrides)


def random_family(
    family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> Any:
    """A random transformers model of a family in eval mode. Weights have std 0.1, norms and biases
    vary, so that errors show."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = SMALL | overrides
    theta = values.pop("rope_theta")
    scaling = values.pop("rope_scaling", None) or {"rope_type": "default"}
    if family == "qwen3":
        values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **values, rope_parameters=scaling | {"rope_theta": theta})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    return model.to(dtype)


def write_family(directory: Path, family: str, **options: Any) -> Path:
    """Writes `random_family(...)` with save_pretrained and returns `directory`."""
    random_family(family, **options).save_pretrained(directory)
    return directory


def write_llama(
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    tokenizer: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write `hf_model(...)` with save_pretrained and return `directory`.

    `shards` > 1 asks for about that many files with an index. `tokenizer` adds a byte-level one of
    256 tokens and up (it needs vocab_size >= 258).
    """
    model = hf_model(dtype=dtype, seed=seed, **overrides)
    directory.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        model.save_pretrained(directory)
    else:
        total = sum(p.numel() * p.element_size() for p in model.parameters())
        model.save_pretrained(directory, max_shard_size=max(1, total // shards))
    if tokenizer:
        write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer.json: ids 0-255 are bytes in the GPT-2 alphabet, 256 is <s>, which
    it puts in front of a text, 257 is </s>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def edit_config(directory: Path, *, remove: tuple[str, ...] = (), **changes: Any) -> None:
    """Change or remove keys of config.json."""
    path = directory / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in remove}
    path.write_text(json.dumps(config | changes))


def copy(source: Path, target: Path) -> Path:
    """A copy of a checkpoint that a test may damage."""
    return Path(shutil.copytree(source, target))

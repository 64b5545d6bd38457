"""Train the demo model: `PYTHONPATH=tools python -m demo_model.train OUT_DIR`. Text, tokenizer and
weights all start from one seed.

The model must survive ternary weights, which round-to-nearest ruins in a model that never met them.
So after a first part in plain float, each step sees one batch through the float weights and one
through a ternary view of the same weights (Ternary Weight Networks, Li et al. 2016), with gradients
passed straight through the rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from demo_model.text import ASSISTANT, END, USER, documents, held_out_texts, lessons

BOS, EOS = "<|bos|>", "<|eos|>"
SPECIAL_TOKENS = (BOS, EOS, USER, ASSISTANT, END)  # their ids are 0..4
BOS_ID, EOS_ID, END_ID = 0, 1, 4

# The split of Llama 3, so that the tokenizer runs through the same code as the real one.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{% elif message['role'] == 'assistant' "
    "%}<|assistant|>"
    "{% else %}{{ raise_exception('the demo model knows the roles user and assistant only') }}{% "
    "endif %}"
    "{{ message['content'] | trim }}<|end|>{% endfor %}{% if add_generation_prompt "
    "%}<|assistant|>{% endif %}"
)

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """All that decides the result, apart from the versions of the libraries and the kind of CPU."""

    seed: int = 0
    steps: int = 2200
    lesson_share: float = 0.1  # of the steps, at the start, on short rows of lessons
    float_share: float = 0.45  # of the steps, before the ternary view joins
    long_share: float = 0.15  # of the steps, at the end, on rows of the full context
    threads: int = 1
    batch_tokens: int = 1024
    lesson_tokens: int = 64  # a row, while there are lessons
    row_tokens: int = 256  # a row after that; always as many rows as make the same number of tokens
    context: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    vocab_size: int = 1024
    tokenizer_documents: int = 4000
    hidden_size: int = 128
    intermediate_size: int = 352
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    held_out_batches: int = 8  # of eight rows, for the perplexities


def llama_config(config: TrainConfig) -> dict[str, Any]:
    """config.json in the form that Llama 3.2 has on the hub."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": config.context // 2,
        },
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": [EOS_ID, END_ID],
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


# ---------------------------------------------------------------- tokenizer and rows of tokens


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; every string round-trips."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The chat marks are special tokens: left in the text they would also become merges.
    plain = (piece for text in texts for piece in _without_marks(text))
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def _without_marks(text: str) -> list[str]:
    for mark in (USER, ASSISTANT, END):
        text = text.replace(mark, "\0")
    return [piece for piece in text.split("\0") if piece]


def token_rows(texts: Iterator[str], tokenizer: Tokenizer, length: int) -> Iterator[list[int]]:
    """Pack documents into rows of `length + 1` tokens (inputs and targets). Each row starts with a
    new document."""
    row: list[int] = []
    for text in texts:
        row += [*tokenizer.encode(text).ids, EOS_ID]
        if len(row) > length:
            yield row[: length + 1]
            row = []


def batches(texts: Iterator[str], tokenizer: Tokenizer, rows: int, length: int) -> Iterator[Tensor]:
    """An endless stream of `[rows, length + 1]` tokens."""
    stream = token_rows(texts, tokenizer, length)
    while True:
        yield torch.tensor(list(islice(stream, rows)))


# ---------------------------------------------------------------- views of the weights


def ternary(weight: Tensor) -> Tensor:
    """Per row: zero where |w| <= 0.7 mean|w|, else the sign times the mean |w| of what is kept."""
    size = weight.abs()
    return _three_levels(weight, size > 0.7 * size.mean(dim=1, keepdim=True))


def ternary_half(weight: Tensor) -> Tensor:
    """Ternary with exactly half of each row zero, the smaller half."""
    order = weight.abs().argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(weight, dtype=torch.bool)
    kept.scatter_(1, order[:, : weight.shape[1] // 2], True)
    return _three_levels(weight, kept)


def _three_levels(weight: Tensor, kept: Tensor) -> Tensor:
    scale = (weight.abs() * kept).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp(
        min=1
    )
    return weight.sign() * kept * scale


def int8(weight: Tensor) -> Tensor:
    """Symmetric per row, the largest |w| at 127."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scale).round().clamp(-127, 127) * scale


def straight_through(view: View, weight: Tensor) -> Tensor:
    """The value of the view with the gradient of the weight itself."""
    return weight + (view(weight.detach()) - weight.detach())


def viewed_weights(
    model: nn.Module, view: View | None, embedding_view: View | None = None
) -> dict[str, Tensor]:
    """The parameters as a forward pass shall see them; `view` is for the matrices in the layers."""
    out = {}
    for name, weight in model.named_parameters():
        chosen = None if weight.ndim < 2 else view if ".layers." in name else embedding_view
        out[name] = weight if chosen is None else straight_through(chosen, weight)
    return out


def loss_of(model: nn.Module, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats of `[rows, length + 1]` tokens."""
    output = functional_call(
        model, weights, (), {"input_ids": tokens[:, :-1], "use_cache": False}, tie_weights=True
    )
    return F.cross_entropy(output.logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


EVALUATED: dict[str, tuple[View | None, View | None]] = {
    "float": (None, None),
    "int8": (int8, int8),
    "ternary": (ternary, int8),
    "ternary, half zero": (ternary_half, int8),
}


@torch.no_grad()
def perplexities(
    model: nn.Module, tokenizer: Tokenizer, count: int, length: int = 256
) -> dict[str, float]:
    """Held-out perplexity per token of each quantized view, on `count` batches of 8 rows."""
    stream = batches(held_out_texts(), tokenizer, 8, length)
    held_out = list(islice(stream, count))
    result = {}
    for name, views in EVALUATED.items():
        weights = viewed_weights(model, *views)
        losses = [loss_of(model, weights, tokens).item() for tokens in held_out]
        result[name] = round(math.exp(sum(losses) / len(losses)), 4)
    return result


# ---------------------------------------------------------------- training


def build_model(config: TrainConfig) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {key: value for key, value in llama_config(config).items() if key != "torch_dtype"}
    model = LlamaForCausalLM(LlamaConfig(**settings)).float()
    # Larger than the layers: the residual stream must not drown the identity of a token, or nothing
    # can be copied.
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return model


def _learning_rate(config: TrainConfig, step: int) -> float:
    warm = min(1.0, (step + 1) / 50)
    return config.learning_rate * warm * (0.02 + 0.98 * (1 - step / config.steps))


def _optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices in the layers: with AdamW, so few steps do not teach the model to copy
    a name."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or ".layers." not in name]
    rate = config.learning_rate
    return [
        torch.optim.Muon(
            matrices, lr=rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def _views_at(config: TrainConfig, step: int) -> tuple[View | None, ...]:
    """Float alone first; then float and ternary, where every fourth ternary batch has half of its
    weights zero."""
    if step < config.float_share * config.steps:
        return (None,)
    return (None, ternary_half if step % 4 == 3 else ternary)


def training_batches(
    tokenizer: Tokenizer, config: TrainConfig
) -> Callable[[int], Iterator[Tensor]]:
    """Maps a step to its stream: lessons, then documents in rows of `row_tokens`, at the end in
    rows of `context`."""

    def stream(texts: Iterator[str], length: int) -> Iterator[Tensor]:
        return batches(texts, tokenizer, max(1, config.batch_tokens // length), length)

    texts = documents(config.seed)
    first = stream(lessons(config.seed), config.lesson_tokens)
    short, full = stream(texts, config.row_tokens), stream(texts, config.context)
    lessons_end, short_end = (
        config.lesson_share * config.steps,
        (1 - config.long_share) * config.steps,
    )
    return lambda step: first if step < lessons_end else short if step < short_end else full


def fit(model: nn.Module, tokenizer: Tokenizer, config: TrainConfig) -> list[float]:
    """The training loop. Returns the loss of every step, the mean over its views."""
    stream_at = training_batches(tokenizer, config)
    optimizers = _optimizers(model, config)
    losses: list[float] = []
    start = time.monotonic()
    for step in range(config.steps):
        views, total = _views_at(config, step), 0.0
        for view in views:
            loss = loss_of(model, viewed_weights(model, view), next(stream_at(step))) / len(views)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(config, step)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(total)
        if step % 50 == 49:
            print(
                f"step {step + 1} loss {total:.4f} {time.monotonic() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return losses


def save(out: Path, model: nn.Module, tokenizer: Tokenizer, config: TrainConfig) -> None:
    """A Hugging Face directory in bfloat16. The head is tied to the embedding and not stored
    twice."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: weight.detach().bfloat16().contiguous() for name, weight in model.named_parameters()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.context,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"bos_token_id": BOS_ID, "eos_token_id": [EOS_ID, END_ID], "do_sample": False}
    _write_json(out / "config.json", llama_config(config))
    _write_json(out / "generation_config.json", generation)
    _write_json(out / "tokenizer_config.json", tokenizer_config)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def train(out: Path, config: TrainConfig) -> dict[str, Any]:
    """Train and save; returns (and writes to training.json) what was run and how well it did."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    wall, cpu = time.monotonic(), time.process_time()
    tokenizer = train_tokenizer(
        islice(documents(config.seed), config.tokenizer_documents), config.vocab_size
    )
    model = build_model(config)
    losses = fit(model, tokenizer, config)
    save(out, model, tokenizer, config)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    with torch.no_grad():  # measure what was saved: bfloat16 rounding included
        for weight in model.parameters():
            weight.copy_(weight.bfloat16().float())
    record = {
        "config": asdict(config),
        "torch": torch.__version__,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "final_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "held_out_perplexity": perplexities(model, tokenizer, config.held_out_batches),
        "wall_seconds": round(wall),
        "cpu_seconds": round(cpu),
    }
    _write_json(out / "training.json", record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--threads", type=int, default=TrainConfig.threads)
    args = parser.parse_args()
    print(
        json.dumps(
            train(args.out, TrainConfig(seed=args.seed, steps=args.steps, threads=args.threads)),
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

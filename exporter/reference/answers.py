"""Answers that a package must give: logits and greedy tokens of the quantized model, in PyTorch.

Weights are decoded in blocks of rows each time they are needed, so the model is never in memory.
Answers are computed in each arithmetic that a package of the bundle ships with: exact integer dot
products of levels and quantized activations, as the operators define them, or float32; keys and
values rounded as the package's cache stores them. This is an implementation of its own, but for the
products of calls of many tokens: see exporter.reference.model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter import bundle as bundles
from exporter.bundle import Arithmetic, Artifact
from exporter.memory import release_free_memory
from exporter.models.layers import Decoder
from exporter.reference.loss import quantization_loss
from exporter.reference.loss_text import LossText, loss_text
from exporter.reference.model import (
    QuantizedLayers,
    finite,
    hidden_states,
    repeat,
)
from exporter.reference.prompts import (
    TEXTS,
    Prompt,
    make_prompts,
    read_tokenizer,
    token_sequences,
)
from exporter.session import Session

if TYPE_CHECKING:
    from exporter.backends.package import PackageInput
    from exporter.progress import Progress

SESSION_TOKENS = 256  # that a session is fed at a time: an interrupt takes effect between two


@torch.inference_mode()
def answers(model: Decoder, prompt: Prompt, draft: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Logits, float32 [max(new_tokens, 1), V], and the greedy token of each row, int64.

    `draft`: tokens that may be those, computed together with the prompt. The first that differs
    from the greedy token of its row is dropped, with all after it, so a draft only saves time.
    Raises CheckpointError if a logit is NaN or infinite.
    """
    begin, last = prompt.n_repeated, len(prompt.tokens) - 1
    if begin:
        repeat(model, prompt.tokens[0], begin)
    tokens = [*prompt.tokens, *draft[: max(prompt.new_tokens, 1) - 1]]
    hidden = hidden_states(model, tokens[begin:], begin)[0, last - begin :]
    rows = model.logits(hidden)
    wrong = rows[:-1].argmax(-1) != torch.tensor(tokens[last + 1 :])
    logits = list(rows[: 1 + int((~wrong).cumprod(0).sum())])
    for step in range(len(logits), prompt.new_tokens):
        position = torch.tensor([last + step])
        logits.append(model(logits[-1].argmax().reshape(1, 1), position)[0])
    stacked = finite(torch.stack(logits))
    return stacked, stacked.argmax(-1)


def reference_tensors(
    network: Callable[[Arithmetic], Decoder],
    arithmetics: Sequence[Arithmetic],
    prompts: Sequence[Prompt],
    drafts: Sequence[Sequence[int]],
    progress: Callable[[int], None],
) -> dict[str, Tensor]:
    """Prompts and their answers, by the names that they have in `reference.safetensors`.

    `drafts` are the tokens that may follow each prompt: see `answers`. `progress` is told the
    number of tokens computed.

    `prompt.N` int64 [S]; `ARITHMETIC.N.logits` float32 [n, V] and `ARITHMETIC.N.tokens` int64 [n],
    by the name of each arithmetic.
    """
    tensors = {f"prompt.{i}": torch.tensor(p.tokens) for i, p in enumerate(prompts)}
    for arithmetic in arithmetics:
        model = network(arithmetic)
        for i, (prompt, draft) in enumerate(zip(prompts, drafts, strict=True)):
            logits, tokens = answers(model, prompt, draft)
            key = f"{arithmetic.name}.{i}"
            tensors |= {f"{key}.logits": logits, f"{key}.tokens": tokens}
            progress(len(prompt.tokens) + max(prompt.new_tokens, 1) - 1)
        del model  # its cache, before the next one's
    return tensors


@dataclass(frozen=True)
class ExactAnswer:
    """What a session answers to a prompt.

    tokens: those that follow it; sha256: the digest of the exact logits of all their positions.
    """

    tokens: list[int]
    sha256: bytes


def exact_answer(
    session: Session,
    prompt: Prompt,
    progress: Callable[[int], None],
    following: Sequence[int] | None = None,
) -> ExactAnswer:
    """The answer of a session that is fed `following` after a prompt, or its own greedy tokens.

    `progress` is told the number of tokens computed.
    """

    def feed(tokens: Sequence[int]) -> NDArray[np.float32]:
        logits = session.feed(tokens)
        progress(len(tokens))
        return logits

    session.trim(0)
    last = (len(prompt.tokens) - 1) // SESSION_TOKENS * SESSION_TOKENS
    for begin in range(0, last, SESSION_TOKENS):
        feed(prompt.tokens[begin : begin + SESSION_TOKENS])
    tokens: list[int] = []

    def rows() -> Iterator[memoryview]:
        piece: Sequence[int] = prompt.tokens[last:]
        for step in range(max(prompt.new_tokens, 1)):
            logits = feed(piece)
            tokens.append(int(logits.argmax()) if following is None else following[step])
            piece = tokens[-1:]
            yield logits.data

    return ExactAnswer(sha256=bundles.logits_sha256(rows()), tokens=tokens)


def exact_answers(
    bundle: Path, prompts: Sequence[Prompt], progress: Callable[[int], None]
) -> list[ExactAnswer]:
    """The answers of a session of a bundle, each with its own greedy tokens."""
    session = open_session(bundle)
    return [exact_answer(session, prompt, progress) for prompt in prompts]


def exact_digests(
    bundle: Path,
    prompts: Sequence[Prompt],
    given: Sequence[ExactAnswer],
    tokens: Sequence[Sequence[int]],
) -> dict[str, Tensor]:
    """Digests of the exact logits of a session, `exact.N.sha256` uint8 [32].

    They are of the answers to prompts that are followed by `tokens`: of all positions where the
    reference has logits, fed with its tokens. An answer `given` with the same tokens is taken.
    """
    digests = {}
    for i, (prompt, answer, following) in enumerate(zip(prompts, given, tokens, strict=True)):
        if answer.tokens != following:
            answer = exact_answer(open_session(bundle), prompt, lambda _: None, following)
        digests[f"exact.{i}.sha256"] = torch.tensor(list(answer.sha256), dtype=torch.uint8)
    return digests


def open_session(bundle: Path) -> Session:
    """A session of a bundle on all cores, for prompts in pieces."""
    return Session(bundle, os.cpu_count() or 1, SESSION_TOKENS)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file. Raises OSError: `save_file` hides a full disk in its own error."""
    from safetensors.torch import save

    path.write_bytes(save(tensors))


def answer_prompts(
    source: PackageInput, artifacts: Sequence[Artifact], progress: Progress
) -> tuple[list[str], bundles.QuantizationLoss]:
    """Writes `reference.safetensors`, the answers that the packages must give.

    Returns how its prompts were made, and what quantization cost.
    """
    arithmetics = list(dict.fromkeys(a.arithmetic for a in artifacts))
    checkpoint, encoded = source.checkpoint, source.encoded
    vocab_size = checkpoint.config.vocab_size
    tokenizer = read_tokenizer(source.work)
    texts, sequences = token_sequences(tokenizer, vocab_size, TEXTS)
    limit = checkpoint.config.max_position_embeddings
    measured_on = loss_text(source.config.loss_text, tokenizer, vocab_size, limit)
    del tokenizer
    release_free_memory()  # now, and not at some time in what follows
    prompts = make_prompts(sequences, source.context, checkpoint.parameters, vocab_size)
    exact = next((a.arithmetic.name for a in artifacts if a.exact), None)
    runs = len(arithmetics) + (exact is not None)
    total = runs * sum(len(p.tokens) + max(p.new_tokens, 1) - 1 for p in prompts)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress("compute reference answers", done, total)

    def network(arithmetic: Arithmetic) -> Decoder:
        return checkpoint.network(source.context, QuantizedLayers(encoded, arithmetic))

    advance(0)
    given = [] if exact is None else exact_answers(source.work, prompts, advance)
    drafts = [answer.tokens for answer in given] or [[]] * len(prompts)
    tensors = reference_tensors(network, arithmetics, prompts, drafts, advance)
    if exact is not None:
        following = [tensors[f"{exact}.{i}.tokens"].tolist() for i in range(len(prompts))]
        tensors |= exact_digests(source.work, prompts, given, following)
    write_tensors(tensors, source.work / bundles.REFERENCE)
    return texts, _measure_loss(source, arithmetics[0], measured_on, progress)


def _measure_loss(
    source: PackageInput, arithmetic: Arithmetic, text: LossText, progress: Progress
) -> bundles.QuantizationLoss:
    """What quantization cost, in one arithmetic."""
    total, done = sum(map(len, text.windows)), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress("compare with the original", done, total)

    advance(0)
    return quantization_loss(source.checkpoint, source.encoded, arithmetic, text, advance)

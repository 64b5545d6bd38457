"""Answers that a package is judged by, read from the `reference.safetensors` of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import REFERENCE, Artifact, Bundle
from exporter.errors import BundleError


@dataclass(frozen=True)
class Answer:
    """One prompt of the reference, with its answer in the arithmetic of a package.

    `logits` is float32 [n, V], `tokens` are the n greedy tokens, `prompt` has S token ids.
    """

    prompt: list[int]
    logits: NDArray[np.float32]
    tokens: list[int]
    fills_context: bool
    sha256: bytes | None  # of the exact logits, where they are the same everywhere


def load_reference(bundle: Bundle, artifact: Artifact) -> list[Answer]:
    """Answers that a package is judged by, in the order of the file.

    Raises BundleError if they are not whole.
    """
    from safetensors import SafetensorError, safe_open

    context = bundle.manifest.interface.context
    answers = []
    try:
        with safe_open(bundle.path / REFERENCE, framework="numpy") as file:
            count = sum(name.startswith("prompt.") for name in file.keys())  # noqa: SIM118  (it is no dict)
            for i in range(count):
                prompt = file.get_tensor(f"prompt.{i}").tolist()
                key = f"{artifact.arithmetic.name}.{i}"
                logits, tokens = (file.get_tensor(f"{key}.{what}") for what in ("logits", "tokens"))
                full = len(prompt) == context
                sha256 = None
                if artifact.exact:
                    sha256 = file.get_tensor(f"exact.{i}.sha256").tobytes()
                answers.append(Answer(prompt, logits, tokens.tolist(), full, sha256))
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{REFERENCE} cannot be read: {error}", hint="export again") from error
    if problems := _reference_problems(answers, bundle):
        raise BundleError(
            f"{REFERENCE} is not a reference for this program",
            problems=problems,
            hint="export again",
        )
    return answers


def _reference_problems(answers: Sequence[Answer], bundle: Bundle) -> list[str]:
    """Everything that is wrong with the answers of a bundle; empty if nothing is."""
    vocab = bundle.manifest.interface.vocab_size
    problems = []
    for i, a in enumerate(answers):
        where = f"answer {i}"
        if a.logits.shape != (len(a.tokens), vocab) or not a.tokens or not a.prompt:
            problems.append(
                f"{where}: logits {list(a.logits.shape)}, expected [{len(a.tokens)}, {vocab}]"
            )
        elif not np.isfinite(a.logits).all():
            problems.append(f"{where}: the logits hold NaN or Inf")
        elif a.logits.argmax(-1).tolist() != a.tokens:
            problems.append(f"{where}: the greedy tokens do not follow from the logits")
    if all(a.fills_context for a in answers):
        problems.append("no prompt is followed by greedy tokens")
    if not any(a.fills_context for a in answers):
        problems.append("no prompt fills the context")
    return problems

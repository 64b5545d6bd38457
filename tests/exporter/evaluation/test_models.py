"""Models that give logits: packs of sequences in PyTorch and packages, against transformers and
against the same model fed one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.bundle import Bundle
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import UsageError
from exporter.evaluation import packing
from exporter.evaluation.language_model import (
    ModelFacts,
    PackageModel,
    Request,
    log_probabilities,
)
from exporter.evaluation.network import original
from exporter.evaluation.quantized import quantized
from exporter.reference.model import hidden_states
from tests.support.bundles import CONTEXT, SHIPPED, VOCAB, Parts, write_small_bundle
from tests.support.checkpoints import LLAMA3_ROPE, random_family, write_family
from tests.support.gguf_files import write_gguf
from tinyqmoe import open_runner

FACTS = ModelFacts("a model", CONTEXT, VOCAB, 1, "0")
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, own head, llama3 rope": (
        "llama",
        {"num_key_value_heads": 4, "tie_word_embeddings": False, "rope_scaling": LLAMA3_ROPE},
    ),
    "mistral, one layer": ("mistral", {"num_hidden_layers": 1, "sliding_window": None}),
    "qwen2, biases": ("qwen2", {"num_key_value_heads": 1}),
    "qwen3, norms of heads": ("qwen3", {}),
}


def requests(vocab: int, most: int) -> list[Request]:
    """Random sequences: choices of one question, one that repeats another's beginning, others."""
    rng = np.random.default_rng(1)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocab, n).tolist())

    question = tokens(9)
    choices = [Request(question + tokens(n), n) for n in (1, 3, 3, 2)]
    branch = choices[1].tokens[:10] + tokens(4)
    return [*choices, Request(branch, 4), Request(branch, 13), Request(tokens(most), most - 1)]


def given_alone(model: Any, request: Request) -> np.ndarray:
    """Logits before each scored token, by transformers, float64 [n, V]."""
    with torch.inference_mode():
        logits = model(torch.tensor([request.tokens])).logits[0]
    return logits[request.n_given - 1 : -1].double().numpy()


def rows_of(model: Any, asked: Sequence[Request]) -> list[np.ndarray]:
    """Logits of each request, float32 [n, V]."""
    rows = list(model.logits(asked))
    ends = np.cumsum([r.n_scored for r in asked])
    return [np.array(part) for part in np.split(np.array(rows), ends[:-1])]


@pytest.mark.parametrize("most", [1024, 30, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_likelihoods_are_those_of_transformers(
    shape: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In packs that hold all, some and one of the sequences."""
    family, options = SHAPES[shape]
    folder = write_family(tmp_path / "model", family, **options)
    monkeypatch.setattr(packing, "PACK_TOKENS", most)
    model = original(Checkpoint.open(folder), FACTS)
    asked = requests(100, 40)
    theirs = random_family(family, **options)
    for request, rows in zip(asked, rows_of(model, asked), strict=True):
        expected = torch.from_numpy(given_alone(theirs, request)).log_softmax(-1).numpy()
        got = np.array([log_probabilities(row) for row in rows])
        assert np.abs(got - expected).max() < 1e-4


def test_a_gguf_file_is_evaluated_too(tmp_path: Path) -> None:
    theirs = write_gguf(tmp_path / "model.gguf")
    model = original(Checkpoint.open(tmp_path / "model.gguf"), FACTS)
    (request,) = asked = [Request(tuple(range(40, 60)), 12)]
    (rows,) = rows_of(model, asked)
    assert np.abs(rows - given_alone(theirs, request)).max() < 1e-4


def test_a_pack_computes_a_shared_beginning_once() -> None:
    asked = requests(VOCAB, 20)[:4]
    (pack,) = packing.packs(asked)
    assert pack.tokens.shape[1] == 9 + 0 + 2 + 2 + 1
    assert pack.scored.tolist() == [8, 8, 9, 10, 8, 11, 12, 8, 13]
    assert pack.positions.tolist() == [*range(9), 9, 10, 9, 10, 9]
    assert pack.seen[12].nonzero()[:, 0].tolist() == [*range(9), 11, 12]


def test_the_quantized_model_is_that_of_the_reference_answers(bundle: Bundle, parts: Parts) -> None:
    model = quantized(bundle, FACTS)
    asked = requests(VOCAB, CONTEXT)
    for request, rows in zip(asked, rows_of(model, asked), strict=True):
        network = parts.reference(CONTEXT, SHIPPED)
        with torch.inference_mode():
            logits = network.logits(hidden_states(network, request.tokens))[0]
        expected = logits[request.n_given - 1 : -1].numpy()
        assert np.abs(rows - expected).max() < 1e-4


def test_a_bundle_with_a_head_and_groups_of_its_own(other_bundle: Bundle) -> None:
    """Against ExecuTorch, whose activations are float32 there too."""
    runner = open_runner(other_bundle, backend="executorch")
    asked = requests(100, CONTEXT)[-2:]
    model = quantized(other_bundle, FACTS)
    for request, rows in zip(asked, rows_of(model, asked), strict=True):
        for i, row in enumerate(rows, request.n_given):
            assert np.abs(row - runner.forward(request.tokens[:i], 0)).max() < 2e-3


def test_a_bundle_without_a_pte_has_no_model_to_read(tmp_path: Path) -> None:
    small = write_small_bundle(tmp_path / "b")
    small.manifest.artifacts[0].vectors.clear()
    with pytest.raises(UsageError, match="read from a pte"):
        quantized(small, FACTS)


class Counting:
    """A runner that notes what it is fed."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.fed = runner, 0

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        self.fed += len(tokens)
        row: np.ndarray = self.runner.forward(tokens, position)
        return row


@pytest.mark.parametrize("backend", ["native", "executorch"])
def test_a_package_answers_as_when_each_sequence_is_fed_anew(bundle: Bundle, backend: str) -> None:
    runner = Counting(open_runner(bundle, backend=backend))
    asked = requests(VOCAB, CONTEXT)
    answers = rows_of(PackageModel(runner, FACTS), asked)
    inputs = sum(len(r.tokens) - 1 for r in asked)
    assert runner.fed < inputs - 3 * 9, "the question is computed once for its choices"
    for request, rows in zip(asked, answers, strict=True):
        for i, row in enumerate(rows, request.n_given):
            assert np.array_equal(row, runner.runner.forward(request.tokens[:i], 0))

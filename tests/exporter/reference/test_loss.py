"""The loss by quantization: against dense models, its standard error, and the text."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, kl_div
from typer.testing import CliRunner

from exporter import pipeline
from exporter.bundle import EXACT, QuantizationLoss
from exporter.cli import app
from exporter.config import ExportConfig
from exporter.errors import UsageError
from exporter.models.layers import DenseLayers
from exporter.models.llama import Llama
from exporter.quant.config import QuantConfig
from exporter.reference import loss_text as loss_texts
from exporter.reference.loss import BLOCK_POSITIONS, quantization_loss, standard_error
from exporter.reference.loss_text import LOSS_POSITIONS, LossText, cut_windows, loss_text
from exporter.reference.prompts import read_tokenizer
from tests.support.bundles import TERNARY, Parts, dequantized_state, encode, no_progress
from tests.support.checkpoints import write_llama, write_tokenizer

WINDOW = 40  # tokens: a block of the standard error, and a shorter one


def windows(parts: Parts, count: int = 3) -> LossText:
    vocab_size = parts.checkpoint.config.vocab_size
    ids = [i * i * 7 % vocab_size for i in range(count * WINDOW)]
    return LossText("ids", [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)])


def loss(parts: Parts) -> QuantizationLoss:
    steps: list[int] = []
    text = windows(parts)
    arguments = (parts.checkpoint, parts.encoded, EXACT, text)
    found = quantization_loss(*arguments, steps.append)
    assert steps == [WINDOW] * len(text.windows)
    assert (found.text, found.positions) == ("ids", sum(steps))
    return found


# ---- the measure


@pytest.fixture(scope="module")
def representable(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A checkpoint whose weights int8 holds exactly: made of what int8 made of another one."""
    work = tmp_path_factory.mktemp("representable")
    source = write_llama(work / "source", num_hidden_layers=1)
    weights = dequantized_state(encode(source, work / "first", QuantConfig(scheme="int8")))
    file = source / "model.safetensors"
    names = load_file(file).keys()
    save_file({name: weights[name].contiguous() for name in names}, file, {"format": "pt"})
    return encode(source, work / "second", QuantConfig(scheme="int8"))


def test_nothing_is_lost_where_the_levels_hold_the_weights(representable: Parts) -> None:
    got = loss(representable)
    assert abs(got.kl_mean) < 1e-9
    assert got.kl_standard_error < 1e-9
    assert got.top1_agreement == 1.0
    assert got.perplexity_quantized == pytest.approx(got.perplexity_original, rel=1e-5)


def test_ternary_loses_more_than_int8(checkpoint: Path, parts: Parts, tmp_path: Path) -> None:
    int8 = encode(checkpoint, tmp_path / "int8", QuantConfig(scheme="int8"))
    assert 0 < 10 * loss(int8).kl_mean < loss(parts).kl_mean


@torch.inference_mode()
def test_the_loss_is_that_of_dense_models(checkpoint: Path, parts: Parts) -> None:
    config, text = parts.checkpoint.config, windows(parts)
    log_p, log_q = (
        torch.stack([dense.logits(dense.hidden(torch.tensor([w]), torch.tensor([0])))[0]
                     for w in text.windows]).double().log_softmax(-1)
        for dense in (
            Llama(config, WINDOW, DenseLayers(weights.__getitem__))
            for weights in (load_file(checkpoint / "model.safetensors"), dequantized_state(parts))
        )
    )  # fmt: skip
    got, kl = loss(parts), kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    assert got.kl_mean == pytest.approx(float(kl.mean()), rel=1e-4)
    means = [part.mean() for row in kl for part in row.split(BLOCK_POSITIONS)]
    error = float(torch.stack(means).std()) / len(means) ** 0.5
    assert got.kl_standard_error == pytest.approx(error, rel=1e-3)
    assert got.top1_agreement == float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean())
    following = torch.tensor([w[1:] for w in text.windows]).flatten()
    for logs, found in ((log_p, got.perplexity_original), (log_q, got.perplexity_quantized)):
        expected = cross_entropy(logs[:, :-1].flatten(0, 1), following).exp()
        assert found == pytest.approx(float(expected), rel=1e-5)


def test_the_standard_error_is_that_of_correlated_values() -> None:
    """Of values that come 32 times each: no smaller than their spread says."""
    torch.manual_seed(0)
    values = torch.randn(400, dtype=torch.float64)
    repeated = values.repeat_interleave(32)
    assert standard_error(repeated.split(32)) == pytest.approx(float(values.std()) / 20)
    assert standard_error([values]) == 0.0


# ---- the text


@pytest.fixture
def by_bytes(tmp_path: Path) -> Tokenizer:
    """A tokenizer of bytes, ids below 256, that begins a text with <s>, 256."""
    write_tokenizer(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize(
    ("n_ids", "n_tokens", "start", "expected"),
    [
        (5000, 512, [], (2, 512)),
        (5000, 512, [9], (2, 512)),
        (5000, 400, [], (3, 400)),
        (1000, 512, [], (2, 500)),
        (300, 512, [9], (1, 301)),
        (2, 8, [], (1, 2)),
        (1024, 8, [], (128, 8)),
    ],
)
def test_windows_come_to_the_positions_and_do_not_overlap(
    n_ids: int, n_tokens: int, start: list[int], expected: tuple[int, int]
) -> None:
    cut = cut_windows(range(1000, 1000 + n_ids), start, n_tokens)
    assert (len(cut), len(cut[0])) == expected
    bodies = [window[len(start) :] for window in cut]
    assert all(window[: len(start)] == start for window in cut)
    assert all(body == list(range(body[0], body[0] + len(body))) for body in bodies)
    assert all(a[-1] < b[0] for a, b in itertools.pairwise(bodies))
    if len(cut) > 1:
        assert (bodies[0][0], bodies[-1][-1]) == (1000, 999 + n_ids)


def test_the_built_in_text_has_enough_positions(by_bytes: Tokenizer) -> None:
    text = loss_text(None, by_bytes, 300, 4096)
    assert text.name == "the built-in text"
    assert [len(window) for window in text.windows] == [512, 512]
    assert {window[0] for window in text.windows} == {256}  # <s>
    words = len(loss_texts.read_text(loss_texts.BUILT_IN).split())
    assert words > LOSS_POSITIONS, "with a tokenizer that has every word too"


def test_documents_are_apart(by_bytes: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(f"{'a' * 150}\n\f\n{'b' * 150}\n")
    text = loss_text(tmp_path / "text", by_bytes, 300, 4096)
    a, b = (by_bytes.encode(letter).ids[1] for letter in "ab")
    assert text.windows == [[256, *[a] * 150, 256, *[b] * 150]]
    assert text.name == "text"


@pytest.mark.parametrize("vocab_size", [200, 256])
def test_ids_are_random_without_a_tokenizer_that_fits(by_bytes: Tokenizer, vocab_size: int) -> None:
    for tokenizer in (None, by_bytes):
        text = loss_text(None, tokenizer, vocab_size, 64)
        assert text.name == "random ids"
        assert max(map(max, text.windows)) < vocab_size
        assert sum(map(len, text.windows)) == LOSS_POSITIONS


def test_a_text_of_the_users_is_measured(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Their words, and nobody else's. " * 80)
    config = ExportConfig(TERNARY, calibration="none", context=16, loss_text=tmp_path / "mine.txt")
    bundle = pipeline.export(checkpoint, tmp_path / "out", config, no_progress)
    found = bundle.manifest.quantization_loss
    assert found.text == "mine.txt"
    assert found.positions >= LOSS_POSITIONS
    assert found.kl_words == (
        f"KL {found.kl_mean:.4f} ± {found.kl_standard_error:.4f} ({found.positions:,} positions)"
    )
    shown = CliRunner().invoke(app.app, ["inspect", str(tmp_path / "out")]).stdout
    assert found.kl_words in " ".join(shown.split())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"\xff" * 300, "not UTF-8"),
        (b"short", "5 characters, expected 200"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_before_any_work(
    content: bytes | None, problem: str, checkpoint: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "text", tmp_path / "new" / "out"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as caught:
        pipeline.export(
            checkpoint, out, ExportConfig(TERNARY, calibration="none", loss_text=file), no_progress
        )
    assert str(file) in str(caught.value)
    assert not out.parent.exists()
    arguments = ["export", str(checkpoint), str(out), "--loss-text", str(file)]
    assert CliRunner().invoke(app.app, arguments).exit_code == 2

"""Calibration against autograd of transformers' dense models, and the text that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError, UsageError
from exporter.quant import calibration_passes
from exporter.quant.calibration import (
    Calibration,
    CalibrationText,
    Uncalibrated,
    conversations,
    input_of,
)
from exporter.quant.calibration_passes import FLOOR, VOCABULARY_FLOOR, Passes, mixed
from exporter.quant.head_statistics import HeadStatistics, drawn
from exporter.quant.rate import damping, inverse_factor
from tests.support.bundles import TEXT, no_progress
from tests.support.checkpoints import write_family, write_llama, write_tokenizer

WINDOWS, BACKWARD, TOKENS = 5, [0, 2, 4], 20
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": False, "num_hidden_layers": 3, "attention_bias": True}),
    ("qwen3", {"num_key_value_heads": 4, "intermediate_size": 33}),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}-{len(shape[1])}")
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    family, options = request.param
    return write_family(tmp_path / "model", family, **options)


@pytest.fixture(autouse=True)
def _some_go_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_passes, "BACKWARD_WINDOWS", len(BACKWARD))
    monkeypatch.setattr(calibration_passes, "GRAM_ROWS", 7)  # so that Gram matrices take several


def windows() -> torch.Tensor:
    return torch.randint(100, (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(1))


def calibrate(model: Path, folder: Path) -> Calibration:
    folder.mkdir()
    calibration = Calibration(folder)
    Passes(Checkpoint.open(model), windows(), calibration, no_progress).run()
    return calibration


class Dense:
    """Sums by hooks and autograd of the whole model: inputs x x^T over all tokens, squared
    gradients of outputs over those that go backward; labels are drawn as the tool draws them."""

    def __init__(self, model: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.grams: dict[str, torch.Tensor] = {}
        self.squares: dict[str, torch.Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(self.hook(f"{name}.weight"))
        self.p_rest = self.p = torch.zeros(100)
        self.power = torch.zeros(())
        for i, window in enumerate(windows()):
            if i in BACKWARD:
                self.run(BACKWARD.index(i), window)
            else:
                self.model(window[None], use_cache=False)
        self.n, self.n_backward = WINDOWS * TOKENS, len(BACKWARD) * TOKENS

    def hook(self, name: str) -> Any:
        def note(module: Any, args: Any, output: torch.Tensor) -> None:
            x = args[0].detach().flatten(0, -2)
            self.grams[name] = self.grams.get(name, 0) + x.T @ x
            bias = 0 if module.bias is None else module.bias
            assert (output - bias).shape == output.shape

            def square(gradient: torch.Tensor) -> None:
                total = gradient.flatten(0, -2).square().sum(0)
                self.squares[name] = self.squares.get(name, 0) + total

            output.register_hook(square)

        return note

    def run(self, seed: int, window: torch.Tensor) -> None:
        embedded = self.model.get_input_embeddings()(window[None]).detach().requires_grad_()
        logits = self.model(inputs_embeds=embedded, use_cache=False).logits[0]
        p = logits.detach().softmax(-1)
        labels = drawn(p, torch.Generator().manual_seed(seed))
        torch.nn.functional.cross_entropy(logits, labels[:, 0], reduction="sum").backward()
        self.p_rest, self.p = self.p_rest + (p * (1 - p)).sum(0), self.p + p.sum(0)
        self.power = self.power + embedded.grad.square().sum((0, 1))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=1e-4 * float(expected.abs().max()))


def test_statistics_are_those_of_a_dense_model(model: Path, tmp_path: Path) -> None:
    calibration, dense = calibrate(model, tmp_path / "calibration"), Dense(model)
    matrices = [name for name in dense.squares if name != HEAD]
    assert len(matrices) == 7 * Checkpoint.open(model).config.num_hidden_layers
    for name in matrices:
        curvature = calibration.curvature(name)
        close(curvature.inputs.upper, inverse_factor(dense.grams[name] / dense.n))
        close(curvature.sensitivity, mixed(dense.squares[name] / dense.n_backward, FLOOR))
    head = calibration.curvature(
        EMBEDDING if Checkpoint.open(model).config.tie_word_embeddings else HEAD
    )
    close(head.inputs.upper, inverse_factor(dense.grams[HEAD] / dense.n))


def test_the_embedding_counts_as_input_and_as_output(model: Path, tmp_path: Path) -> None:
    calibration, dense = calibrate(model, tmp_path / "calibration"), Dense(model)
    n = dense.n_backward
    outputs = mixed(dense.p_rest / n, VOCABULARY_FLOOR)
    inputs, power = mixed(dense.p / n, VOCABULARY_FLOOR), dense.power / n
    embedding = calibration.curvature(EMBEDDING)
    if Checkpoint.open(model).config.tie_word_embeddings:
        expected = outputs + inputs * power.mean() / embedding.inputs.errors.mean()
        close(embedding.sensitivity, expected)
    else:
        close(embedding.sensitivity, inputs)
        close(embedding.inputs.errors, power + damping(power.diag()))
        close(calibration.curvature(HEAD).sensitivity, outputs)


def test_drawn_labels_average_to_the_squares_of_the_head() -> None:
    """The mean squared gradient of a logit is p (1 - p)."""
    statistics = HeadStatistics(5)
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5]).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(0)
    gradient = statistics.gradient(logits.clone(), torch.eye(5), generator)
    p = logits[0].softmax(-1)
    torch.testing.assert_close(gradient.square().mean(0), p * (1 - p), rtol=0.05, atol=0)
    torch.testing.assert_close((statistics.squares / 20_000).float(), p * (1 - p))
    torch.testing.assert_close((statistics.shares / 20_000).float(), p)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("step", range(9))
def test_passes_that_were_cut_off_go_on(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the middle of each file of states.

    The embedding and two layers write two, of which both are written again; the head and two layers
    write one.
    """
    model = write_llama(tmp_path / "model")
    expected = contents(calibrate(model, tmp_path / "whole").folder)
    assert not [name for name in expected if name.startswith(("inputs", "others", "gradients"))]
    real, calls = calibration_passes.States.write, 0

    def write(self: Any, values: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            next(iter(values))
            raise KeyboardInterrupt
        real(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(calibration_passes.States, "write", write)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, tmp_path / "cut")
    monkeypatch.setattr(calibration_passes.States, "write", real)
    seen = 0

    def count(self: Any, values: Any) -> None:
        nonlocal seen
        seen += 1
        real(self, values)

    monkeypatch.setattr(calibration_passes.States, "write", count)
    passes = Passes(Checkpoint.open(model), windows(), Calibration(tmp_path / "cut"), no_progress)
    passes.run()
    assert seen == 9 - (step if step > 6 else step // 2 * 2)
    assert contents(tmp_path / "cut") == expected


@pytest.mark.parametrize("at", [60, -30, -2])
def test_a_damaged_tensor_is_told(tmp_path: Path, at: int) -> None:
    calibration = Calibration(tmp_path)
    calibration.write("x", torch.arange(40.0))
    torch.testing.assert_close(calibration.read("x"), torch.arange(40.0))
    damage(tmp_path / "x", at)
    with pytest.raises(CheckpointError, match="x is missing or damaged") as caught:
        calibration.read("x")
    assert caught.value.hint.startswith(f"remove {tmp_path} and export again without --resume")


@pytest.mark.parametrize("cut", [0, 1, 4])
@pytest.mark.parametrize("damaged", ["inputs", "gradients"])
def test_damaged_states_are_told(tmp_path: Path, damaged: str, cut: int) -> None:
    """Before anything that follows from them gets its name."""
    model, folder = write_llama(tmp_path / "model"), tmp_path / "calibration"
    folder.mkdir()
    passes = Passes(Checkpoint.open(model), windows(), Calibration(folder), no_progress)
    n = len(passes.network.blocks)
    for layer in range(-1, n):
        passes._forward(layer)
    passes._backward(n)
    file = folder / (f"inputs.{n - 1}" if damaged == "inputs" else f"gradients.{n}")
    if cut:
        file.write_bytes(file.read_bytes()[:-cut])
    else:
        damage(file, -100)
    before = contents(folder)
    with pytest.raises(CheckpointError, match=f"{file.name} is missing or damaged"):
        passes.run()
    assert {name: data for name, data in contents(folder).items() if name in before} == before
    assert not (folder / f"gradients.{n - 1}").exists()


def test_damaged_states_of_windows_that_go_forward_only_are_told(tmp_path: Path) -> None:
    model, folder = write_llama(tmp_path / "model"), tmp_path / "calibration"
    folder.mkdir()
    passes = Passes(Checkpoint.open(model), windows(), Calibration(folder), no_progress)
    passes._forward(-1)
    damage(folder / "others.0", -100)
    with pytest.raises(CheckpointError, match=r"others\.0 is missing or damaged"):
        passes.run()
    assert not (folder / "others.1").exists()
    assert not list(folder.glob("*.factor"))


def damage(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_model_that_overflows_is_refused(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", dtype=torch.float32)
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= 1e30
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e30
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="values that are not finite"):
        calibrate(model, tmp_path / "calibration")


def test_without_a_text_steps_follow_the_size_of_rows(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_llama(tmp_path / "model"))
    curvature = Uncalibrated(checkpoint).curvature(EMBEDDING)
    rows, cols = checkpoint.shape(EMBEDDING)
    torch.testing.assert_close(curvature.inputs.upper, torch.eye(cols))
    w = checkpoint.rows(EMBEDDING, 0, rows)
    torch.testing.assert_close(curvature.unit_steps, w.square().mean(1).sqrt())


def test_matrices_with_one_input_share_a_factor() -> None:
    layer = "model.layers.3."
    shared = {"q_proj": ("self_attn", ["k_proj", "v_proj"]), "gate_proj": ("mlp", ["up_proj"])}
    for first, (part, others) in shared.items():
        for other in [first, *others]:
            assert input_of(f"{layer}{part}.{other}.weight") == f"{layer}{part}.{first}.weight"
    for own in (f"{layer}self_attn.o_proj.weight", f"{layer}mlp.down_proj.weight", EMBEDDING, HEAD):
        assert input_of(own) == own


# ---- the text


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """A model with a byte-level tokenizer that puts <s>, 256, in front."""
    return write_llama(
        tmp_path / "spoken", tokenizer=True, vocab_size=258, max_position_embeddings=40
    )


def test_windows_are_spread_over_the_text(spoken: Path) -> None:
    text = CalibrationText("x", TEXT)
    found = text.windows(Checkpoint.open(spoken))
    ids = np.frombuffer(TEXT.encode(), np.uint8)
    assert found.shape == (len(ids) // 39, 40)
    assert (found[:, 0] == 256).all()
    assert found[0, 1:].tolist() == [int(i) for i in tokens(TEXT[:39], spoken)]
    assert found[-1, 1:].tolist() == [int(i) for i in tokens(TEXT[-39:], spoken)]


def tokens(text: str, folder: Path) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_the_text_that_ships_is_read_where_none_is_given() -> None:
    text = CalibrationText.read(None)
    assert text is not None
    assert text.name == "calibration.txt"
    assert len(text.content) > 10_000
    assert CalibrationText.read("none") is None


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_a_text_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{path} cannot be read") as caught:
        CalibrationText.read(str(path))
    assert "--calibration none" in caught.value.hint


def test_a_text_that_is_too_short_is_refused(spoken: Path) -> None:
    with pytest.raises(UsageError, match="has 3 tokens, expected 39 or more"):
        CalibrationText("x", "abc").windows(Checkpoint.open(spoken))


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_llama(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="needs a tokenizer, and there is none") as caught:
        CalibrationText("x", TEXT).windows(checkpoint)
    assert "--calibration none" in caught.value.hint


def test_a_tokenizer_that_does_not_fit_is_refused(spoken: Path, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "small", vocab_size=60)
    write_tokenizer(model)
    with pytest.raises(CheckpointError, match="the model has 60: it cannot be calibrated"):
        CalibrationText("x", TEXT).windows(Checkpoint.open(model))


# ---- the text as conversations

TURNS = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_a_chat_model_reads_the_text_as_conversations(spoken: Path) -> None:
    """Two paragraphs each; special tokens of the template become what they are."""
    (spoken / "chat_template.jinja").write_text(TURNS)
    said = "Who is Mia?\n\nA girl.\n\nHas she a kite?\n\nA red one.\n\nno answer"
    expected = "[user] Who is Mia?</s>[assistant] A girl.</s>"
    expected += "[user] Has she a kite?</s>[assistant] A red one.</s>"
    assert conversations(said, spoken) == expected
    found = CalibrationText("x", said, as_chat=True).windows(Checkpoint.open(spoken))
    assert found[0, 1:].tolist() == tokens(expected, spoken)[:39]
    assert (found[:, 1:] == 257).any()
    plain = CalibrationText("x", said).windows(Checkpoint.open(spoken))
    assert plain[0, 1:].tolist() == tokens(said, spoken)[:39]


def test_only_the_text_that_ships_is_made_into_conversations(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    shipped, own = CalibrationText.read(None), CalibrationText.read(str(tmp_path / "own.txt"))
    assert shipped is not None
    assert own is not None
    assert (shipped.as_chat, own.as_chat) == (True, False)


def test_without_a_template_the_text_stays(spoken: Path) -> None:
    assert conversations("a\n\nb", spoken) == "a\n\nb"


def test_a_template_that_wants_more_is_told(spoken: Path) -> None:
    (spoken / "chat_template.jinja").write_text("{{ raise_exception('a system message first') }}")
    with pytest.raises(CheckpointError, match="a system message first") as caught:
        conversations("a\n\nb", spoken)
    assert "--calibration" in caught.value.hint


def test_a_template_with_a_date_gives_the_same_text_every_day(spoken: Path) -> None:
    (spoken / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + TURNS)
    assert conversations("a\n\nb", spoken) == "1 January 2026[user] a</s>[assistant] b</s>"

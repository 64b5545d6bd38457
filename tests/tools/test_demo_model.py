"""The demo model: its text, its tokenizer, its training script and the checkpoint that ships."""

from __future__ import annotations

import copy
import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from demo_model import text as demo_text
from demo_model import train as demo_train
from demo_model.plots import PLOTS, Plot
from demo_model.world import PEOPLE, Thing, all_facts
from exporter.demo import CHAT, HELD_OUT, PROMPTS, model_path
from exporter.quant import ternary as quant_ternary

TINY = demo_train.TrainConfig(
    steps=6,
    threads=1,
    batch_tokens=64,
    lesson_tokens=16,
    row_tokens=32,
    context=64,
    vocab_size=300,
    tokenizer_documents=50,
    hidden_size=32,
    intermediate_size=48,
    layers=1,
    held_out_batches=1,
)


@pytest.fixture(scope="module")
def shipped() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_path() / "tokenizer.json"))


@pytest.fixture(scope="module")
def perplexities(shipped: Any, tokenizer: Tokenizer) -> dict[str, float]:
    return demo_train.perplexities(shipped, tokenizer, count=2)


# ---------------------------------------------------------------- text


def test_text_is_the_same_for_the_same_seed_and_varied() -> None:
    first, again, other = (list(islice(demo_text.documents(seed), 400)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert len(set(first)) > 380
    assert len({document[:20] for document in first}) > 200


def test_text_is_clean() -> None:
    for document in islice(demo_text.documents(7), 2000):
        assert not re.search(r"[{}\[\]]|  | [.,!?]|\bNone\b", document), document
        assert document[-1] in '.!?">'


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.about)
def test_story_stays_on_its_characters(plot: Plot) -> None:
    names = {person.name for person in PEOPLE}
    rng = random.Random(1)
    for _ in range(30):
        story, questions, request = demo_text.story(rng, plot)
        assert 1 <= len(names & set(re.findall(r"\w+", story))) <= 2
        assert story.count(".") + story.count("!") >= 6
        assert len(questions) >= 3
        assert request.endswith(".")


def test_capital_slots_and_attributes() -> None:
    kite = Thing("orange", "kite", "fly it")
    assert (kite.a, kite.A, kite.The) == ("an orange kite", "An orange kite", "The orange kite")
    slots = demo_text._Slots(noise="drip, drip", t=kite)
    assert (
        demo_text.expand(random.Random(0), "{Noise}! [[{t.a}]]. it fell.", slots)
        == "Drip, drip! An orange kite. It fell."
    )
    with pytest.raises(KeyError):
        demo_text.expand(random.Random(0), "{unknown}", slots)
    with pytest.raises(AttributeError):
        _ = kite.unknown


def test_the_texts_that_ship_are_the_first_held_out_ones() -> None:
    documents = HELD_OUT.read_text(encoding="utf-8").removesuffix("\n").split("\n\f\n")
    assert documents == list(islice(demo_text.held_out_texts(), len(documents)))


def test_held_out_text_is_not_in_the_training_text() -> None:
    trained_on = set(islice(demo_text.documents(0), 5000))
    assert not trained_on & set(islice(demo_train.held_out_texts(), 200))


# ---------------------------------------------------------------- views


def test_ternary_rule() -> None:
    weight = torch.tensor(
        [[1.0, -2.0, 0.1, 0.0], [3.0, 3.0, -3.0, 3.0]]
    )  # thresholds 0.5425 and 2.1
    expected = torch.tensor([[1.5, -1.5, 0.0, 0.0], [3.0, 3.0, -3.0, 3.0]])
    assert torch.equal(demo_train.ternary(weight), expected)
    assert ((demo_train.ternary_half(torch.randn(8, 32)) == 0).sum(dim=1) == 16).all()
    assert torch.equal(demo_train.ternary(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_ternary_is_the_rule_of_the_product() -> None:
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(0))
    for sparsity, view in ((None, demo_train.ternary), (0.5, demo_train.ternary_half)):
        levels, scales = quant_ternary.quantize_rows(
            weight, quant_ternary.Config(sparsity=sparsity)
        )
        torch.testing.assert_close(view(weight), levels.float() * scales, rtol=2.0**-11, atol=0)


def test_gradient_passes_straight_through() -> None:
    weight = torch.randn(3, 8, requires_grad=True)
    (demo_train.straight_through(demo_train.ternary, weight) * 2).sum().backward()
    assert torch.equal(weight.grad, torch.full((3, 8), 2.0))


# ---------------------------------------------------------------- the shipped checkpoint


def test_tokenizer_round_trips(tokenizer: Tokenizer) -> None:
    odd = ["Grüße, 東京 🚀\n\ttab", "  two  spaces  ", "<|user|>Hello!<|end|>"]
    for document in [*odd, *islice(demo_text.documents(8), 100)]:
        ids = tokenizer.encode(document, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == document
    assert tokenizer.encode("Mia").ids[0] == demo_train.BOS_ID
    assert [tokenizer.token_to_id(token) for token in demo_train.SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_size_and_shape(shipped: Any) -> None:
    assert 0.9e6 < sum(weight.numel() for weight in shipped.parameters()) < 1.2e6
    assert sum(path.stat().st_size for path in model_path().iterdir()) < 2.6e6
    assert shipped.config.rope_parameters["rope_type"] == "llama3"
    assert shipped.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("view", "bound"),
    [("float", 1.45), ("int8", 1.45), ("ternary", 1.5), ("ternary, half zero", 1.55)],
)
def test_held_out_perplexity(perplexities: dict[str, float], view: str, bound: float) -> None:
    assert perplexities[view] < bound


@pytest.mark.parametrize("view", ["float", "int8", "ternary"])
def test_greedy_story_is_sentences_about_its_character(
    shipped: Any, tokenizer: Tokenizer, view: str
) -> None:
    story = _generate(shipped, tokenizer, tokenizer.encode(PROMPTS[0]).ids, view)
    assert "Mia" in story
    assert "kite" in story
    assert len(re.findall(r'[A-Z"][^.!?]+[.!?]', story)) >= 4


@pytest.mark.parametrize("view", ["float", "int8", "ternary"])
def test_chat_answers_a_fact(shipped: Any, tokenizer: Tokenizer, view: str) -> None:
    from transformers import AutoTokenizer

    chat = AutoTokenizer.from_pretrained(model_path()).apply_chat_template(
        [{"role": "user", "content": CHAT}], add_generation_prompt=True, return_dict=True
    )
    assert chat["input_ids"] == tokenizer.encode(f"<|user|>{CHAT}<|end|><|assistant|>").ids
    assert (
        _generate(shipped, tokenizer, chat["input_ids"], view)
        == dict(all_facts())[_wordings_of(CHAT)]
    )


def _wordings_of(question: str) -> str:
    return next(wordings for wordings, _ in all_facts() if question in wordings.split("|"))


def _generate(shipped: Any, tokenizer: Tokenizer, ids: list[int], view: str) -> str:
    """Greedy continuation through one view of the weights."""
    model = copy.deepcopy(shipped)
    with torch.no_grad():
        for name, weight in demo_train.viewed_weights(shipped, *demo_train.EVALUATED[view]).items():
            model.get_parameter(name).copy_(weight)
    prompt = torch.tensor([ids])
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=120, pad_token_id=1
    )[0]
    return tokenizer.decode(tokens[len(ids) :].tolist())


# ---------------------------------------------------------------- the training script


def test_training_gives_the_same_loss_twice(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        first, again = (demo_train.train(tmp_path / name, TINY) for name in ("first", "again"))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert first["final_loss"] == again["final_loss"]
    assert first["held_out_perplexity"] == again["held_out_perplexity"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert weights[0] == weights[1]

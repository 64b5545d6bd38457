"""What ships of a tokenizer gives, in the plain tokenizers library, the ids of transformers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from exporter import chat
from exporter.checkpoint import tokenizer as module
from exporter.demo import model_path
from tests.support.bundles import TEXT
from tests.support.kinds import CHATML, edit_json
from tests.support.paths import DATA

LLAMA = {"model_type": "llama"}
TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(
        ["Hello", " world", "<s>", "</s>", "\n", "  ", "123", "ü", "日本", "🦙", "[PAD]"]
    ),
    max_size=12,
).map("".join)


def trained(directory: Path, *, metaspace: bool = False) -> Tokenizer:
    """A small BPE tokenizer, byte-level as GPT-2's or with ▁ for spaces as SentencePiece's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=metaspace, unk_token="<unk>"))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = [f"<0x{i:02X}>" for i in range(256)]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", *(alphabet if metaspace else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=[] if metaspace else alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def save(directory: Path, tokenizer: Tokenizer, **config: Any) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    edit_json(directory / "tokenizer_config.json", **values | {"chat_template": CHATML} | config)


def with_bos(directory: Path) -> None:
    tokenizer = trained(directory)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    save(directory, tokenizer)


def with_bos_and_eos(directory: Path) -> None:
    tokenizer = trained(directory)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    save(directory, tokenizer)


def with_leftovers(directory: Path) -> None:
    """Truncation and padding of a training."""
    tokenizer = trained(directory, metaspace=True)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8, pad_id=2, pad_token="</s>")
    save(directory, tokenizer)


def vocabulary_and_merges(directory: Path) -> None:
    tokenizer = trained(directory)
    tokenizer.model.save(str(directory))
    edit_json(
        directory / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHATML,
    )


def sentencepiece(directory: Path) -> None:
    import io

    import sentencepiece as spm

    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    edit_json(
        directory / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        chat_template=CHATML,
    )


BUILT: dict[str, tuple[Callable[[Path], None], bool]] = {  # and whether it puts BOS in front
    "BOS": (with_bos, True),
    "BOS and EOS": (with_bos_and_eos, True),
    "none of its own": (lambda d: save(d, trained(d)), False),
    "a word of its config": (lambda d: save(d, trained(d), add_bos_token=True), False),
    "truncation and padding": (with_leftovers, False),
    "vocab.json and merges.txt": (vocabulary_and_merges, False),
    "SentencePiece": (sentencepiece, True),
}
AT_HAND = {"hf-stories260K": True, "llama3_tokenizer": True}


@dataclass(frozen=True)
class Shipped:
    facts: module.TokenizerFacts
    theirs: Any
    ours: Tokenizer
    path: Path


@pytest.fixture(scope="module", params=[*BUILT, "demo", *AT_HAND])
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A tokenizer as transformers reads it, and what ships of it."""
    source = tmp_path_factory.mktemp("tokenizer")
    if request.param in BUILT:
        BUILT[request.param][0](source)
    else:
        source = model_path() if request.param == "demo" else DATA / request.param
        if not source.is_dir():
            pytest.skip(f"EXTRA CHECK NOT RUN: no {source}")
    from transformers import AutoConfig, AutoTokenizer

    kind = AutoConfig.for_model("llama")
    theirs: Any = AutoTokenizer.from_pretrained(source, config=kind)
    facts = module.read_tokenizer(source, LLAMA, 200_000, [])
    assert facts is not None
    out = tmp_path_factory.mktemp("shipped")
    module.write_tokenizer(source, LLAMA, facts, out)
    ours = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert (out / "tokenizer.json").stat().st_size == facts.json_bytes
    return Shipped(facts, theirs, ours, out)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_plain_ids_are_those_of_transformers(shipped: Shipped, text: str) -> None:
    assert shipped.ours.encode(text).ids == shipped.theirs(text).input_ids


@functools.cache
def opened(path: Path) -> Any:
    """What ships, as transformers opens it: seconds for a large vocabulary."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(path)


@settings(max_examples=40, deadline=None)
@given(text=TEXTS.filter(str.strip))
def test_chat_ids_are_those_of_transformers(shipped: Shipped, text: str) -> None:
    if not shipped.theirs.chat_template:
        return
    tokenizer = opened(shipped.path)
    messages = [{"role": "user", "content": text}]
    rendered = chat.render(
        lambda m: str(tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True)),
        messages,
    )
    expected = shipped.theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert shipped.ours.encode(rendered, add_special_tokens=False).ids == expected


def test_the_bos_rule_is_that_of_the_ids(shipped: Shipped) -> None:
    bos, ids = shipped.facts.bos_token_id, shipped.ours.encode("a kite").ids
    bare = shipped.ours.encode("a kite", add_special_tokens=False).ids
    assert (bos is None) == (ids[: len(bare)] == bare)
    assert bos is None or [bos, *bare] == ids[: len(bare) + 1]


def test_neither_truncation_nor_padding_ships(shipped: Shipped) -> None:
    assert shipped.ours.truncation is None
    assert shipped.ours.padding is None


@pytest.mark.parametrize("name", BUILT)
def test_the_tokenizers_are_what_they_are_named(name: str, tmp_path: Path) -> None:
    make, puts_bos = BUILT[name]
    make(tmp_path)
    facts = module.read_tokenizer(tmp_path, LLAMA, 200_000, [])
    assert facts is not None
    assert (facts.bos_token_id is not None) == puts_bos


def test_a_file_that_is_right_ships_byte_for_byte(tmp_path: Path) -> None:
    with_bos(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))  # laid out as nobody else does
    facts = module.read_tokenizer(tmp_path, LLAMA, 200_000, [])
    (tmp_path / "out").mkdir()
    module.write_tokenizer(tmp_path, LLAMA, facts, tmp_path / "out")
    written = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert written == (tmp_path / "tokenizer.json").read_bytes()

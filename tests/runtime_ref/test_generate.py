"""Text in, text out: sampling, the token loop, streaming, prompts and chat."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle
from exporter.errors import BundleError, ContextError, UsageError
from runtime_ref.generate import (
    Limits,
    RunResult,
    Sampling,
    TextStream,
    generate,
)
from runtime_ref.prompts import PromptEncoder, load_tokenizer
from tests.support.bundles import small_manifest
from tests.support.checkpoints import write_tokenizer

VOCAB, BOS, EOS = 258, 256, 257


@dataclass
class ScriptedRunner:
    """Wants the tokens of `script` one after the other; notes what it was fed."""

    script: Sequence[int]
    context: int = 64
    name: str = "scripted"
    fed: list[tuple[list[int], int]] = field(default_factory=list)

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        assert position + len(tokens) <= self.context, "the loop ran past the context"
        logits = np.zeros(VOCAB, np.float32)
        logits[self.script[len(self.fed) % len(self.script)]] = 1.0
        self.fed.append((list(tokens), position))
        return logits


@pytest.fixture
def bytes_bundle(tmp_path: Path) -> Bundle:
    """A bundle whose tokens are bytes: characters of several bytes come in pieces."""
    write_tokenizer(tmp_path)
    return Bundle(tmp_path, small_manifest())


def byte_ids(bundle: Bundle, text: str) -> list[int]:
    return load_tokenizer(bundle).encode(text, add_special_tokens=False).ids


def show_nothing(text: str) -> None:
    pass


def run(
    bundle: Bundle,
    runner: Any,
    prompt: list[int],
    limit: int,
    sampling: Sampling,
    show: Callable[[str], None],
) -> RunResult:
    """A whole generation, whose pieces `show` gets."""
    stream = TextStream(bundle, runner, prompt, Limits(limit), sampling)
    for piece in stream:
        show(piece)
    return stream.result


def encode_prompt(bundle: Bundle, prompt: str, *, chat: bool) -> list[int]:
    encoder = PromptEncoder(bundle)
    return encoder.chat([{"role": "user", "content": prompt}]) if chat else encoder.text(prompt)


# ---- sampling

LOGITS = np.array([2.0, 1.0, 0.0, -1.0, 1.5], np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64))
    return p / p.sum()


def shares(sampling: Sampling, draws: int = 20_000) -> np.ndarray:
    """How often each token of LOGITS is drawn."""
    choose = sampling.chooser()
    return np.bincount([choose(LOGITS) for _ in range(draws)], minlength=LOGITS.size) / draws


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    choose = Sampling().chooser()
    assert choose(LOGITS) == 0
    assert choose(np.array([1.0, 3.0, 3.0], np.float32)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_tempered_distribution(temperature: float) -> None:
    # The share of n draws has a standard deviation of at most 0.5 / sqrt(n); five of them.
    assert shares(Sampling(temperature, seed=1)) == pytest.approx(
        softmax(LOGITS / temperature), abs=2.5 / 20_000**0.5
    )


def test_top_p_keeps_the_fewest_tokens_of_that_probability() -> None:
    p = softmax(LOGITS)  # in order: tokens 0, 4, 1, 2, 3
    for kept in ([0], [0, 4], [0, 4, 1], [0, 4, 1, 2]):
        got = shares(Sampling(1.0, top_p=float(p[kept].sum()) - 1e-6, seed=2))
        assert sorted(np.flatnonzero(got)) == sorted(kept)
        assert got[kept] == pytest.approx(p[kept] / p[kept].sum(), abs=2.5 / 20_000**0.5)


def test_a_tiny_top_p_or_temperature_is_greedy() -> None:
    assert shares(Sampling(1.0, top_p=1e-9), 50)[0] == 1
    assert shares(Sampling(1e-6), 50)[0] == 1


def test_large_logits_do_not_overflow() -> None:
    choose = Sampling(0.01, seed=3).chooser()
    assert {choose(LOGITS * np.float32(1e6)) for _ in range(20)} == {0}


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def draw(seed: int) -> list[int]:
        choose = Sampling(2.0, seed=seed).chooser()
        return [choose(LOGITS) for _ in range(40)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_wrong_options_are_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(temperature=-1.0, top_p=0.0, seed=-1)
    assert [p.split()[0] for p in caught.value.problems] == ["temperature", "top-p", "seed"]


@pytest.mark.parametrize(
    "options", [{"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 1.1}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**options)


# ---- the loop


def test_the_prompt_is_fed_once_and_then_each_token() -> None:
    runner = ScriptedRunner([10, 11, 12])
    assert list(generate(runner, [5, 6, 7], 3, Sampling(), [EOS])) == [10, 11, 12]
    assert runner.fed == [
        ([5, 6, 7], 0),
        ([10], 3),
        ([11], 4),
    ]  # the last one is not fed: nothing follows


def test_any_eos_id_ends_the_text_and_is_not_part_of_it() -> None:
    for eos in (EOS, 99):
        assert list(generate(ScriptedRunner([10, eos, 11]), [5], 9, Sampling(), [EOS, 99])) == [10]


@pytest.mark.parametrize(
    ("script", "limit", "context", "tokens", "stopped"),
    [
        ([65, 66, EOS], 9, 64, 2, "eos"),
        ([EOS], 9, 64, 0, "eos"),
        ([65], 3, 64, 3, "limit"),
        ([65, 66, 67, EOS], 3, 64, 3, "limit"),
        (
            [65],
            9,
            6,
            4,
            "context",
        ),  # three slots are free after the prompt, and the last token needs none
        ([65], 4, 6, 4, "limit"),
        ([65, EOS], 9, 6, 1, "eos"),
        ([65], 9, 3, 1, "context"),  # the prompt fills the context
    ],
)
def test_why_it_stopped(
    bytes_bundle: Bundle, script: list[int], limit: int, context: int, tokens: int, stopped: str
) -> None:
    result = run(
        bytes_bundle, ScriptedRunner(script, context), [70, 71, 72], limit, Sampling(), show_nothing
    )
    assert (len(result.tokens), result.stopped) == (tokens, stopped)
    assert result.prompt_tokens == [70, 71, 72]


def test_a_prompt_longer_than_the_context_is_refused_before_it_runs(bytes_bundle: Bundle) -> None:
    runner = ScriptedRunner([65], context=4)
    with pytest.raises(
        ContextError, match="5 tokens, the package was exported with a context of 4"
    ) as caught:
        run(bytes_bundle, runner, [70] * 5, 3, Sampling(), show_nothing)
    assert "--context" in caught.value.hint
    assert runner.fed == []


# ---- streaming

TEXTS = [
    "plain",
    "naïve café",
    "日本語のテキスト",
    "a🙂b👩‍👩‍👧 c",
    " leading and trailing ",
    "line\nbreak\ttab",
    "🇩🇪",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(bytes_bundle: Bundle, text: str) -> None:
    ids = byte_ids(bytes_bundle, text)
    assert len(ids) == len(text.encode())
    pieces: list[str] = []
    result = run(
        bytes_bundle, ScriptedRunner([*ids, EOS], 200), [BOS, 72], 200, Sampling(), pieces.append
    )
    assert "".join(pieces) == result.text == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) == len(text)  # as soon as a character is complete


def test_a_character_that_is_cut_off_is_not_shown(bytes_bundle: Bundle) -> None:
    ids = byte_ids(bytes_bundle, "ab🙂")
    pieces: list[str] = []
    result = run(bytes_bundle, ScriptedRunner(ids), [BOS], len(ids) - 1, Sampling(), pieces.append)
    assert "".join(pieces) == result.text == "ab"
    assert len(result.tokens) == len(ids) - 1


def test_bytes_that_are_no_text_do_not_stop_the_stream(bytes_bundle: Bundle) -> None:
    tokenizer = load_tokenizer(bytes_bundle)
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = [*rng.integers(0, 256, 24).tolist(), *byte_ids(bytes_bundle, " end"), EOS]
        result = run(
            bytes_bundle, ScriptedRunner(ids, 200), [BOS, 72], 200, Sampling(), show_nothing
        )
        assert result.tokens == ids[:-1]
        assert result.text == tokenizer.decode(ids)


def test_special_tokens_are_not_shown(bytes_bundle: Bundle) -> None:
    runner = ScriptedRunner([*byte_ids(bytes_bundle, "a"), BOS, EOS])
    result = run(bytes_bundle, runner, [BOS], 9, Sampling(), show_nothing)
    assert result.text == "a"
    assert len(result.tokens) == 2


def test_the_space_before_the_first_word_is_kept(bytes_bundle: Bundle) -> None:
    ids = byte_ids(bytes_bundle, " upon")
    result = run(
        bytes_bundle,
        ScriptedRunner([*ids, EOS]),
        byte_ids(bytes_bundle, "Once"),
        9,
        Sampling(),
        show_nothing,
    )
    assert result.text == " upon"


# ---- prompts and chat


def test_a_prompt_begins_with_the_bos_of_the_tokenizer(bytes_bundle: Bundle) -> None:
    ids = byte_ids(bytes_bundle, "hi")
    assert encode_prompt(bytes_bundle, "hi", chat=False) == [BOS, *ids]
    # As in transformers, where it is allowed: who writes one gets two.
    allowing = PromptEncoder(bytes_bundle, allow_special=True)
    assert allowing.text("<s>hi") == [BOS, BOS, *ids]
    assert PromptEncoder(bytes_bundle).text("<s>hi") == [
        BOS,
        *byte_ids(bytes_bundle, "<"),
        *byte_ids(bytes_bundle, "s>hi"),
    ]
    assert encode_prompt(bytes_bundle, "", chat=False) == [BOS]


def test_a_tokenizer_that_puts_no_bos_in_front_decides(bytes_bundle: Bundle) -> None:
    """And not the id that the manifest has."""
    file = bytes_bundle.path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    assert encode_prompt(bytes_bundle, "hi", chat=False) == byte_ids(bytes_bundle, "hi")
    with pytest.raises(UsageError, match="empty"):
        encode_prompt(bytes_bundle, "", chat=False)


def test_a_prompt_of_an_ascii_locale_is_read_as_utf_8(bytes_bundle: Bundle) -> None:
    as_argument = "é".encode().decode("ascii", "surrogateescape")
    expected = encode_prompt(bytes_bundle, "é", chat=False)
    assert encode_prompt(bytes_bundle, as_argument, chat=False) == expected


@pytest.mark.parametrize("prompt", ["\udcff", "a\ud800b"])
def test_a_prompt_that_is_no_text_is_refused(bytes_bundle: Bundle, prompt: str) -> None:
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        encode_prompt(bytes_bundle, prompt, chat=False)
    assert "UTF-8" in caught.value.hint


def test_a_tokenizer_of_another_model_is_refused(bytes_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="ids up to 9"):
        encode_prompt(Bundle(bytes_bundle.path, small_manifest(vocab_size=10)), "hi", chat=False)


def test_a_bundle_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no tokenizer\.json: the checkpoint had no tokenizer"):
        encode_prompt(Bundle(tmp_path, small_manifest()), "hi", chat=False)


def test_a_tokenizer_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a tokenizer"):
        load_tokenizer(Bundle(tmp_path, small_manifest()))


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_chat_renders_the_template_in_the_tokenizer_config(bytes_bundle: Bundle) -> None:
    config = json.loads((bytes_bundle.path / "tokenizer_config.json").read_text())
    (bytes_bundle.path / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": TEMPLATE})
    )
    interface = dataclasses.replace(bytes_bundle.manifest.interface, context=64)
    roomy = Bundle(
        bytes_bundle.path, dataclasses.replace(bytes_bundle.manifest, interface=interface)
    )
    ids = encode_prompt(roomy, "hi", chat=True)
    assert ids == [
        BOS,
        *byte_ids(bytes_bundle, "[user] hi[assistant]"),
    ]  # the template writes BOS: no second one


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_loaded(
    bytes_bundle: Bundle,
) -> None:
    room = bytes_bundle.manifest.interface.context
    assert len(encode_prompt(bytes_bundle, "x" * (room - 1), chat=False)) == room  # and BOS
    with pytest.raises(ContextError, match=f"{room + 1} tokens"):
        encode_prompt(bytes_bundle, "x" * room, chat=False)


def test_chat_renders_the_template_file_that_an_export_copied(bundle: Bundle) -> None:
    template = PromptEncoder(bundle).template
    assert template.render([{"role": "user", "content": "sit"}]) == "<s>user: sit\nassistant:"
    ids = encode_prompt(bundle, "sit", chat=True)
    assert ids.count(0) == 1
    assert ids[0] == 0


def with_template(bundle: Bundle, template: str) -> Bundle:
    (bundle.path / "chat_template.jinja").write_text(template)
    return bundle


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "TypeError"),
        ("{{ raise_exception('no system message') }}", "no system message"),
        ("a fixed text", "leaves out what the user says"),
    ],
)
def test_a_template_that_does_not_render_is_named(
    bytes_bundle: Bundle, template: str, reason: str
) -> None:
    with pytest.raises(BundleError, match=f"does not render: .*{reason}") as caught:
        encode_prompt(with_template(bytes_bundle, template), "hi", chat=True)
    assert "without --chat" in caught.value.hint


def test_a_template_of_parts_gets_parts(bytes_bundle: Bundle) -> None:
    template = (
        "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    )
    template_of = PromptEncoder(with_template(bytes_bundle, template)).template
    assert template_of.render([{"role": "user", "content": "hi"}]) == "[hi]"


def test_chat_without_a_template_is_refused(bytes_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no chat template") as caught:
        encode_prompt(bytes_bundle, "hi", chat=True)
    assert "--chat" in caught.value.hint


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ raise_exception('no') }}", "{{ messages[7].role.x }}"]
)
def test_a_broken_template_is_an_error_with_a_message(bytes_bundle: Bundle, template: str) -> None:
    (bytes_bundle.path / "chat_template.jinja").write_text(template)
    with pytest.raises(BundleError, match="chat template"):
        encode_prompt(bytes_bundle, "hi", chat=True)


# ---- on the real runtime


def test_a_real_run_is_reproducible(bundle: Bundle) -> None:
    from runtime_ref.executorch.runner import ExecuTorchRunner

    runner = ExecuTorchRunner(bundle)
    prompt = encode_prompt(bundle, "The cat sat", chat=False)

    def tokens(sampling: Sampling) -> list[int]:
        return run(bundle, runner, prompt, 12, sampling, show_nothing).tokens

    assert tokens(Sampling()) == tokens(
        Sampling()
    )  # the cache of the first run does not reach the second
    assert tokens(Sampling(1.0, seed=4)) == tokens(Sampling(1.0, seed=4))
    assert tokens(Sampling(1.0, seed=4)) != tokens(Sampling(1.0, seed=5))


def test_a_real_run_fills_the_context_and_says_so(bundle: Bundle) -> None:
    from runtime_ref.executorch.runner import ExecuTorchRunner

    runner = ExecuTorchRunner(bundle)
    result = run(bundle, runner, [0] * (runner.context - 2), 100, Sampling(1.0), show_nothing)
    assert result.stopped in ("context", "eos")
    assert len(result.tokens) == 3 or result.stopped == "eos"
    with pytest.raises(ContextError, match=f"do not fit the context of {runner.context}"):
        runner.forward([0, 0], runner.context - 1)
    with pytest.raises(ValueError, match="no tokens"):
        runner.forward([], 0)


def test_the_text_of_a_real_run_is_its_tokens(bundle: Bundle) -> None:
    from runtime_ref.executorch.runner import ExecuTorchRunner

    prompt = encode_prompt(bundle, "The cat sat", chat=False)
    pieces: list[str] = []
    result = run(bundle, ExecuTorchRunner(bundle), prompt, 12, Sampling(), pieces.append)
    assert "".join(pieces) == result.text == load_tokenizer(bundle).decode(result.tokens)
    assert result.decode_tokens_per_second > 0


def test_logits_are_not_overwritten_by_the_next_call(bundle: Bundle) -> None:
    from runtime_ref.executorch.runner import ExecuTorchRunner

    runner = ExecuTorchRunner(bundle)
    first = runner.forward([3, 4], 0)
    kept = first.copy()
    assert not np.array_equal(runner.forward([5], 2), kept)
    assert np.array_equal(first, kept)

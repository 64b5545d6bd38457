"""Conversations: what the cache keeps, what is left out, and what an interruption leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.bundle import Bundle
from exporter.errors import ContextError, UsageError
from runtime_ref.conversation import Conversation, check_messages
from runtime_ref.generate import KeptPrefix, Limits, Sampling, StopStrings
from runtime_ref.native.runner import NativeRunner
from runtime_ref.prompts import PromptEncoder
from runtime_ref.runners import package
from tests.support.bundles import small_manifest
from tests.support.checkpoints import write_tokenizer

VOCAB, EOS = 258, 257
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


@dataclass
class Echo:
    """A model that says the last two characters of its prompt before the bar, in capitals."""

    characters: dict[int, str]
    context: int = 40
    name: str = "echo"
    artifact: Any = None
    held: list[int] = field(default_factory=list)
    n_fed: int = 0
    fail_at: int | None = None

    def file(self, relative: str) -> Path:
        return Path(relative)

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        assert position <= len(self.held), "a runner is asked to go on from what it holds"
        self.held[position:] = tokens
        self.n_fed += len(tokens)
        if self.fail_at == len(self.held):
            raise KeyboardInterrupt
        asked, _, said = self.text.rpartition("|a")
        ids = {character: i for i, character in self.characters.items()}
        logits = np.zeros(VOCAB, np.float32)
        logits[[*(ids[c] for c in asked[-2:].upper()), EOS][len(said)]] = 1
        return logits

    @property
    def text(self) -> str:
        return "".join(self.characters[i] for i in self.held)


@pytest.fixture
def encoder(tmp_path: Path) -> PromptEncoder:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return PromptEncoder(Bundle(tmp_path, small_manifest(context=40)))


@pytest.fixture
def runner(encoder: PromptEncoder) -> Echo:
    printable = map(chr, range(32, 127))
    return Echo(
        {encoder.tokenizer.encode(c, add_special_tokens=False).ids[0]: c for c in printable}
    )


def said(conversation: Conversation, text: str) -> str:
    return "".join(conversation.ask(text))


def test_a_turn_costs_its_own_tokens(encoder: PromptEncoder, runner: Echo) -> None:
    conversation = Conversation(encoder, runner, system="be")
    assert said(conversation, "abc") == "BC"
    assert runner.n_fed == len("sbe|uabc|a") + 2  # the last token is chosen, not fed
    runner.n_fed = 0
    assert said(conversation, "xyz") == "YZ"
    assert runner.text == "sbe|uabc|aBC|uxyz|aYZ"
    assert conversation.turns[1].reused == len("sbe|uabc|aBC")
    assert runner.n_fed == len("|uxyz|a") + 2
    assert [m["content"] for m in conversation.messages] == ["be", "abc", "BC", "xyz", "YZ"]


def test_the_oldest_turns_are_left_out_and_the_system_prompt_stays(
    encoder: PromptEncoder, runner: Echo
) -> None:
    conversation = Conversation(encoder, runner, system="be", limits=Limits(4))
    for _ in range(3):
        said(conversation, "abcdef")
    assert [turn.dropped for turn in conversation.turns] == [0, 0, 2]
    assert len(conversation.turns) == 3, "what was said stays known"
    with pytest.raises(ContextError, match="the message is too long"):
        said(conversation, "x" * 60)
    assert said(conversation, "ok") == "OK"
    conversation.reset()
    assert [m["role"] for m in conversation.messages] == ["system"]


def test_an_interrupted_answer_stays_as_far_as_it_came(
    encoder: PromptEncoder, runner: Echo
) -> None:
    conversation = Conversation(encoder, runner)
    runner.fail_at = len("uabc|a") + 1
    with pytest.raises(KeyboardInterrupt):
        said(conversation, "abc")
    assert (conversation.turns[0].answer, conversation.turns[0].result) == ("B", None)
    runner.fail_at = None
    assert said(conversation, "xyz") == "YZ"
    assert runner.text == "uabc|aB|uxyz|aYZ"
    pieces = conversation.ask("pq")
    assert next(pieces) == "P"
    pieces.close()
    assert conversation.turns[-1].answer == "P"
    runner.fail_at = len("uabc|aB|uxyz|aYZ|upq|aP|uno|a")
    with pytest.raises(KeyboardInterrupt):
        said(conversation, "no")
    assert conversation.turns[-1].asked == "pq", "a question without an answer is not kept"


@pytest.mark.parametrize("backend", ["native", "executorch"])
def test_a_kept_prefix_changes_no_bit(backend: str, bundle: Bundle) -> None:
    """Whatever was in the cache before, the logits are those of a fresh run."""
    from runtime_ref.executorch.runner import ExecuTorchRunner

    def fresh() -> Any:
        if backend == "native":
            return NativeRunner(bundle, package(bundle.manifest, backend), 1)
        return ExecuTorchRunner(bundle)

    kept, rng = KeptPrefix(fresh()), np.random.default_rng(3)
    plain, tokens = fresh(), rng.integers(0, 150, 20).tolist()
    for n in (20, 12, 20, 20, 1, 7):
        sequence = [*tokens[: n // 2], *rng.integers(0, 150, n - n // 2).tolist()]
        assert np.array_equal(kept.forward(sequence, 0), plain.forward(sequence, 0))
    assert kept.reused > 10


@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    filter_, shown = StopStrings(stop), ""
    for piece in text:
        shown += filter_.step(piece)
        assert text.startswith(shown)
        if filter_.found:
            break
    shown += filter_.rest()
    ends = {end: text.find(end) for end in stop if end in text}
    # Of two that are found, the one that is complete first ends the text.
    complete = min((at + len(end) for end, at in ends.items()), default=None)
    if complete is None:
        assert shown == text
    else:
        assert shown == text[: min(at for end, at in ends.items() if at + len(end) == complete)]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="stop string is empty"):
        Limits(3, ("a", ""))


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no messages"),
        ({"role": "user"}, "no messages"),
        ([{"role": "user"}], "message 1 must have a role and a content"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"role": "user", "content": 3}], "content of message 1 is not a text"),
        (
            [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}],
            "message 2 is a system prompt",
        ),
        ([{"role": "assistant", "content": "x"}], "last message is not a user's"),
    ],
)
def test_messages_that_are_no_conversation_are_refused(messages: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        check_messages(messages)


def test_sampling_is_the_same_for_every_answer_of_a_seed(
    encoder: PromptEncoder, runner: Echo
) -> None:
    warm = Sampling(0.1, seed=4)
    texts = [said(Conversation(encoder, runner, warm, Limits(6)), "abc") for _ in range(2)]
    assert texts[0] == texts[1]

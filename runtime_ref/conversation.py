"""A conversation of several turns with a package, within the context it was exported with."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from exporter.chat import Message
from exporter.errors import ContextError, UsageError
from runtime_ref.generate import KeptPrefix, Limits, Runner, RunResult, Sampling, TextStream
from runtime_ref.prompts import PromptEncoder

ROLES = ("system", "user", "assistant")


@dataclass
class Turn:
    """A question and its answer, as far as it came.

    dropped: number of messages at the beginning that found no room in the context. reused: number
    of positions that the cache held already. result: None for an answer that was interrupted.
    """

    asked: str
    dropped: int = 0
    reused: int = 0
    answer: str = ""
    result: RunResult | None = None


@dataclass
class Conversation:
    """A conversation in the chat format of a bundle, whose cache is kept from turn to turn.

    Where it outgrows the context, its oldest turns are left out; the system prompt stays.
    """

    encoder: PromptEncoder
    runner: Runner
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kept = KeptPrefix(self.runner)

    @property
    def messages(self) -> list[Message]:
        """All that was said, the system prompt first."""
        turns = ((("user", turn.asked), ("assistant", turn.answer)) for turn in self.turns)
        said = [{"role": role, "content": text} for turn in turns for role, text in turn]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *said]

    def ask(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer to a message.

        The turn joins `turns` when it has been read, also if it ended early with something said.
        Raises ContextError where the message alone leaves no room for an answer.
        """
        turn = Turn(text)
        ids, turn.dropped = fit_context(
            self.encoder, [*self.messages, {"role": "user", "content": text}], self.limits
        )
        bundle, tokenizer, before = self.encoder.bundle, self.encoder.tokenizer, self._kept.reused
        stream = TextStream(bundle, self._kept, ids, self.limits, self.sampling, tokenizer)
        try:
            for piece in stream:
                turn.answer += piece
                yield piece
            turn.result = stream.result
        finally:
            turn.reused = self._kept.reused - before
            if turn.answer or turn.result:
                self.turns.append(turn)

    def reset(self) -> None:
        """Forgets all turns. The system prompt stays."""
        self.turns.clear()


def fit_context(
    encoder: PromptEncoder, messages: Sequence[Message], limits: Limits
) -> tuple[list[int], int]:
    """Token ids of a conversation that leave room for the answer, and the messages left out.

    Turns are left out from the oldest on, until the new tokens find room, of which at most a
    quarter of the context is kept free. Raises ContextError where the last message alone is too
    long.
    """
    context = encoder.bundle.manifest.interface.context
    room = context - min(limits.max_new_tokens, context // 4)
    first = 1 if messages[0]["role"] == "system" else 0
    begin = first
    while True:
        try:
            ids = encoder.chat([*messages[:first], *messages[begin:]])
        except ContextError:
            ids = None
        last = len(messages) - begin == 1
        if ids is not None and (len(ids) <= room or last):
            return ids, begin - first
        if last:
            what = f"the message is too long for the context of {context} tokens"
            hint = "shorten it or the system prompt, or export with a larger --context"
            raise ContextError(what, hint=hint)
        begin = next(
            i for i in range(begin + 1, len(messages)) if messages[i]["role"] != "assistant"
        )


def check_messages(messages: object) -> list[Message]:
    """The messages of a conversation that is to be answered, of parsed JSON.

    Raises UsageError with all that is wrong.
    """
    hint = (
        f'give a list of {{"role": {" | ".join(ROLES)}, "content": TEXT}}, the last one a user\'s'
    )
    if not isinstance(messages, list) or not messages:
        raise UsageError("there are no messages", hint=hint)
    problems = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            problems.append(f"message {number} must have a role and a content, and nothing else")
        elif message["role"] not in ROLES:
            problems.append(f"message {number} has the role {message['role']!r}")
        elif not isinstance(message["content"], str):
            problems.append(f"the content of message {number} is not a text")
        elif message["role"] == "system" and number > 1:
            problems.append(f"message {number} is a system prompt, which comes first")
    if not problems and messages[-1]["role"] != "user":
        problems.append("the last message is not a user's")
    if problems:
        raise UsageError("the messages are not a conversation", problems=problems, hint=hint)
    return list(messages)

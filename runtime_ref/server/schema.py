"""Requests as OpenAI's clients send them, and the objects that answer them.

What a package cannot do is refused by name; a field that says nothing (null, or the value that
means "off") may be there.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exporter.chat import Message
from runtime_ref.generate import Limits, RunResult, Sampling

Off = Annotated[float, Field(ge=0, le=0)]
Count = Annotated[int, Field(ge=1)]
IGNORED = ("user", "metadata", "store", "service_tier")  # they do not change the answer


class _Fields(BaseModel):
    """An object whose unknown fields must be null, empty or without effect."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _knows_all(self) -> _Fields:
        extra = self.model_extra or {}
        if unknown := [name for name, value in extra.items() if value and name not in IGNORED]:
            raise ValueError(f"not supported here: {', '.join(unknown)}")
        return self


class TextPart(_Fields):
    type: Literal["text"]
    text: str


class ChatMessage(_Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> Message:
        """The message as chat templates know it: one text, and no role of a developer."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Fields):
    include_usage: bool = False


class CompletionFields(_Fields):
    """Fields that both kinds of completions have. `seed` None is another one each time."""

    model: str
    max_tokens: Count | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: Off | None = None
    frequency_penalty: Off | None = None

    @field_validator("stop")
    @classmethod
    def _some_text(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 4 or not all(texts):
            raise ValueError("at most four texts, none of them empty")
        return stop

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen, with OpenAI's temperature of 1 unless told otherwise."""
        seed = secrets.randbits(32) if self.seed is None else self.seed % 2**63
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(temperature, 1.0 if self.top_p is None else self.top_p, seed)

    def limits(self, default: int, largest: int) -> Limits:
        """Where the answer ends: after what is asked for, or `default`, and at most `largest`."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Limits(min(self.max_tokens or default, largest), tuple(stop))

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(CompletionFields):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: Literal[False] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    def limits(self, default: int, largest: int) -> Limits:
        """Where the answer ends, as `CompletionFields.limits`, by the newer name too."""
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return super().limits(default, largest)


class TextRequest(CompletionFields):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    @property
    def text(self) -> str:
        """The one prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


def finish_reason(result: RunResult) -> str:
    """Why an answer ended, in OpenAI's words: "stop" by itself, "length" by a limit."""
    return "stop" if result.stopped in ("eos", "stop") else "length"


def usage(result: RunResult) -> dict[str, int]:
    """Numbers of tokens of a request."""
    n_prompt, n_new = len(result.prompt_tokens), len(result.tokens)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
    }


def error_body(message: str, kind: str, code: str | None, param: str | None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}

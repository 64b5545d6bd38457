"""The HTTP interface of a server: completions, models and health, as OpenAI's clients know them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from exporter.errors import ContextError, TinyQMoEError
from runtime_ref.generate import RunResult
from runtime_ref.prompts import PromptEncoder
from runtime_ref.server.gate import Gate
from runtime_ref.server.generation_queue import (
    ClientGoneError,
    GenerationQueue,
    Job,
    QueueFullError,
    is_of_the_request,
)
from runtime_ref.server.limits import ServerLimits
from runtime_ref.server.schema import (
    ChatRequest,
    CompletionFields,
    TextRequest,
    error_body,
    finish_reason,
    usage,
)


class UnknownModelError(Exception):
    """A request is for another model."""


DEFAULT_TOKENS = 16  # of a plain completion, as OpenAI has it
GONE = 499  # the status of a request whose client went away, for the log


@dataclass(frozen=True)
class Kind:
    """Kind of completion: names of its objects, and how its choices hold a piece and a text."""

    prefix: str
    whole: str
    chunk: str
    piece: Callable[[str], dict[str, Any]]
    text: Callable[[str], dict[str, Any]]
    first: dict[str, Any] | None = None


CHAT = Kind(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda piece: {"delta": {"content": piece} if piece else {}},
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    {"delta": {"role": "assistant", "content": ""}},
)
TEXT = Kind(
    "cmpl",
    "text_completion",
    "text_completion",
    lambda piece: {"text": piece},
    lambda text: {"text": text},
)


@dataclass(frozen=True)
class Completion:
    """A completion that is being answered."""

    kind: Kind
    job: Job
    model: str
    wants_usage: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An object of the answer."""
        return {
            "id": f"{self.kind.prefix}-{self.id}",
            "object": name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def whole(self, text: str) -> dict[str, Any]:
        """The answer in one object."""
        result = self._result
        choice = {"index": 0, "finish_reason": finish_reason(result), "logprobs": None}
        return self.body(self.kind.whole, [choice | self.kind.text(text)]) | {
            "usage": usage(result)
        }

    def chunk(self, content: dict[str, Any], reason: str | None = None) -> str:
        """A part of a stream, as an event."""
        choice = {"index": 0, "finish_reason": reason, "logprobs": None} | content
        unknown = {"usage": None} if self.wants_usage else {}
        return event(self.body(self.kind.chunk, [choice]) | unknown)

    async def events(self, request: Request) -> AsyncIterator[str]:
        """The answer as server-sent events, which end with [DONE]."""
        try:
            if self.kind.first:
                yield self.chunk(self.kind.first)
            async for piece in self.job.pieces(request.is_disconnected):
                yield self.chunk(self.kind.piece(piece))
        except ClientGoneError:
            return
        except Exception as error:  # the status has been sent: the client reads this
            yield event(error_body(str(error), "server_error", None, None))
            return
        yield self.chunk(self.kind.piece(""), finish_reason(self._result))
        if self.wants_usage:
            yield event(self.body(self.kind.chunk, []) | {"usage": usage(self._result)})
        yield "data: [DONE]\n\n"

    @property
    def _result(self) -> RunResult:
        assert self.job.result is not None, "all pieces have been read"
        return self.job.result


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class Service:
    """The routes of a server, for one package."""

    def __init__(self, encoder: PromptEncoder, jobs: GenerationQueue, limits: ServerLimits) -> None:
        self._encoder, self._jobs, self._limits = encoder, jobs, limits
        self._model = encoder.bundle.manifest.model.name
        self._begin = int(time.time())

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        """Answer to a conversation."""
        messages = [message.plain() for message in asked.messages]
        ids = await asyncio.to_thread(self._encoder.chat, messages)
        return await self._answer(request, asked, CHAT, ids, self._limits.new_tokens)

    async def complete(self, request: Request, asked: TextRequest) -> Response:
        """Text that follows a prompt."""
        ids = await asyncio.to_thread(self._encoder.text, asked.text)
        return await self._answer(request, asked, TEXT, ids, DEFAULT_TOKENS)

    async def models(self) -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [self._entry()]}

    async def model(self, name: str) -> dict[str, Any]:
        """The one model, by its name."""
        self._check_model(name)
        return self._entry()

    async def health(self) -> dict[str, str]:
        """That the server is there."""
        return {"status": "ok"}

    async def _answer(
        self, request: Request, asked: CompletionFields, kind: Kind, ids: list[int], default: int
    ) -> Response:
        self._check_model(asked.model)
        job = Job(ids, asked.limits(default, self._limits.new_tokens), asked.sampling)
        self._jobs.submit(job)
        completion = Completion(kind, job, self._model, asked.wants_usage)
        if asked.stream:
            return StreamingResponse(completion.events(request), media_type="text/event-stream")
        text = "".join([piece async for piece in job.pieces(request.is_disconnected)])
        return JSONResponse(completion.whole(text))

    def _check_model(self, name: str) -> None:
        if name != self._model:
            raise UnknownModelError(f"there is no model {name}, only {self._model}")

    def _entry(self) -> dict[str, Any]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._begin,
            "owned_by": "tinyqmoe",
        }


def make_app(
    encoder: PromptEncoder,
    jobs: GenerationQueue,
    limits: ServerLimits,
    hosts: Sequence[str] | None,
    log: Callable[[str], None],
) -> FastAPI:
    """Application that answers for one package.

    `hosts` are the names under which it may be asked, None is any. `log` gets a line for each
    request.
    """
    app = FastAPI(title="tinyqmoe", docs_url=None, redoc_url=None, openapi_url=None)
    service = Service(encoder, jobs, limits)
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"])
    app.add_api_route("/v1/completions", service.complete, methods=["POST"])
    app.add_api_route("/v1/models", service.models)
    app.add_api_route("/v1/models/{name:path}", service.model)
    app.add_api_route("/health", service.health)

    app.add_middleware(Gate, hosts=hosts, limits=limits, log=log)
    for kind in ERRORS:
        app.add_exception_handler(kind, _told)
    return app


ERRORS: tuple[type[Exception], ...] = (
    RequestValidationError,
    HTTPException,
    UnknownModelError,
    QueueFullError,
    ClientGoneError,
    TinyQMoEError,
    MemoryError,
)


async def _told(request: Request, error: Exception) -> Response:
    """An error as OpenAI's clients read it."""
    if isinstance(error, ClientGoneError):
        return Response(status_code=GONE)
    status, kind, code, param = _classified(error)
    message = str(error) or type(error).__name__
    if isinstance(error, RequestValidationError):
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        message = f"{param}: {what}" if param else what
    if isinstance(error, HTTPException):
        message = str(error.detail)
    return JSONResponse(error_body(message, kind, code, param), status)


def _classified(error: Exception) -> tuple[int, str, str | None, str | None]:
    """Status, type, code and parameter of an error."""
    refused = "invalid_request_error"
    if isinstance(error, RequestValidationError):
        where = [str(part) for part in error.errors()[0]["loc"][1:]]
        return 400, refused, None, ".".join(where) or None
    if isinstance(error, HTTPException):
        return error.status_code, refused, None, None
    if isinstance(error, UnknownModelError):
        return 404, refused, "model_not_found", "model"
    if isinstance(error, QueueFullError):
        return 429, "rate_limit_error", "queue_full", None
    if is_of_the_request(error):
        code = "context_length_exceeded" if isinstance(error, ContextError) else None
        return 400, refused, code, None
    return 500, "server_error", None, None

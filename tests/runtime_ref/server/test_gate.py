"""The gate of a server: who sends nothing, or takes nothing, ends a request of their own only."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from runtime_ref.server import gate
from runtime_ref.server.gate import Gate
from runtime_ref.server.limits import ServerLimits

SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "path": "/v1/completions",
    "query_string": b"",
    "server": ("127.0.0.1", 80),
    "headers": [(b"host", b"127.0.0.1"), (b"content-length", b"4")],
    "asgi": {"version": "3.0", "spec_version": "2.4"},
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CLIENT_SECONDS", 0.1)


def asked(body: list[bytes], *, takes: int = 9, is_whole: bool = True) -> tuple[list[Message], str]:
    """What a client gets that sends `body` in parts and takes `takes` messages, and the log."""
    taken: list[Message] = []
    log: list[str] = []
    parts = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    parts[-1]["more_body"] = not is_whole

    async def receive() -> Any:
        return parts.pop(0) if parts else await asyncio.sleep(60)

    async def send(message: Message) -> None:
        if len(taken) == takes:
            await asyncio.sleep(60)
        taken.append(message)

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        said, more = b"", True
        while more:
            message = await receive()
            said, more = said + message["body"], message["more_body"]
        response = JSONResponse(said.decode()) if takes == 9 else StreamingResponse(iter("abc"))
        await response(scope, receive, send)

    asyncio.run(Gate(echo, ["127.0.0.1"], ServerLimits(), log.append)(SCOPE, receive, send))
    return taken, log[0]


def test_a_request_in_parts_is_passed_on_whole() -> None:
    (start, body), log = asked([b"ab", b"", b"cd"])
    assert (start["status"], json.loads(body["body"])) == (200, "abcd")
    assert log.startswith("POST /v1/completions 200 after 0.")


def test_a_request_that_does_not_arrive_is_408() -> None:
    (start, body), log = asked([b"ab"], is_whole=False)
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert "did not arrive within" in json.loads(body["body"])["error"]["message"]
    assert " 408 " in log


def test_an_answer_that_nobody_takes_is_given_up() -> None:
    taken, log = asked([b"abcd"], takes=2)
    assert [message["type"] for message in taken] == ["http.response.start", "http.response.body"]
    assert log.endswith("as nobody took the answer for 0 s")

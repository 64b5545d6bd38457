"""Clients that send the headers of a request slowly, or not at all: their connection is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from runtime_ref.server.patience import PatientProtocol

PATIENCE = 0.5  # seconds for headers; a client of this process sends them at once or never
WHOLE = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "seconds", PATIENCE)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """It takes longer than headers may."""
    await asyncio.sleep(2 * PATIENCE)
    await PlainTextResponse("yes")(scope, receive, send)


def connect(client: Client) -> None:
    """Runs a client that is connected to a server."""

    async def both() -> None:
        config, state = uvicorn.Config(answer, lifespan="off", timeout_keep_alive=60), ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: PatientProtocol(config, state, {}), "127.0.0.1", 0
        )
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await asyncio.wait_for(client(reader, writer), 60)
            writer.close()

    asyncio.run(both())


@pytest.mark.parametrize("sent", [b"", WHOLE[:-2]], ids=["nothing", "a part"])
def test_headers_that_do_not_come(sent: bytes) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        assert await reader.read() == b""

    connect(client)


def test_headers_that_come_slowly() -> None:
    """Bytes that keep coming do not begin the wait anew."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\n")
        while not reader.at_eof():
            writer.write(b"X-More: more\r\n")
            await asyncio.sleep(PATIENCE / 10)

    connect(client)


def test_a_slow_answer_comes_and_a_second_request_has_its_own_time() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(WHOLE)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(3) == b"yes"
        writer.write(WHOLE[:9])
        assert await reader.read() == b""

    connect(client)

"""What every request passes: the checks of its host, its size and its pace, and the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime_ref.server.limits import ServerLimits
from runtime_ref.server.schema import error_body

CLIENT_SECONDS = 60.0  # for a request to arrive, and for a client to take a part of its answer


@dataclass
class Gate:
    """Application before another one, which it lets answer what may be asked.

    `hosts` are the names under which it may be asked, None is any. `log` gets a line for each
    request when it has been answered.
    """

    app: ASGIApp
    hosts: Sequence[str] | None
    limits: ServerLimits
    log: Callable[[str], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or leaves it to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, begin, status, stalled = Request(scope), time.monotonic(), 0, ""

        async def watched(message: Message) -> None:
            nonlocal status, stalled
            status = message.get("status", status)
            try:
                await asyncio.wait_for(send(message), CLIENT_SECONDS)
            except TimeoutError:
                stalled = f", as nobody took the answer for {CLIENT_SECONDS:.0f} s"
                raise

        refusal = _host_problem(request, self.hosts) or _size_problem(
            request, self.limits.request_bytes
        )
        try:
            if refusal is None:
                refusal, receive = await _arrived(receive)
            await (refusal or self.app)(scope, receive, watched)
        except Exception:
            if not stalled:
                raise
        finally:
            seconds = time.monotonic() - begin
            path = request.url.path
            self.log(f"{request.method} {path} {status} after {seconds:.1f} s{stalled}")


async def _arrived(receive: Receive) -> tuple[Response | None, Receive]:
    """Refusal of a request that does not arrive in time, or None; and its messages again."""
    messages: list[Message] = []

    async def all_of_it() -> None:
        while not messages or messages[-1].get("more_body", False):
            messages.append(await receive())

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    try:
        await asyncio.wait_for(all_of_it(), CLIENT_SECONDS)
    except TimeoutError:
        what = f"the request did not arrive within {CLIENT_SECONDS:.0f} seconds"
        error = error_body(what, "invalid_request_error", None, None)
        return JSONResponse(error, 408, {"Connection": "close"}), again
    return None, again


def _host_problem(request: Request, hosts: Sequence[str] | None) -> Response | None:
    """Refusal of a request for another host: the page of a stranger, led here by its name."""
    if hosts is None or request.url.hostname in hosts:
        return None
    message = f"this server is not {request.url.hostname}"
    return JSONResponse(error_body(message, "invalid_request_error", None, None), 403)


def _size_problem(request: Request, largest: int) -> Response | None:
    """Refusal of a request that is too large, or does not say how large it is."""
    n_bytes = request.headers.get("content-length", "")
    if request.method != "POST" or (n_bytes.isdigit() and int(n_bytes) <= largest):
        return None
    status, what = (413, "is too large") if n_bytes else (411, "does not say its length")
    message = f"the request {what}: it may have {largest:,} bytes"
    return JSONResponse(error_body(message, "invalid_request_error", None, None), status)

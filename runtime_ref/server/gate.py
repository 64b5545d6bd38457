"""What every request passes: the checks of its host and its size, and the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime_ref.server.limits import ServerLimits
from runtime_ref.server.schema import error_body


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
        request, begin, status = Request(scope), time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        refusal = _host_problem(request, self.hosts) or _size_problem(
            request, self.limits.request_bytes
        )
        try:
            await (refusal or self.app)(scope, receive, watched)
        finally:
            seconds = time.monotonic() - begin
            self.log(f"{request.method} {request.url.path} {status} after {seconds:.1f} s")


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

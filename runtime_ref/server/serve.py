"""A server that listens: its socket, its worker and its end."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from exporter.errors import UsageError
from runtime_ref.generate import Runner
from runtime_ref.prompts import PromptEncoder
from runtime_ref.server.app import make_app
from runtime_ref.server.generation_queue import GenerationQueue
from runtime_ref.server.limits import ServerLimits
from runtime_ref.server.patience import PatientProtocol

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHUTDOWN_SECONDS = 2


def listen(host: str, port: int) -> socket.socket:
    """Socket that listens; port 0 is one that is free. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "choose another --port, or 0 for one that is free"
        raise UsageError(f"cannot listen on {host} port {port}: {reason}", hint=hint) from error


def serve(
    listening: socket.socket,
    encoder: PromptEncoder,
    runner: Runner,
    limits: ServerLimits,
    log: Callable[[str], None],
) -> None:
    """Answers requests until it is interrupted. `log` gets a line for each."""
    host = listening.getsockname()[0]
    jobs = GenerationQueue(encoder, runner, limits.waiting, limits.seconds)
    hosts = LOOPBACK if host in LOOPBACK else None
    app = make_app(encoder, jobs, limits, hosts, log)
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        jobs.close()

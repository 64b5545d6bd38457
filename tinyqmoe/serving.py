"""A local server of one package, for the clients of OpenAI's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack

from exporter.errors import require_extra
from tinyqmoe.chatting import HeldPackage
from tinyqmoe.generation import Asked, GenerationSettings

if TYPE_CHECKING:
    import socket

    from runtime_ref.server.limits import ServerLimits


def listen(host: str, port: int) -> socket.socket:
    """A socket for `serve` that listens; port 0 is one that is free.

    Raises UsageError, MissingComponentError where the packages of the server are not installed.
    """
    require_extra("serve", ("fastapi", "uvicorn"), "the server")
    from runtime_ref.server import serve as server

    return server.listen(host, port)


def serve(
    listening: socket.socket,
    held: HeldPackage,
    limits: ServerLimits,
    log: Callable[[str], None],
    **settings: Unpack[GenerationSettings],
) -> None:
    """Answers the requests of a socket with an open package, until it is interrupted.

    Of the settings `chat_template` and `allow_special` matter: a request brings the others. `log`
    gets a line for each request. Raises BundleError.
    """
    from runtime_ref.server import serve as server

    encoder = Asked(**settings).encoder(held.bundle)
    server.serve(listening, encoder, held.runner, limits, log)

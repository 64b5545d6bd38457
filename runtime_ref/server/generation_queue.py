"""The queue of a server: one package answers one request after the other."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from exporter.errors import TinyQMoEError
from runtime_ref.generate import KeptPrefix, Limits, Runner, RunResult, Sampling, TextStream
from runtime_ref.prompts import PromptEncoder

CLOSE_SECONDS = 60.0
LOOK_SECONDS = 0.25  # between two looks whether a client that waits is still there
Told = str | RunResult | Exception


class QueueFullError(Exception):
    """As many requests wait as may."""

    def __str__(self) -> str:
        return "as many requests wait as may: try again later"


class ClientGoneError(Exception):
    """Nobody waits for the answer."""


@dataclass
class Job:
    """A generation that is asked for. `result` is there when its pieces have been read."""

    prompt: list[int]
    limits: Limits
    sampling: Sampling
    result: RunResult | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    told: asyncio.Queue[Told] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def tell(self, what: Told) -> None:
        """Hands a piece, the result or an error to the event loop, from another thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.told.put_nowait, what)

    async def pieces(self, is_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
        """Pieces of the text. A reader that ends early cancels the job.

        Raises ClientGoneError when `is_gone` says so, and what the generation raises.
        """
        looked = time.monotonic()
        try:
            while self.result is None:
                if time.monotonic() - looked > LOOK_SECONDS:
                    if await is_gone():
                        raise ClientGoneError
                    looked = time.monotonic()
                try:
                    what = await asyncio.wait_for(self.told.get(), LOOK_SECONDS)
                except TimeoutError:
                    continue
                if isinstance(what, Exception):
                    raise what
                if isinstance(what, RunResult):
                    self.result = what
                else:
                    yield what
        finally:
            self.cancelled.set()


class GenerationQueue:
    """Worker of one package. At most `waiting` jobs wait; one may take `seconds`."""

    def __init__(
        self, encoder: PromptEncoder, runner: Runner, waiting: int, seconds: float
    ) -> None:
        self._encoder, self._runner, self._seconds = encoder, KeptPrefix(runner), seconds
        # The job that is worked on has left the queue.
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._places = threading.BoundedSemaphore(waiting + 1)
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Puts a job at the end. Raises QueueFullError."""
        if not self._places.acquire(blocking=False):
            raise QueueFullError
        self._jobs.put(job)

    def close(self) -> None:
        """Ends the worker when the jobs that were submitted are done or cancelled.

        One that goes on for longer than CLOSE_SECONDS is left behind.
        """
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if not job.cancelled.is_set():
                    self._generate(job)
            except Exception as error:  # told to the one who asked; the next job goes on
                job.tell(error)
            finally:
                self._places.release()

    def _generate(self, job: Job) -> None:
        bundle, tokenizer = self._encoder.bundle, self._encoder.tokenizer
        stream = TextStream(bundle, self._runner, job.prompt, job.limits, job.sampling, tokenizer)
        text, end = "", time.monotonic() + self._seconds
        for piece in stream:
            if job.cancelled.is_set():
                return
            text += piece
            job.tell(piece)
            if time.monotonic() > end:
                job.tell(RunResult(job.prompt, stream.tokens, text, "time", 0.0, 0.0))
                return
        job.tell(stream.result)


def is_of_the_request(error: Exception) -> bool:
    """Whether another request could do better."""
    return isinstance(error, TinyQMoEError) and error.exit_code in (2, 3)

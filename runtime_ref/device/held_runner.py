"""A runner under the limits of a device, held open for many calls.

The package lies in a child process under the limit, as in every run on a device; what the child is
asked for are logits. So a conversation or a server goes on in the parent, and the child holds what
an app holds: the package, its cache and the tokenizer.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Bundle
from exporter.errors import OutOfSpaceError, TinyQMoEError
from exporter.progress import Progress
from runtime_ref.device import run as device_runs
from runtime_ref.device.run import DevicePlan, DeviceRun
from runtime_ref.device.socket_calls import HEADER, receive
from runtime_ref.generate import check_room

START_SECONDS = 1.0  # between two looks whether a child that starts is still there


class HeldRunner:
    """Runner whose calls are answered by a child of the sandbox.

    `ended` is the run of that child, when it has ended. Raises OutOfSpaceError once the device's
    limit has ended it.
    """

    def __init__(self, bundle: Bundle, plan: DevicePlan, connection: socket.socket) -> None:
        self.name, self.artifact = plan.package, plan.artifact
        self.context = bundle.manifest.interface.context
        self.ended: Future[DeviceRun] | None = None
        self._bundle, self._plan, self._connection = bundle, plan, connection
        # An answer is read whole by a thread of its own, also when Ctrl-C ends the wait for it.
        self._thread = ThreadPoolExecutor(1)

    def file(self, relative: str) -> Path:
        """Path of a file of the package; `relative` as in the manifest."""
        return self._bundle.file(relative)

    def forward(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of the last position, float32 [V]. Raises ContextError, OutOfSpaceError."""
        check_room(tokens, position, self.context)
        return self._thread.submit(self._exchange, list(tokens), position).result()

    def close(self) -> None:
        """Ends the child."""
        self._thread.shutdown()
        self._connection.close()

    def _exchange(self, tokens: list[int], position: int) -> NDArray[np.float32]:
        vocab = self._bundle.manifest.interface.vocab_size
        try:
            request = HEADER.pack(len(tokens), position) + np.array(tokens, "<i4").tobytes()
            self._connection.sendall(request)
            return np.frombuffer(receive(self._connection, 4 * vocab), "<f4")
        except OSError:
            assert self.ended is not None
            raise ended_early(self.ended.result(), self._plan) from None


def ended_early(run: DeviceRun, plan: DevicePlan) -> TinyQMoEError:
    """Error of a child that is gone before its time."""
    title = plan.profile.title
    what = f"the package was ended under the limit of {title}"
    hint = f"see what fits: tinyqmoe fit BUNDLE --device {plan.profile.name}"
    return OutOfSpaceError(what, problems=run.problems or [run.report.detail], hint=hint)


@contextlib.contextmanager
def held_runner(
    bundle: Bundle, plan: DevicePlan, progress: Progress
) -> Iterator[tuple[HeldRunner, Future[DeviceRun]]]:
    """Context of a runner under the limits of a device, and of the run, known after its end.

    Raises the errors of opening the package, OutOfSpaceError where the limit forbids it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tinyqmoe-") as folder,
        ThreadPoolExecutor(1) as thread,
        socket.socket(socket.AF_UNIX) as listening,  # closed first: the thread waits for the child
    ):
        address = str(Path(folder) / "socket")
        listening.bind(address)
        listening.listen(1)
        listening.settimeout(START_SECONDS)
        arguments: dict[str, Any] = {"address": address}
        opened = threading.Event()

        def tell(stage: str, done: int, total: int) -> None:
            if not opened.is_set():
                progress(stage, done, total)

        run = thread.submit(device_runs.run, bundle, plan, "answer_calls", arguments, tell)
        connection = _accept(listening, run, plan)
        opened.set()
        runner = HeldRunner(bundle, plan, connection)
        runner.ended = run
        try:
            yield runner, run
        finally:
            runner.close()


def _accept(listening: socket.socket, run: Future[DeviceRun], plan: DevicePlan) -> socket.socket:
    """Connection of the child, when its package is open. Raises its error."""
    while True:
        try:
            connection = listening.accept()[0]
        except TimeoutError:
            if run.done():
                raise ended_early(run.result(), plan) from None
        else:
            connection.settimeout(None)
            return connection

"""SIGINT and SIGTERM: the first is obeyed within a second, the second at once.

Python raises an exception for a signal wherever the main thread is. Libraries that are being
imported swallow it, make another error of it, or abort; a long call of native code does not see it.
So an import is ended as a kill would, and a thread does the same to what has not begun to tidy up
after a while. An export and an expansion go on from wherever they were killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from exporter import interrupts
from exporter.interrupts import INTERRUPTED, TERMINATED

CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
_asked_by: int = signal.SIGINT  # the first signal that came
PATIENCE_SECONDS = 0.8  # for an exception to arrive where it is obeyed
SHOW_CURSOR = b"\x1b[?25h"
TIDYING_SECONDS = 60.0  # for what is then removed


def obey() -> None:
    """Installs the handlers, and starts the thread that watches.

    SIGINT stays ignored where it was, as in a background job of a script.
    """
    for number in CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="signals").start()


@contextlib.contextmanager
def own_interrupts() -> Iterator[None]:
    """Leaves SIGINT to the block, which catches KeyboardInterrupt and goes on."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is _raise:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def exit_if_asked() -> None:
    """Ends the process if a signal asked for that, with the code of the signal.

    Threads that still work are not waited for.
    """
    if interrupts.asked.is_set():
        interrupts.kept.clear()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        _end(_asked_by)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    global _asked_by
    _asked_by = number
    interrupts.asked.set()
    if _is_importing(frame):
        _end(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(TERMINATED)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: native ones abort when an exception comes."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _watch(read: int) -> None:
    """Ends the process when its main thread does not, or a second signal comes."""
    while True:
        number = os.read(read, 1)[0]
        # A server and a chat have handlers of their own while they answer.
        if number in CODES and signal.getsignal(number) is _raise:
            break
    again = threading.Event()

    def wait_for_another() -> None:
        while os.read(read, 1)[0] not in CODES:
            pass
        again.set()

    threading.Thread(target=wait_for_another, daemon=True).start()
    if not again.wait(PATIENCE_SECONDS) and interrupts.tidying.is_set():
        again.wait(TIDYING_SECONDS)
    _end(number)


def _end(number: int) -> NoReturn:
    """Ends the process without unwinding: threads and libraries have no say."""
    if os.isatty(2):
        os.write(2, SHOW_CURSOR)  # which progress bars hide
    if not interrupts.tidying.is_set():
        for words in interrupts.kept:
            os.write(2, f"{words}\n".encode())
    os._exit(CODES[signal.Signals(number)])

"""Keeps the chatter of heavy libraries off the user's terminal, without hiding an error."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

VERBOSE = "TINYQMOE_VERBOSE"
_STDERR = 2  # the file descriptor: native code knows no sys.stderr


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back warnings, logging below ERROR, and whatever this process writes to stderr.

    Native code is included. For imports, lowering and loading, which talk about their own insides.
    If the block raises, what was held back is shown after all: it often names the cause. With
    TINYQMOE_VERBOSE=1 in the environment nothing is held back, which is also the way to see the
    last words of native code that aborts the process.
    """
    if os.environ.get(VERBOSE):
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_stderr_held_back())
        yield


@contextlib.contextmanager
def _stderr_held_back() -> Iterator[None]:
    try:
        terminal = os.dup(_STDERR)
    except OSError:  # started without a stderr: nobody would see it
        yield
        return
    with tempfile.TemporaryFile() as held:
        try:
            _flush()
            os.dup2(held.fileno(), _STDERR)
            try:
                yield
            finally:
                _flush()
                os.dup2(terminal, _STDERR)
        except Exception:  # and not for an interrupt: its cause is known
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.close(terminal)


def _flush() -> None:
    """Flushes stderr: what Python has written so far belongs where it was sent."""
    if sys.stderr is not None:
        sys.stderr.flush()

"""An end with a message where a mapped file is cut short while it is used.

The system ends such a process with SIGBUS, in the middle of native code. Weights are mapped and not
read, so that their pages are clean: no check in advance covers what happens to them later.
"""

from __future__ import annotations

import ctypes
import os

from exporter import native
from exporter.cli.signals import SHOW_CURSOR
from exporter.errors import BundleError

AFTER = """ was cut short while it was in use, or its disk cannot read it any more
Next step: let nothing write to it, copy it again, and run `tinyqmoe verify BUNDLE`
"""


def end_with_message() -> None:
    """Has the process end with one message, and the exit code of a damaged bundle.

    Nothing changes where the core was not compiled: what needs it says so.
    """
    file = native.library_file()
    if file is None:
        return
    before = (SHOW_CURSOR if os.isatty(2) else b"") + b"error: "
    library = ctypes.CDLL(str(file))
    library.tinyqmoe_end_on_lost_pages(before, AFTER.encode(), BundleError.exit_code)

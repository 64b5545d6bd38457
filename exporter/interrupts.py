"""The end that a signal asks for, shared by who watches signals and who has to tidy up."""

from __future__ import annotations

import threading

INTERRUPTED, TERMINATED = 130, 143  # exit codes of SIGINT and SIGTERM

asked = threading.Event()
"""Whether the process was asked to end: whatever is raised from then on follows from that."""

tidying = threading.Event()
"""Whether work that can be resumed is being tidied up, which may take as long as it needs."""

kept: list[str] = []
"""Words on what stays on disk, for a process that ends before it can tidy up."""

"""Sandbox: a task in a child process under a memory limit that the kernel enforces.

What is enforced: everything the task touches first after it has come under the limit. Anonymous
memory that does not fit gets the child killed, as an app is; clean pages of files are evicted and
read again, and never kill.

What is not: a phone has more room for clean pages than its limit (iOS does not count them), so
speed under the limit is a lower bound. Freed memory of the interpreter that the task reuses is not
charged; the child returns what it can before it joins, and the report has the process's own growth
beside what the group was charged.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from exporter.errors import MissingComponentError
from exporter.progress import Progress
from runtime_ref.device import memory_limits
from runtime_ref.device.memory_limits import open_limit
from runtime_ref.device.sandbox_report import SandboxReport
from runtime_ref.device.sandbox_watch import STEP_SECONDS, Watch

# As allocators of phones: what is large is mapped by itself, and goes back when it is freed. One
# heap for the first thread and one for all others: each of its own would take address space.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
    "MALLOC_ARENA_MAX": "2",
}
TERMINATED = 143  # 128 + SIGTERM
LAST_WORDS_BYTES = 4000  # of the stderr of a child that failed


def run(
    task: str,
    arguments: dict[str, Any],
    limit_bytes: int,
    files_to_drop: Sequence[Path],
    progress: Progress,
    *,
    dirty_limit_bytes: int | None = None,
) -> SandboxReport:
    """Report of `task`, "module:function", called in a child process under a limit.

    The function takes (arguments, report_phase) and returns a dict for JSON; its module may have a
    `prepare(arguments)`, which is called before the limit holds, for imports. `files_to_drop` leave
    the page cache first, so that the task pays for what it reads. `progress` is told the phases
    and, in them, what is done of how much. `dirty_limit_bytes`: a lower limit of anonymous memory
    alone, as Android 17 has it; no control group counts that apart, so the parent looks and kills.
    A child ends itself where one step of it takes longer than STEP_SECONDS. Raises the
    TinyQMoEError the task raised; MissingComponentError where there is no Linux.
    """
    if not sys.platform.startswith("linux"):
        raise MissingComponentError(
            "memory limits are enforced by the Linux kernel only",
            hint="run this on Linux; `tinyqmoe fit BUNDLE --device NAME` predicts the memory here",
        )
    progress("start the sandbox", 0, 0)
    with _sigterm_unwinds(), open_limit(limit_bytes) as limit, tempfile.TemporaryFile() as output:
        request = {
            "task": task,
            "arguments": arguments,
            "files": [str(file.resolve()) for file in files_to_drop],
            "join": limit.join(),
            "parent": os.getpid(),
            "step_seconds": STEP_SECONDS,
        }
        with _child(request, output) as (process, messages):
            watch = Watch(process.pid, limit, limit_bytes, dirty_limit_bytes, progress)
            watch.follow(messages)
            return_code = process.wait()
        last_words = _last_words(output)
        report = watch.report(return_code, last_words)
    if watch.error is not None:
        sys.stderr.write(last_words)  # what native code logged belongs to the message
        raise watch.error
    return report


@contextlib.contextmanager
def _child(
    request: dict[str, Any], output: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Context of a child that has its request, and the pipe its messages come from.

    It does not outlive the block, nor do its temporary files; those of a run that was killed itself
    go with the next.
    """
    for left in memory_limits.stale(Path(tempfile.gettempdir())):
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=f"{memory_limits.mark()}-")
        )
        read_end, write_end = os.pipe()
        messages = stack.enter_context(open(read_end, "rb", buffering=0))
        with open(write_end, "wb"):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runtime_ref.device.sandbox_child", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[write_end],
                env={**os.environ, **ALLOCATOR, "TMPDIR": temporary},
                start_new_session=True,  # Ctrl-C is for the parent, which ends the child
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            # Where it died at once, its return code says of what.
            process.stdin.write(json.dumps(request).encode())
        yield process, messages


def _last_words(output: IO[bytes]) -> str:
    """End of the output of a child, as text."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
    return output.read().decode(errors="replace").strip()


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Context in which SIGTERM raises SystemExit, so that nothing is left behind.

    A handler that is there stays.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

"""Child of `runtime_ref.device.sandbox`: a fresh interpreter under a limit, for one task.

What an app does not have, the Python runtime and its libraries, is loaded before the limit holds.
What an app has comes after: the files of the bundle, which are dropped from the page cache first,
and everything the task allocates.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import importlib
import json
import mmap
import os
import resource
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from exporter.errors import TinyQMoEError
from exporter.memory import release_free_memory
from runtime_ref.device.memory_limits import Counters, counters

_CAP_IPC_LOCK = 14
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Main function of the child: request from stdin, messages to a descriptor.

    Messages are one JSON object a line; the descriptor is in the arguments.
    """
    faulthandler.enable()
    request = json.load(sys.stdin)
    forbid_locking()  # before any thread starts: each has capabilities of its own
    _die_with(request["parent"])
    os.set_inheritable(int(sys.argv[1]), False)
    with open(int(sys.argv[1]), "wb") as messages:
        try:
            _tell(messages, result=_work(request, messages), counters=asdict(_own_counters()))
        except TinyQMoEError as error:
            _tell(messages, error=type(error).__name__, message=str(error), attributes=vars(error))
        except Exception as error:
            refused = isinstance(error, MemoryError) or (
                isinstance(error, OSError) and error.errno == errno.ENOMEM
            )
            _tell(messages, out_of_memory=refused, failure=traceback.format_exc())


def _work(request: dict[str, Any], messages: BinaryIO) -> dict[str, Any]:
    """Result of the task in a request."""
    signal.alarm(request["step_seconds"])  # ends the process, also in the middle of native code
    module_name, _, name = request["task"].partition(":")
    module = importlib.import_module(module_name)
    if hasattr(module, "prepare"):
        module.prepare(request["arguments"])
    cached = {file: drop_from_page_cache(Path(file)) for file in request["files"]}
    at_join = _join(request["join"])
    _tell(messages, joined=asdict(at_join), cached_bytes=sum(cached.values()))

    def report_phase(phase: str, done: int = 0, total: int = 0) -> None:
        signal.alarm(request["step_seconds"])
        _tell(messages, phase=phase, done=done, total=total, counters=asdict(_own_counters()))

    result: dict[str, Any] = getattr(module, name)(request["arguments"], report_phase)
    return result


def _join(how: str | int) -> Counters:
    """Counters at the moment it comes under the limit, as small as it can be.

    Freed memory that is reused would not be counted again.
    """
    release_free_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _own_counters()
    if isinstance(how, str):
        Path(how).write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (before.data_bytes + how,) * 2)
    return before


def _own_counters() -> Counters:
    """Counters of this process."""
    now = counters()
    assert now is not None, "a process that asks is there"
    return now


def forbid_locking() -> None:
    """Forbids this process to lock pages.

    ExecuTorch's loader for Python locks the pages it maps, and goes on where that fails, as it does
    on a phone. Locked pages are clean and yet cannot be evicted. Root may lock whatever the limit
    says, hence the capability.
    """
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # The sets are effective, permitted, inheritable of capabilities 0-31, then of 32-63.
    sets = (ctypes.c_uint32 * 6)()
    if _libc.capget(header, sets) == 0:
        for i in range(3):
            sets[i] &= ~(1 << _CAP_IPC_LOCK)
        _libc.capset(header, sets)


def _die_with(parent: int) -> None:
    """Makes this process end with its parent, also when that is killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent has gone")


def drop_from_page_cache(file: Path) -> int:
    """Size of what stays cached of a file that the kernel was asked to forget, in bytes.

    The file is written back first.
    """
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return cached_bytes(opened)


def cached_bytes(opened: BinaryIO) -> int:
    """Size of what lies in the page cache of a file, in bytes, by mincore."""
    n_bytes = os.fstat(opened.fileno()).st_size
    if n_bytes == 0:
        return 0
    pages = -(-n_bytes // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * pages)()
    with mmap.mmap(
        opened.fileno(), n_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    ) as mapped:
        address = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapped))
        if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), resident) != 0:
            raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(page & 1 for page in resident) * mmap.PAGESIZE


def _tell(messages: BinaryIO, **message: Any) -> None:
    """Writes one message to the parent."""
    messages.write(json.dumps(message).encode() + b"\n")
    messages.flush()


if __name__ == "__main__":
    main()

"""Tasks for tests of the sandbox. They run in its child, so this imports nothing heavy."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.errors import CodecError

PAGE = mmap.PAGESIZE
STEP = 4 << 20
Arguments = dict[str, Any]
ReportPhase = Callable[..., None]


def anonymous(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Allocates and touches `n_bytes` of anonymous memory, in the phase "touch", a piece every
    `seconds`."""
    report_phase("start")
    pieces = []
    for begin in range(0, arguments["n_bytes"], STEP):
        pieces.append(mmap.mmap(-1, STEP, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        for at in range(0, STEP, PAGE):
            pieces[-1][at] = 1
        report_phase("touch", begin, arguments["n_bytes"])
        time.sleep(arguments.get("seconds", 0))
    report_phase("end")
    return {"n_bytes": STEP * len(pieces)}


def hang(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Stays in native code, where Python's own handlers are not called."""
    report_phase("hang")
    ctypes.CDLL(None).sleep(60)
    return {}


def mapped_file(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Maps a file and reads every page of it `times` times, in the phase "read"."""
    total = 0
    with (
        Path(arguments["file"]).open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        for turn in range(arguments["times"]):
            report_phase("read", turn, arguments["times"])
            total += sum(mapped[::PAGE])
    return {"sum": total}


def one_allocation(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Asks the allocator for `n_bytes` at once."""
    report_phase("allocate")
    return {"n_bytes": len(bytearray(arguments["n_bytes"]))}


def array_after_a_tokenizer(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Reads the tokenizer of a bundle, then makes and frees an array of `n_bytes`: what is dirty
    still of the array."""
    from exporter.bundle import Bundle
    from runtime_ref.device import sandbox_tasks
    from runtime_ref.device.memory_limits import counters

    bundle = Bundle.open(Path(arguments["bundle"]))
    tokenizer = sandbox_tasks.load_tokenizer_apart(bundle)
    before = counters()
    array = bytearray(b"1") * arguments["n_bytes"]
    during = counters()
    del array
    after = counters()
    assert before is not None
    assert during is not None
    assert after is not None
    return {
        "vocab": tokenizer.get_vocab_size(),
        "during": during.anonymous_bytes - before.anonymous_bytes,
        "after": after.anonymous_bytes - before.anonymous_bytes,
    }


def locked(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Tries to lock a page, as a loader does that ignores the failure."""
    page = mmap.mmap(-1, PAGE)
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(page))
    return {"mlock": ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(PAGE))}


def codec_error(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Raises an error with a message for the user, and a part that only its class has."""
    raise CodecError("BAD_MAGIC", "this is no blob", hint="export again")


def bug(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Raises what is no error of ours."""
    raise ZeroDivisionError("a bug")


def segfault(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Reads address 0."""
    report_phase("crash")
    ctypes.string_at(0)
    return {}


def kill_itself(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """What a kill for memory looks like to a parent that does not ask the group."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def leave(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Ends without a result."""
    print("last words", flush=True)
    os._exit(3)


def wait(arguments: Arguments, report_phase: ReportPhase) -> dict[str, Any]:
    """Says that it waits, with a temporary file in hand, until it is ended."""
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="probe-"):
        report_phase("wait")
        time.sleep(600)
    return {}

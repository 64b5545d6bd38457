"""Processes that are killed, or whose disk is full, at an operation of choice (faults.c)."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

SOURCE = Path(__file__).with_suffix(".c")
CC = shutil.which("gcc") or shutil.which("clang")
READY = "ready\n"  # of a worker that has run its first command
NONE, KILL, FULL = 0, 1, 2  # kinds of faults, as in faults.c


@dataclass(frozen=True)
class End:
    """The end of a job: an exit code, -9 where it was killed; its words; its operations."""

    code: int
    words: str
    operations: int


@dataclass(frozen=True)
class Worker:
    """A process that forks for each job, so that none waits for imports."""

    process: subprocess.Popen[str]

    def run(
        self, job: str, arguments: list[Any], folder: Path, kind: int = NONE, at: int = 0
    ) -> End:
        """The end of a job of `JOBS` with a fault at an operation below `folder`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        given = [str(a) if isinstance(a, Path) else a for a in arguments]
        request = {"job": job, "arguments": given, "fault": [str(folder.resolve()), kind, at]}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return End(**json.loads(self.process.stdout.readline()))


@contextmanager
def worker(folder: Path, *warm_up: str | Path, **environment: str) -> Iterator[Worker]:
    """A worker that keeps its library in `folder`, and has run the command `warm_up`.

    What that imports, no job does.
    """
    assert CC is not None
    library = folder / "faults.so"
    command = [CC, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, str(SOURCE), "-o", str(library), "-ldl"], check=True)
    env = os.environ | environment | {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.faults", *map(str, warm_up)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == READY
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()


# ---- in the worker


def command(*arguments: str) -> int:
    """A command of the command line; its exit code."""
    from typer.testing import CliRunner

    from exporter.cli.app import app

    ended = CliRunner().invoke(app, arguments)
    print(ended.output)
    return ended.exit_code


def cache(blob: str, folder: str) -> int:
    """A product with a coded matrix whose expanded copy is kept in a folder; 0 if it is right."""
    import numpy as np

    from exporter.codec.native_residency import ResidencyManager
    from exporter.codec.native_tensor import NativeTensor

    ResidencyManager().set_cache_dir(Path(folder))
    with NativeTensor(np.fromfile(blob, np.uint8)) as tensor:
        levels = tensor.decode_rows().astype(np.float32)
        x, ones = (
            np.ones((1, tensor.info.cols), np.float32),
            np.ones((tensor.info.rows, 1), np.float32),
        )
        made = tensor.linear_f32(x, ones, tensor.info.cols, threads=1)
    return int(not np.array_equal(made, levels.sum(1)[None]))


def download(repo: str, folder: str) -> int:
    """A checkpoint of the hub, or of what stands for it, into a cache; 0 if it is there."""
    from huggingface_hub import constants, utils

    from exporter.checkpoint.folder import locate
    from exporter.errors import TinyQMoEError

    constants.HF_HUB_CACHE = folder
    utils.logging.set_verbosity(100)  # what the library logs of a full disk is not our message
    try:
        print(locate(repo).path)
    except TinyQMoEError as error:
        print(error)
        return error.exit_code
    return 0


JOBS: dict[str, Callable[..., int]] = {"command": command, "cache": cache, "download": download}


def _in_child(request: dict[str, Any], answer: int) -> None:
    library = ctypes.CDLL(None)
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long]
    library.fault_count.restype = ctypes.c_long
    words = io.StringIO()
    with redirect_stdout(words), redirect_stderr(words):
        folder, kind, at = request["fault"]
        library.fault_arm(folder.encode(), kind, at)
        try:
            code = JOBS[request["job"]](*request["arguments"])
        except BaseException:
            traceback.print_exc()
            code = 70
    result = {"code": code, "words": words.getvalue(), "operations": library.fault_count()}
    os.write(answer, json.dumps(result).encode())


def _serve() -> None:
    import torch

    torch.set_num_threads(1)  # a fork has no threads but its own
    with redirect_stdout(sys.stderr):
        assert command(*sys.argv[1:]) == 0
    print(READY, end="", flush=True)
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _in_child(json.loads(line), write)
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            said = file.read()
        _, status = os.waitpid(child, 0)
        killed = {"code": -signal.SIGKILL, "words": "", "operations": 0}
        assert said or os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status
        print(json.dumps(json.loads(said) if said else killed), flush=True)


if __name__ == "__main__":
    _serve()

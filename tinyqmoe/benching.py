"""Benchmarks of a package on this machine: speed by context, threads and residency, and memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import UsageError
from tinyqmoe.packages import PackageInUse, expanded_bytes, no_progress, residency_for

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from exporter.progress import Progress
    from runtime_ref.generate import Runner
    from runtime_ref.residency import Mode, Residency


@dataclass(frozen=True)
class Speed:
    """Speed of several rounds in tokens a second: the median, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, n_tokens: int, seconds: Sequence[float]) -> Speed:
        """Speed of rounds of `n_tokens` each."""
        rates = [n_tokens / s for s in seconds]
        return cls(statistics.median(rates), min(rates), max(rates))


@dataclass(frozen=True)
class BenchPoint:
    """Speed where `context` positions are filled.

    A token reads `read_bytes` of weights and cache; `bandwidth_share` is what that is of the read
    bandwidth, at the median.
    """

    context: int
    prefill: Speed
    decode: Speed
    read_bytes: int
    bandwidth_share: float


@dataclass(frozen=True)
class BenchRun:
    """A package that was opened once. `resident_bytes`: all memory of the process at the end.

    `threads` share a product: those that were asked for, or the runtime's own; None where it does
    not tell. `load_ms` is the time to open it, without the verification of its files. The bandwidth
    is what as many threads, else one for each core, read of memory, in bytes a second.
    """

    residency: Mode
    threads: int | None
    load_ms: float
    expanded_bytes: int
    resident_bytes: int
    bandwidth: float
    points: list[BenchPoint]


@dataclass(frozen=True)
class Bench:
    """Runs of a package, and what they have in common."""

    model: str
    package: str
    machine: str
    prompt_tokens: int
    new_tokens: int
    rounds: int
    runs: list[BenchRun]

    def to_dict(self) -> dict[str, Any]:
        """Bench as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class BenchSettings:
    """What a bench measures: every residency with every number of threads, at every context.

    Without residencies or threads it is what a run takes. Each round feeds `prompt_tokens` at once,
    and then `new_tokens` one by one. Raises UsageError.
    """

    residencies: Sequence[Mode] = ()
    threads: Sequence[int] = ()
    contexts: Sequence[int] = (0,)
    prompt_tokens: int = 128
    new_tokens: int = 32
    rounds: int = 5

    def __post_init__(self) -> None:
        counts = (*self.threads, self.prompt_tokens, self.new_tokens, self.rounds)
        if min(counts) < 1 or min(self.contexts) < 0:
            what = "threads, tokens and rounds of a bench are positive, contexts not negative"
            raise UsageError(what, hint="give numbers from 1 up, and contexts from 0 up")


def bench(
    bundle: Bundle | str | Path,
    settings: BenchSettings | None = None,
    *,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Bench:
    """A benchmark of a package on this machine; of a path, the files that are used are verified.

    `backend` is as for `open_runner`. What a token means does not change what it costs: the tokens
    are any. Raises UsageError, ContextError where a round does not fit the context, and what
    `open_runner` raises.
    """
    from runtime_ref import machine, runners

    settings, progress = settings or BenchSettings(), progress or no_progress
    package = PackageInUse(bundle, backend)
    modes: Sequence[Mode | None] = settings.residencies or (None,)
    counts: Sequence[int | None] = settings.threads or (None,)
    wanted = list(product(modes, counts))
    runs = []
    for done, (mode, threads) in enumerate(wanted):
        progress("measure speed", done, len(wanted))
        runs.append(_run(package, settings, residency_for(package.artifact, mode), threads))
    return Bench(
        package.bundle.manifest.model.name,
        runners.module(package.artifact.format).NAME,
        machine.name(),
        settings.prompt_tokens,
        settings.new_tokens,
        settings.rounds,
        runs,
    )


def _run(
    package: PackageInUse, settings: BenchSettings, placed: Residency, threads: int | None
) -> BenchRun:
    from exporter.memory import resident_bytes
    from runtime_ref import machine, runners
    from runtime_ref.device.projection import token_traffic

    package.wait()
    shared = threads or runners.module(package.artifact.format).default_threads()
    readers = shared or len(os.sched_getaffinity(0))
    before = machine.read_bandwidth(readers)
    start = time.perf_counter()
    runner = package.open(placed, threads, no_progress)
    loaded = time.perf_counter()
    vocabulary = runner.forward([0], 0).size  # and the first use of everything
    speeds = [_speeds(runner, settings, context, vocabulary) for context in settings.contexts]
    bandwidth = max(before, machine.read_bandwidth(readers))
    points = []
    for context, (prefill, decode) in zip(settings.contexts, speeds, strict=True):
        filled = context + settings.new_tokens // 2
        traffic = token_traffic(package.bundle.manifest, package.artifact, placed, filled)
        read = traffic.weights_bytes + traffic.kv_bytes
        share = decode.median * read / bandwidth
        points.append(BenchPoint(context, prefill, decode, read, share))
    return BenchRun(
        placed.mode,
        shared,
        (loaded - start) * 1e3,
        expanded_bytes(runner),
        resident_bytes(),
        bandwidth,
        points,
    )


def _speeds(
    runner: Runner, settings: BenchSettings, context: int, vocabulary: int
) -> tuple[Speed, Speed]:
    """Speeds of prefill and of decoding behind `context` positions. Raises ContextError."""
    from runtime_ref.generate import check_room

    longest = max(settings.prompt_tokens, settings.new_tokens)
    tokens = [(7 * i + 1) % vocabulary for i in range(context + longest)]
    check_room(tokens, 0, runner.context)
    if context:
        runner.forward(tokens[:context], 0)
    prompt = tokens[context : context + settings.prompt_tokens]
    new = tokens[context : context + settings.new_tokens]

    def decode() -> None:
        for i, token in enumerate(new):
            runner.forward([token], context + i)

    prefills, decodes = [], []
    for _ in range(settings.rounds):
        prefills.append(_seconds(lambda: runner.forward(prompt, context)))
        decodes.append(_seconds(decode))
    return Speed.of(len(prompt), prefills), Speed.of(len(new), decodes)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

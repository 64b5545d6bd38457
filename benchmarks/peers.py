"""Prints the speed of packages beside llama.cpp's, or beside that of ExecuTorch with XNNPACK:
`python -m benchmarks.peers OUT=Q8_0 OUT2=Q4_K_M OUT=8da8w OUT2=8da4w`.

Each bundle is measured beside a file of its shape and that type, which is made in --scratch when it
is not there. Rounds alternate between all engines, so what else the machine does meets all alike. A
speed is the median of the rounds, and a ratio the median of the ratios in each round. llama.cpp
takes the package llama-cpp-python: see benchmarks/llama_cpp_speed.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import gguf_of_shape, xnnpack_of_shape
from benchmarks.rates import Rates, Setting
from exporter.bundle import Bundle, Manifest
from exporter.errors import MissingComponentError, TinyQMoEError, UsageError
from runtime_ref import machine
from tinyqmoe import BenchSettings, bench


@dataclass(frozen=True)
class Peer:
    """What packages are measured beside.

    module: it has `rates`, and needs what the peer is. has: whether there is a type of a name.
    make: a file of a bundle's shape and a type in a folder, made unless it is there.
    """

    name: str
    module: str
    has: Callable[[str], bool]
    make: Callable[[Manifest, str, Path], Path]

    def rates(self) -> Callable[[Path, Setting], Rates]:
        """What measures a file. Raises MissingComponentError."""
        try:
            module = import_module(self.module)
        except ModuleNotFoundError as error:
            what = f"{self.name} is not measured without the module {error.name}"
            raise MissingComponentError(what, hint=f"install it: see {self.module}") from error
        measured: Callable[[Path, Setting], Rates] = module.rates
        return measured


PEERS = (
    Peer("llama.cpp", "benchmarks.llama_cpp_speed", gguf_of_shape.has, gguf_of_shape.quantized),
    Peer("XNNPACK", "benchmarks.xnnpack_speed", xnnpack_of_shape.has, xnnpack_of_shape.made),
)


def peer_of(kind: str) -> Peer:
    """The peer that has a type. Raises UsageError."""
    for peer in PEERS:
        if peer.has(kind):
            return peer
    names = " or ".join(peer.name for peer in PEERS)
    raise UsageError(f"{kind!r} is no type of {names}", hint="give one such as Q8_0 or 8da8w")


@dataclass
class Row:
    """One engine with one package or file: its size in bytes, and its rates round by round."""

    model: str
    engine: str
    threads: int
    context: int
    n_bytes: int
    rounds: list[Rates] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Median of a rate over the rounds."""
        return statistics.median(getattr(rates, name) for rates in self.rounds)

    def ratio(self, name: str, peer: Row) -> float:
        """Median over the rounds of this rate in the peer's."""
        pairs = zip(self.rounds, peer.rounds, strict=True)
        return statistics.median(getattr(a, name) / getattr(b, name) for a, b in pairs)


@dataclass
class Group:
    """A peer and our engines, all measured in turn with one setting."""

    peer: Row
    ours: list[Row]


def measure_ours(bundle: Bundle, engine: str, setting: Setting) -> Rates:
    """Rates of a package in an engine that `tinyqmoe bench` knows. Raises TinyQMoEError."""
    settings = BenchSettings(
        threads=[setting.threads] if engine == "native" else (),
        contexts=[setting.context],
        prompt_tokens=setting.prompt_tokens,
        new_tokens=setting.new_tokens,
        rounds=setting.repetitions,
    )
    point = bench(bundle, settings, backend=engine).runs[0].points[0]
    return Rates(point.decode.median, point.prefill.median)


def table(groups: Sequence[Group]) -> str:
    """Groups as a Markdown table."""
    columns = ("model", "engine", "threads", "context", "MB", "decode", "", "prefill", "")
    lines = [f"| {' | '.join(columns)} |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for group in groups:
        for row in (group.peer, *group.ours):
            cells = [row.model, row.engine, row.threads, f"{row.context:,}", row.n_bytes // 10**6]
            for name in ("decode", "prefill"):
                ratio = "" if row is group.peer else f"{row.ratio(name, group.peer):.2f}x"
                cells += [f"{row.median(name):,.1f}", ratio]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def as_json(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Groups as plain values, with every round."""
    return [asdict(group) for group in groups]


def measure(bundle: Bundle, kind: str, setting: Setting, arguments: argparse.Namespace) -> Group:
    """A bundle's package beside a file of a type, in rounds that alternate."""
    beside = peer_of(kind)
    peer_rates = beside.rates()
    file = beside.make(bundle.manifest, kind, arguments.scratch)
    at = (setting.threads, setting.context)
    name = bundle.path.name
    peer = Row(name, f"{beside.name} {kind}", *at, file.stat().st_size)
    all_cores = setting.threads == len(os.sched_getaffinity(0))
    engines = ["native", "executorch"] if all_cores else ["native"]  # whose pool takes all cores
    size = (bundle.path / bundle.artifact("pte").path).stat().st_size
    ours = [Row(name, engine, *at, size) for engine in engines]
    for _ in range(arguments.rounds):
        peer.rounds.append(peer_rates(file, setting))
        for row in ours:
            row.rounds.append(measure_ours(bundle, row.engine, setting))
    return Group(peer, ours)


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", metavar="BUNDLE=TYPE")
    parser.add_argument("--scratch", type=Path, default=Path("build/peers"))
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--context", type=int, nargs="+", default=[0])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=2, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measured(arguments: argparse.Namespace) -> list[Group]:
    """All pairs with all settings. Raises TinyQMoEError."""
    pairs = [pair.rpartition("=")[::2] for pair in arguments.pairs]
    for _, kind in pairs:
        peer_of(kind).rates()  # before the first is measured for minutes
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    counts = (arguments.prompt_tokens, arguments.new_tokens, arguments.repetitions)
    groups = []
    for path, kind in pairs:
        bundle = Bundle.open(Path(path))
        for threads in arguments.threads:
            for context in arguments.context:
                setting = Setting(threads, context, *counts)
                groups.append(measure(bundle, kind, setting, arguments))
    return groups


def main() -> None:
    arguments = parsed_arguments()
    try:
        groups = measured(arguments)
    except TinyQMoEError as error:
        raise SystemExit(str(error)) from error
    print(
        f"{machine.name()}; tokens a second, prefill of {arguments.prompt_tokens}; "
        f"medians of {arguments.rounds} rounds that alternate\n"
    )
    print(table(groups))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(groups), indent=1))


if __name__ == "__main__":
    main()

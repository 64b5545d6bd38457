"""Tasks that run in a sandbox: `generate`, `decode`, `answer_calls` and `parity`.

`sandbox.run("runtime_ref.device.sandbox_tasks:generate", ...)` runs one. Arguments are plain
values. Common to both: `bundle`, a path; `format` of the artifact; `residency`, from `plain`.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.bundle import REFERENCE, Artifact, Bundle
from exporter.memory import release_free_memory
from runtime_ref import residency as residencies
from runtime_ref import runners
from runtime_ref.device.socket_calls import HEADER, receive
from runtime_ref.generate import Limits, Runner, Sampling, TextStream
from runtime_ref.generate import generate as generate_tokens
from runtime_ref.parity import Check, ParityReport, Tolerance, check_parity, work_tokens
from runtime_ref.prompts import load_tokenizer
from runtime_ref.residency import Residency

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ReportPhase = Callable[..., None]  # (phase, done=0, total=0)


def plain(residency: Residency) -> dict[str, Any]:
    """Residency as values that JSON can hold."""
    return asdict(residency) | {"cache_dir": residency.cache_dir and str(residency.cache_dir)}


def prepare(arguments: dict[str, Any]) -> None:
    """Imports what the task needs and an app has not."""
    import safetensors  # noqa: F401
    import tokenizers.decoders  # noqa: F401

    runners.module(arguments["format"]).prepare()


def files_to_drop(bundle: Bundle, artifact: Artifact, residency: Residency) -> list[Path]:
    """Files that a task reads, sorted.

    They are the package, expanded too where it is, the reference, the tokenizer and expanded
    weights.
    """
    package = bundle.file(artifact.path)
    files = [file for file in package.rglob("*") if file.is_file()] if package.is_dir() else []
    files += map(bundle.file, [*artifact.files, REFERENCE, "tokenizer.json"])
    if (folder := residency.of(bundle).folder) is not None:
        coded = residencies.coded_tensors(bundle, artifact)
        files += [folder / tensor.file_name for tensor in coded]
    return sorted({file for file in files if file.is_file()})


def generate(arguments: dict[str, Any], report_phase: ReportPhase) -> dict[str, Any]:
    """Tokens, text, milliseconds and speed of a generation from `prompt`, token ids.

    It has the `limits`, chosen with `sampling`. The tokenizer comes first, and what
    reading it took is returned: an app that does so needs less at its peak.
    """
    report_phase("load")
    begin = time.perf_counter()
    bundle = Bundle.open(Path(arguments["bundle"]))
    tokenizer = load_tokenizer_apart(bundle) if bundle.file("tokenizer.json").is_file() else None
    runner = _open(bundle, arguments, report_phase)
    loaded = time.perf_counter()
    prompt, limits = arguments["prompt"], Limits(**arguments["limits"])
    watched = _Watched(runner, len(prompt), limits.max_new_tokens, report_phase)
    sampling = Sampling(**arguments["sampling"])
    if tokenizer is None:
        result = _tokens_only(
            watched,
            prompt,
            limits.max_new_tokens,
            sampling,
            bundle.manifest.interface.eos_token_ids,
        )
    else:
        text = TextStream(bundle, watched, prompt, limits, sampling, tokenizer)
        result = asdict(text.result)
    return result | {"load_ms": (loaded - begin) * 1e3, "residency": _stats(runner)}


def decode(arguments: dict[str, Any], report_phase: ReportPhase) -> dict[str, Any]:
    """`new_tokens` tokens, whatever they mean, and the milliseconds that they took."""
    report_phase("load")
    bundle = Bundle.open(Path(arguments["bundle"]))
    runner, n = _open(bundle, arguments, report_phase), arguments["new_tokens"]
    watched = _Watched(runner, 1, n, report_phase)
    result = _tokens_only(watched, [0], n, Sampling(), ())
    return result | {"residency": _stats(runner)}


def answer_calls(arguments: dict[str, Any], report_phase: ReportPhase) -> dict[str, Any]:
    """Number of calls of `forward` that were answered over the socket at `address`.

    The other side closes the socket when it wants no more. The tokenizer is held as an app does.
    """
    report_phase("load")
    bundle = Bundle.open(Path(arguments["bundle"]))
    held = load_tokenizer_apart(bundle) if bundle.file("tokenizer.json").is_file() else None
    runner, calls = _open(bundle, arguments, report_phase), 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(arguments["address"])
        signal.alarm(0)
        while header := connection.recv(HEADER.size, socket.MSG_WAITALL):
            n_tokens, position = HEADER.unpack(header)
            tokens = np.frombuffer(receive(connection, 4 * n_tokens), "<i4").tolist()
            report_phase("decode" if n_tokens == 1 else "prefill")
            connection.sendall(runner.forward(tokens, position).astype("<f4").tobytes())
            calls += 1
            signal.alarm(0)  # who asks may take any time
    del held
    return {"calls": calls, "residency": _stats(runner)}


def load_tokenizer_apart(bundle: Bundle) -> Tokenizer:
    """Tokenizer, read in a thread that has a heap of its own.

    Reading leaves large holes. glibc would put arrays into them and then not return these, as the
    allocators of phones do: they keep large blocks apart from small ones.
    """
    with ThreadPoolExecutor(1) as thread:
        tokenizer = thread.submit(load_tokenizer, bundle).result()
    release_free_memory()
    return tokenizer


class _Watched:
    """Runner that reports how far it is."""

    def __init__(
        self, runner: Runner, prompt_tokens: int, limit: int, report_phase: ReportPhase
    ) -> None:
        self._runner, self._prompt_tokens, self._limit, self._report = (
            runner,
            prompt_tokens,
            limit,
            report_phase,
        )
        self.name, self.artifact, self.context = runner.name, runner.artifact, runner.context
        self.file = runner.file

    def forward(self, tokens: Sequence[int], position: int) -> Any:
        """Logits of the last position, float32 [V], as the runner gives them."""
        if position == 0:
            self._report("prefill", 0, self._prompt_tokens)
        else:
            self._report("decode", position - self._prompt_tokens + 1, self._limit)
        return self._runner.forward(tokens, position)


def _tokens_only(
    runner: Runner, prompt: Sequence[int], limit: int, sampling: Sampling, eos: Sequence[int]
) -> dict[str, Any]:
    """Generation of a model without a tokenizer, with the keys of `generate.RunResult`."""
    tokens: list[int] = []
    begin = first = time.perf_counter()
    for token in generate_tokens(runner, prompt, limit, sampling, eos):
        if not tokens:
            first = time.perf_counter()
        tokens.append(token)
    end = time.perf_counter()
    return {
        "prompt_tokens": list(prompt),
        "tokens": tokens,
        "text": "",
        "stopped": "limit",
        "prefill_ms": (first - begin) * 1e3,
        "decode_ms": (end - first) * 1e3,
    }


def parity(arguments: dict[str, Any], report_phase: ReportPhase) -> dict[str, Any]:
    """All checks of `parity.check_parity`, as `ParityReport.to_dict` gives them."""
    report_phase("load")
    bundle = Bundle.open(Path(arguments["bundle"]))
    runner = _open(bundle, arguments, report_phase)
    total, done = work_tokens(bundle, runner.artifact), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        report_phase("parity", done, total)

    report_phase("parity", 0, total)
    return check_parity(bundle, runner, advance).to_dict() | {"residency": _stats(runner)}


def parity_report(result: dict[str, Any]) -> ParityReport:
    """Report of a result of `parity`, as it was made."""
    declared = {name: result[name] for name in ("backend", "activations", "kv_type")}
    checks = [Check(**check) for check in result["checks"]]
    return ParityReport(**declared, tolerance=Tolerance(**result["tolerance"]), checks=checks)


def _open(bundle: Bundle, arguments: dict[str, Any], report_phase: ReportPhase) -> Runner:
    """Runner of the package that the arguments name."""
    wanted = arguments["residency"]
    folder = wanted["cache_dir"] and Path(wanted["cache_dir"])
    artifact = runners.package(bundle.manifest, arguments["format"])
    residency = Residency(**wanted | {"cache_dir": folder})
    return runners.open_runner(bundle, artifact, residency, report_phase)


def _stats(runner: Runner) -> dict[str, int] | None:
    """Memory that the core held and what it did; None for a package that does not use it."""
    core = runners.module(runner.artifact.format).core()
    return None if core is None else asdict(residencies.stats(core))

"""What runs in a sandbox: `sandbox.run("runtime_ref.sandbox_tasks:generate", ...)` and `:parity`.

Arguments are plain values. Common to both: `bundle`, a path, and `format` of the artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.bundle import REFERENCE, Artifact, Bundle
from runtime_ref.generate import Runner, Sampling
from runtime_ref.generate import generate as generate_tokens
from runtime_ref.parity import Check, ParityReport, Tolerance, check_parity, work_tokens

ReportPhase = Callable[..., None]  # (phase, done=0, total=0)


def prepare(arguments: dict[str, Any]) -> None:
    """Imports what the task needs and an app has not."""
    import safetensors.numpy  # noqa: F401

    if arguments["format"] == "pte":
        import torch

        from runtime_ref import executorch_runner, kernels  # noqa: F401

        kernels.load()
        torch.zeros(1).numpy()
    else:
        from coremltools.proto import MIL_pb2, Model_pb2, NeuralNetwork_pb2  # noqa: F401

        from runtime_ref import coreml_runner, mil_program, neural_network  # noqa: F401


def files_to_drop(bundle: Bundle, artifact: Artifact) -> list[Path]:
    """What a task reads of a bundle: the package, expanded too where it is, and the reference."""
    package = bundle.file(artifact.path)
    expanded = [file for file in package.rglob("*") if file.is_file()] if package.is_dir() else []
    return sorted({*map(bundle.file, [*artifact.files, REFERENCE]), *expanded})


def generate(arguments: dict[str, Any], report_phase: ReportPhase) -> dict[str, Any]:
    """Greedy generation from `prompt`, token ids, of at most `max_new_tokens`: tokens, milliseconds and speed."""
    begin = time.perf_counter()
    bundle, runner = _open(arguments, report_phase)
    loaded = first = time.perf_counter()
    limit = arguments["max_new_tokens"]
    tokens: list[int] = []
    report_phase("prefill", 0, len(arguments["prompt"]))
    eos = bundle.manifest.interface.eos_token_ids
    for token in generate_tokens(runner, arguments["prompt"], limit, Sampling(), eos):
        if not tokens:
            first = time.perf_counter()
        tokens.append(token)
        report_phase("decode", len(tokens), limit)
    decode_ms = (time.perf_counter() - first) * 1e3
    return {
        "tokens": tokens,
        "load_ms": (loaded - begin) * 1e3,
        "prefill_ms": (first - loaded) * 1e3,
        "decode_ms": decode_ms,
        "decode_tokens_per_second": (len(tokens) - 1) * 1e3 / decode_ms if len(tokens) > 1 else 0.0,
    }


def parity(arguments: dict[str, Any], report_phase: ReportPhase) -> dict[str, Any]:
    """All checks of `parity.check_parity`, as `ParityReport.to_dict` gives them."""
    bundle, runner = _open(arguments, report_phase)
    total, done = work_tokens(bundle, runner.artifact), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        report_phase("parity", done, total)

    report_phase("parity", 0, total)
    return check_parity(bundle, runner, advance).to_dict()


def parity_report(result: dict[str, Any]) -> ParityReport:
    """What `parity` gave, as it was."""
    tolerances = {name: Tolerance(**gates) for name, gates in result["tolerances"].items()}
    checks = [Check(**check) for check in result["checks"]]
    return ParityReport(result["backend"], result["activations"], tolerances, checks)


def _open(arguments: dict[str, Any], report_phase: ReportPhase) -> tuple[Bundle, Runner]:
    """The one place where a package is loaded, and so where its residency is to be set."""
    report_phase("load")
    bundle = Bundle.open(Path(arguments["bundle"]))
    artifact = bundle.artifact(arguments["format"])
    if artifact.backend == "coreml":
        from runtime_ref import coreml_runner

        return bundle, coreml_runner.open_runner(bundle, artifact, lambda *n: report_phase("expand the weights", *n))
    from runtime_ref.executorch_runner import ExecuTorchRunner

    return bundle, ExecuTorchRunner(bundle)

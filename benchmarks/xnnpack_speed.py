"""The speed of ExecuTorch's XNNPACK with a program of benchmarks/xnnpack_of_shape.py.

Program, cache and pool of threads are those of the ExecuTorch of this process, as for ours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.rates import Rates, Setting
from benchmarks.xnnpack_of_shape import CONTEXT
from exporter.errors import MissingComponentError, UsageError
from exporter.quiet import quiet
from runtime_ref.executorch.runtime import Runtime

CALL_TOKENS = CONTEXT - 1  # that a program takes at once
# Each loads operators into this process, beside those that are always there.
OPERATORS = {
    "executorch.extension.llm.custom_ops.custom_ops": "llama::custom_sdpa.out",
    "executorch.kernels.quantized": "quantized_decomposed::embedding_4bit.dtype_out",
}


def load_operators() -> None:
    """Loads what a program calls beside XNNPACK. Raises MissingComponentError."""
    with quiet():
        for module in OPERATORS:
            import_module(module)
    available = Runtime.get().operator_registry.operator_names
    for module, operator in OPERATORS.items():
        if operator not in available:
            what = f"{module} of this executorch does not bring {operator}"
            raise MissingComponentError(what, hint="pip install executorch==1.5.1")


class XnnpackProgram:
    """A program that is loaded, with its cache. Raises MissingComponentError, RuntimeError."""

    def __init__(self, file: Path) -> None:
        load_operators()
        self._program = Runtime.get().load_program(file)
        self._method = self._program.load_method("forward")

    def feed(self, tokens: Sequence[int], position: int) -> torch.Tensor:
        """Logits behind the last token, which are the program's until the next call.

        Tokens are run at `position` onward, in calls of at most CALL_TOKENS.
        """
        for begin in range(0, len(tokens), CALL_TOKENS):
            part = torch.tensor([list(tokens[begin : begin + CALL_TOKENS])])
            (logits,) = self._method.execute((part, torch.tensor([position + begin])))
        return logits.reshape(-1)


def _check(setting: Setting) -> None:
    """Raises UsageError for a setting that a program cannot be measured with."""
    if (n := Runtime.get().start_threads()) != setting.threads:
        what = f"ExecuTorch's pool has {n} threads, not {setting.threads}"
        raise UsageError(what, hint=f"measure XNNPACK with --threads {n}")
    if setting.context + max(setting.prompt_tokens, setting.new_tokens) > CONTEXT:
        raise UsageError(
            f"programs for XNNPACK have {CONTEXT:,} positions", hint="fill fewer positions"
        )


def rates(file: Path, setting: Setting) -> Rates:
    """Rates with a program. What a token means does not change what it costs: they are any.

    Raises UsageError, MissingComponentError.
    """
    _check(setting)
    program = XnnpackProgram(file)
    prompt = [(7 * i + 1) % 1000 for i in range(setting.prompt_tokens)]
    program.feed(prompt, 0)  # the first use of everything
    program.feed([(7 * i + 1) % 1000 for i in range(setting.context)] or [1], 0)
    prefill, decode = [], []
    for _ in range(setting.repetitions):
        start = time.perf_counter()
        program.feed(prompt, setting.context)
        prefill.append(setting.prompt_tokens / (time.perf_counter() - start))
        start = time.perf_counter()
        for i in range(setting.new_tokens):
            program.feed([(7 * i + 1) % 1000], setting.context + i)
        decode.append(setting.new_tokens / (time.perf_counter() - start))
    return Rates(statistics.median(decode), statistics.median(prefill))

"""llama.cpp's speed with a GGUF file, by the package llama-cpp-python.

Its source distribution builds llama.cpp for the machine where it is installed:
`CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python`.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from benchmarks.rates import Rates, Setting
from exporter.errors import ExportError

BATCH_TOKENS = 512  # of a call, as llama-bench has it


def quantize(plain: Path, out: Path, kind: str) -> None:
    """Writes a file of a type such as Q8_0, with the mixture that llama-quantize chooses.

    Raises ExportError.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    result = llama_cpp.llama_model_quantize(*map(bytes, (plain, out)), ctypes.byref(parameters))
    if result != 0:
        raise ExportError(f"{plain}: llama.cpp does not make it {kind}", hint="give another type")


class LlamaCpp:
    """A model that is open, with a context of as many positions as a setting fills."""

    def __init__(self, file: Path, setting: Setting) -> None:
        model_options = llama_cpp.llama_model_default_params()
        self.model: Any = llama_cpp.llama_model_load_from_file(bytes(file), model_options)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = setting.context + max(setting.prompt_tokens, setting.new_tokens)
        options.n_batch = options.n_ubatch = BATCH_TOKENS
        options.n_threads = options.n_threads_batch = setting.threads
        self.context: Any = llama_cpp.llama_init_from_model(self.model, options)

    def close(self) -> None:
        """Gives its memory back."""
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def feed(self, tokens: Sequence[int]) -> None:
        """Decodes tokens behind those that are there, in calls of at most BATCH_TOKENS."""
        for begin in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[begin : begin + BATCH_TOKENS]
            ids = (llama_cpp.llama_token * len(part))(*part)
            batch = llama_cpp.llama_batch_get_one(ids, len(part))
            if llama_cpp.llama_decode(self.context, batch) != 0:
                raise ExportError("llama.cpp refused tokens", hint="fill fewer positions")
        llama_cpp.llama_synchronize(self.context)

    def forget(self, position: int) -> None:
        """Empties the cache from a position on."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_seq_rm(memory, 0, position, -1)


def rates(file: Path, setting: Setting) -> Rates:
    """Rates with a file. What a token means does not change what it costs: they are any."""
    opened = LlamaCpp(file, setting)
    opened.feed([1])  # the first use of everything
    opened.forget(0)
    opened.feed([(7 * i + 1) % 1000 for i in range(setting.context)])
    prefill, decode = [], []
    for _ in range(setting.repetitions):
        start = time.perf_counter()
        opened.feed([(7 * i + 1) % 1000 for i in range(setting.prompt_tokens)])
        prefill.append(setting.prompt_tokens / (time.perf_counter() - start))
        opened.forget(setting.context)
        start = time.perf_counter()
        for i in range(setting.new_tokens):
            opened.feed([(7 * i + 1) % 1000])
        decode.append(setting.new_tokens / (time.perf_counter() - start))
        opened.forget(setting.context)
    opened.close()
    return Rates(statistics.median(decode), statistics.median(prefill))


def decode_alone(arguments: dict[str, Any], report_phase: Callable[..., None]) -> dict[str, Any]:
    """Rate of decoding a file that is opened here, in tokens a second: a task of the sandbox."""
    report_phase("generate")
    setting = Setting(arguments["threads"], 0, 0, arguments["tokens"] + 1, 1)
    opened = LlamaCpp(Path(arguments["file"]), setting)
    opened.feed([1])  # the first reads all that is not there
    start = time.perf_counter()
    for i in range(arguments["tokens"]):
        opened.feed([(7 * i + 1) % 1000])
        report_phase("generate", i + 1, arguments["tokens"])
    return {"decode": arguments["tokens"] / (time.perf_counter() - start)}

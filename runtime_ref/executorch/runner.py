"""Runner of `.pte` files: the real ExecuTorch runtime with the real C++ operators."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Artifact, Bundle
from exporter.errors import BundleError, MissingComponentError
from exporter.progress import Progress
from runtime_ref.executorch import kernels
from runtime_ref.executorch.runtime import Program, Runtime
from runtime_ref.generate import Runner, check_room
from runtime_ref.memory import MB, Holder, ModelShape, RuntimeMemory
from runtime_ref.trial import try_once

NAME = "executorch"
HAS_RESIDENCY = True
HAS_THREADS = False
SPEED_IS_REAL = True

# Measured by benchmarks/memory_prediction.py.
THREADS = 2  # that share a product; each has scratch of its own
RUNTIME_BYTES = int(0.6 * MB)
TRIAL_SECONDS = 600.0  # for one token, which takes less than a second
CALL_BYTES = 3400  # of a call of an operator in the program


def build(progress: Progress) -> None:
    """Compiles the kernels, the first time on this machine. Raises MissingComponentError."""
    progress("compile the kernels, the first time", 0, 0)
    kernels.build()


def prepare() -> None:
    """Imports PyTorch and the runtime, and loads the kernels. Raises MissingComponentError."""
    import torch

    core()
    torch.zeros(1).numpy()


def core() -> ctypes.CDLL | None:
    """Handle of the kernel library. Raises MissingComponentError."""
    return kernels.load()


def open(bundle: Bundle, artifact: Artifact, threads: int | None, progress: Progress) -> Runner:
    """Runner of a program that is loaded. Raises BundleError, MissingComponentError."""
    return ExecuTorchRunner(bundle)


def default_threads() -> int:
    """Number of threads of ExecuTorch's pool. Raises MissingComponentError."""
    core()
    return Runtime.get().start_threads()


def memory(artifact: Artifact, shape: ModelShape) -> RuntimeMemory:
    """Predicted memory of the runtime, in bytes, without the file it maps.

    From loading on, the whole arena, cache included, which a method makes when it is loaded. What
    the operators keep between calls comes with the first: a product's quantized input and scratch,
    and attention's rotated queries and keys and its scores.
    """
    tokens, widest = artifact.prefill_tokens, max(shape.intermediate, shape.hidden)
    planned = artifact.details["arena_bytes"] - artifact.kv_cache_bytes
    program = CALL_BYTES * sum(artifact.operators.values())
    products = 4 * tokens * widest + THREADS * 4 * (4 * widest + tokens * widest // 32)
    attention = 4 * tokens * 2 * shape.hidden + THREADS * 4 * 4 * shape.context
    return RuntimeMemory(
        loaded=[
            Holder("KV cache", shape.kv_cache_bytes),
            Holder("activations, as planned", planned),
            Holder("runtime", RUNTIME_BYTES + program),
        ],
        used=[Holder("scratch of products and attention", products + attention)],
    )


def try_out(bundle: Bundle, artifact: Artifact) -> None:
    """Loads the program and runs one token of it in a child process, once on this machine.

    A program is code: one that is damaged ends the process that runs it. Raises BundleError.
    """
    sha256 = next(e.sha256 for e in bundle.manifest.files if e.path == artifact.path)

    def run() -> None:
        # What is an error and no crash is met again, and told, by whoever runs it.
        with contextlib.suppress(Exception):
            ExecuTorchRunner(bundle).forward([0], 0)

    try:
        key = f"{kernels.library_path().parent.name} {sha256}"
        try_once(key, run, seconds=TRIAL_SECONDS, memory_bytes=None)
    except ValueError as error:
        what = f"{bundle.path / artifact.path} cannot be run by ExecuTorch: {error}"
        raise BundleError(what, hint="copy the bundle again, or export again") from None


class ExecuTorchRunner:
    """Runner of one loaded program with its KV cache.

    The file is memory-mapped by the runtime. Raises MissingComponentError when an operator is
    missing, BundleError when the program is not the one the manifest describes.
    """

    name = NAME

    def __init__(self, bundle: Bundle) -> None:
        self.artifact = bundle.artifact("pte")
        self.context = bundle.manifest.interface.context
        self._bundle = bundle
        library = kernels.load()
        path = self.file(self.artifact.path)
        try:
            loaded = Runtime.get().load_program(path)
        except RuntimeError as error:
            raise BundleError(
                f"ExecuTorch does not load {path}: {error}", hint="export again"
            ) from error
        _check_contract(loaded, bundle)
        self._loaded = loaded  # the method uses its memory
        self._method = _load_forward(loaded, bundle)
        self._use_tensors = library.tinyqmoe_program_tensors_use
        self._tensors = library.tinyqmoe_program_tensors_new()
        # Before the program is dropped, whose bytes they borrow.
        weakref.finalize(self, library.tinyqmoe_program_tensors_free, self._tensors)

    def file(self, relative: str) -> Path:
        """Path of a file of the package; `relative` as in the manifest."""
        return self._bundle.file(relative)

    def forward(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of the last position, float32 [V].

        `tokens` are run at `position` onward, in calls of at most `prefill_tokens`. Raises
        ContextError before anything runs if they do not fit.
        """
        check_room(tokens, position, self.context)
        step = self.artifact.prefill_tokens
        for begin in range(0, len(tokens), step):
            logits = self._call(tokens[begin : begin + step], position + begin)
        return logits

    def _call(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of the last position of one call, float32 [V]. Raises BundleError."""
        import torch

        inputs = (
            torch.tensor([list(tokens)], dtype=torch.long),
            torch.tensor([position], dtype=torch.long),
        )
        self._use_tensors(self._tensors)
        try:
            (logits,) = self._method.execute(inputs)
        except RuntimeError as error:
            what = f"the program failed on {len(tokens)} tokens at position {position}: {error}"
            hint = "the lines ExecuTorch logged above name the operator; run `tinyqmoe parity`"
            raise BundleError(what, hint=hint) from error
        finally:
            self._use_tensors(None)
        last: NDArray[np.float32] = logits.numpy().reshape(-1).copy()
        return last


def _load_forward(program: Program, bundle: Bundle) -> Any:
    """Method that computes logits. Raises MissingComponentError, BundleError."""
    available = Runtime.get().operator_registry.operator_names
    if missing := sorted(set(bundle.artifact("pte").operators) - available):
        raise MissingComponentError(
            f"this runtime lacks {', '.join(missing)}", hint="run `tinyqmoe doctor`"
        )
    try:
        return program.load_method("forward")
    except RuntimeError as error:
        raise BundleError(f"ExecuTorch does not load the method of the program: {error}") from error


def _check_contract(program: Program, bundle: Bundle) -> None:
    """Compares the metadata inside the program with the manifest. Raises BundleError."""
    interface, artifact = bundle.manifest.interface, bundle.artifact("pte")
    expected: dict[str, object] = {
        "get_max_context_len": interface.context,
        "get_max_seq_len": artifact.prefill_tokens,
        "get_eos_ids": interface.eos_token_ids,
        "get_int16_activations": artifact.activations == "int16",
    }
    problems = []
    if interface.bos_token_id is not None:
        expected["get_bos_id"] = interface.bos_token_id
    elif "get_bos_id" in program.method_names:
        problems.append("get_bos_id is there, the manifest says there is no BOS token")
    for name, want in expected.items():
        if name not in program.method_names:
            problems.append(f"{name} is missing")
            continue
        method = program.load_method(name)
        got = method.execute(())
        value = list(got) if isinstance(want, list) else got[0]
        if value != want:
            problems.append(f"{name} is {value!r}, the manifest says {want!r}")
    if "forward" not in program.method_names:
        problems.append("the method `forward` is missing")
    if problems:
        what = f"{artifact.path} is not the program the manifest describes"
        raise BundleError(what, problems=problems, hint="export again")

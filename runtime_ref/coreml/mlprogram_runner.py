"""Runner of ML Programs in an interpreter: Core ML itself is on Apple's systems only."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Artifact, Bundle
from exporter.errors import BundleError
from exporter.progress import Progress
from runtime_ref.coreml import expansion
from runtime_ref.coreml.package import CoreMLPackage, check_tools
from runtime_ref.generate import Runner, check_room
from runtime_ref.memory import MB, Holder, ModelShape, RuntimeMemory

if TYPE_CHECKING:
    from torch import Tensor

NAME = "Core ML mlprogram"
HAS_RESIDENCY = False  # its weights are expanded at install, and Core ML places them
HAS_THREADS = False
SPEED_IS_REAL = False
CACHE_BYTES = 1 << 28  # of weights an ML Program keeps dense, as float32

# Measured by benchmarks/memory_prediction.py.
RUNTIME_BYTES = int(1.6 * MB)
CALL_BYTES = 4000  # of a call of an operation in the program
ROW_BYTES = 95  # of a row of a matrix: its tables and scales


def build(progress: Progress) -> None:
    """Compiles nothing: the interpreter is Python. Raises MissingComponentError."""
    check_tools()


def prepare() -> None:
    """Imports the readers of the format, and loads the decoder of its coded weights."""
    from coremltools.proto import MIL_pb2, Model_pb2  # noqa: F401

    from exporter.codec import native

    native.library()


def core() -> ctypes.CDLL | None:
    """No library: an ML Program has no products of ours."""
    return None


def open(bundle: Bundle, artifact: Artifact, threads: int | None, progress: Progress) -> Runner:
    """Runner of an ML Program, expanded first if the bundle was not. Raises BundleError."""
    return MLProgramRunner(
        bundle, artifact, lambda done, total: progress("expand the weights", done, total)
    )


def default_threads() -> None:
    """No known number of threads: NumPy's library decides."""


def memory(artifact: Artifact, shape: ModelShape) -> RuntimeMemory:
    """Predicted memory of the interpreter, in bytes, without the weight files.

    From loading on, its own form of the program, and of the tables and scales of rows. In a call,
    states, what it keeps dense (Core ML decides that for itself), scores, and a layer's MLP.
    """
    tokens = artifact.prefill_tokens
    calls = CALL_BYTES * sum(artifact.operators.values())
    scores = 9 * shape.heads * tokens * shape.context
    return RuntimeMemory(
        loaded=[Holder("runtime", RUNTIME_BYTES + calls + ROW_BYTES * shape.rows)],
        used=[
            Holder("KV cache", shape.kv_cache_bytes),
            Holder("dense weights of the interpreter", min(CACHE_BYTES, 4 * shape.weights)),
            Holder("activations", scores + 4 * 4 * tokens * shape.intermediate),
        ],
    )


class MLProgramRunner:
    """Runner of the two functions of an ML Program, which share a state.

    A bundle that was not expanded is expanded into the directory for temporary files, as long as
    the runner lives.
    """

    name = NAME

    def __init__(
        self, bundle: Bundle, artifact: Artifact, progress: Callable[[int, int], None]
    ) -> None:
        self.artifact = artifact
        self.context = bundle.manifest.interface.context
        self._root = bundle.path
        if not bundle.file(artifact.path).is_dir():
            recipe = expansion.load_recipe(bundle, artifact)
            # The directory is removed with the runner.
            self._temporary = tempfile.TemporaryDirectory(prefix="tinyqmoe-")
            self._root = Path(self._temporary.name)
            expansion.expand(bundle, recipe, self._root / recipe.package, progress)
        self._functions = self._open(self._root / artifact.path, bundle)

    def _open(self, package: Path, bundle: Bundle) -> Functions:
        """The functions of an expanded package. Raises BundleError."""
        functions = _Functions(CoreMLPackage.open(package))
        _check_interface(functions, bundle, self.artifact)
        return functions

    def file(self, relative: str) -> Path:
        """Path of a file of the package; `relative` as in the manifest."""
        return self._root / relative

    def forward(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of the last position, float32 [V].

        It is fed as an app feeds it: `prefill` with padding while its slots fit, else `decode`
        token by token. Raises ContextError.
        """
        check_room(tokens, position, self.context)
        size = self.artifact.prefill_tokens
        at = 0
        while at < len(tokens):
            whole = position + at + size <= self.context and len(tokens) - at > 1
            chunk = tokens[at : at + size] if whole else tokens[at : at + 1]
            logits = self._functions.call(chunk, position + at, size if whole else 1)
            at += len(chunk)
        return logits


class Functions(Protocol):
    """Functions of an ML Program with their state."""

    def call(self, tokens: Sequence[int], position: int, size: int) -> NDArray[np.float32]:
        """Logits of the last of `tokens`, float32 [V].

        `decode` takes one token; a `prefill` is padded to `size` tokens.
        """


def padded_inputs(tokens: Sequence[int], position: int, size: int) -> dict[str, NDArray[np.int32]]:
    """Inputs of `decode`, where `size` is 1, or of `prefill`, by name."""
    padded = np.zeros((1, size), np.int32)
    padded[0, : len(tokens)] = tokens
    inputs = {"input_ids": padded, "position": np.array([position], np.int32)}
    return inputs if size == 1 else inputs | {"last": np.array([len(tokens) - 1], np.int32)}


class _Functions:
    """Functions `decode` and `prefill` in half precision, with their state."""

    def __init__(self, package: CoreMLPackage) -> None:
        from runtime_ref.coreml.mil_program import MLProgram

        self.decode = MLProgram(package, "decode", "float16", CACHE_BYTES)
        self.prefill = self.decode.sibling("prefill")
        self.state: dict[str, Tensor] = self.decode.new_state()

    def call(self, tokens: Sequence[int], position: int, size: int) -> NDArray[np.float32]:
        """Logits of the last of `tokens`, float32 [V].

        A `prefill` is padded to `size` tokens.
        """
        function = self.decode if size == 1 else self.prefill
        outputs = function.predict(padded_inputs(tokens, position, size), self.state)
        return outputs["logits"].astype(np.float32).reshape(-1)


def _check_interface(functions: _Functions, bundle: Bundle, artifact: Artifact) -> None:
    """Compares the interface of the package with the manifest. Raises BundleError."""
    interface = bundle.manifest.interface
    problems = []
    for name, program, n in (
        ("decode", functions.decode, 1),
        ("prefill", functions.prefill, artifact.prefill_tokens),
    ):
        shapes = {key: tuple(value.shape) for key, value in program.inputs.items()}
        expected = {"input_ids": (1, n), "position": (1,)} | (
            {"last": (1,)} if name == "prefill" else {}
        )
        if shapes != expected:
            problems.append(f"{name}: inputs {shapes}, expected {expected}")
        logits = tuple(program.outputs["logits"].shape)
        if logits != (1, interface.vocab_size):
            problems.append(f"{name}: logits {logits}, the manifest says {interface.vocab_size}")
        slots = {value.shape[2] for value in program.states.values()}
        if slots != {interface.context}:
            problems.append(
                f"{name}: states of {slots} positions, the manifest says {interface.context}"
            )
    if problems:
        what = f"{artifact.path} is not the package the manifest describes"
        raise BundleError(what, problems=problems, hint="export again")

"""Runner of ML Programs in Core ML itself, which is on macOS only. It has never run there."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import COREML_REAL, Artifact, Bundle
from exporter.errors import BundleError, MissingComponentError
from exporter.progress import Progress
from exporter.quiet import quiet
from runtime_ref.coreml import mlprogram_runner
from runtime_ref.coreml.mlprogram_runner import MLProgramRunner, padded_inputs
from runtime_ref.coreml.package import check_tools
from runtime_ref.generate import Runner
from runtime_ref.memory import ModelShape, RuntimeMemory

NAME = COREML_REAL
HAS_RESIDENCY = False
HAS_THREADS = False
SPEED_IS_REAL = False  # it is a Mac's, and no phone's


def build(progress: Progress) -> None:
    """Compiles nothing. Raises MissingComponentError where there is no Core ML."""
    check_tools()
    if sys.platform != "darwin":
        raise MissingComponentError(
            "Core ML is on macOS only, and its states from macOS 15 on",
            hint="run this on a Mac, or choose --backend mlprogram, an interpreter",
        )


def prepare() -> None:
    """Imports coremltools."""
    with quiet():
        import coremltools  # noqa: F401


def core() -> ctypes.CDLL | None:
    """No library: Core ML has products of its own."""
    return None


def open(bundle: Bundle, artifact: Artifact, threads: int | None, progress: Progress) -> Runner:
    """Runner of an ML Program, expanded first if the bundle was not.

    Raises BundleError, MissingComponentError.
    """
    build(progress)
    prepare()
    return RealRunner(
        bundle, artifact, lambda done, total: progress("expand the weights", done, total)
    )


def default_threads() -> None:
    """No known number of threads: Core ML decides."""


def memory(artifact: Artifact, shape: ModelShape) -> RuntimeMemory:
    """The interpreter's prediction: what Core ML takes is not known."""
    return mlprogram_runner.memory(artifact, shape)


class RealRunner(MLProgramRunner):
    """Runner of the two functions of an ML Program in Core ML, which share a state."""

    name = NAME

    def _open(self, package: Path, bundle: Bundle) -> _CoreMLFunctions:
        return _CoreMLFunctions(package)


class _CoreMLFunctions:
    """Functions `decode` and `prefill` of a package that Core ML compiles, with their state."""

    def __init__(self, package: Path) -> None:
        from coremltools.models import MLModel

        try:
            self._decode = MLModel(str(package), function_name="decode")
            self._prefill = MLModel(str(package), function_name="prefill")
            self._state = self._decode.make_state()
        except Exception as error:  # Core ML raises what it likes
            what = f"Core ML does not load {package}: {error}"
            raise BundleError(what, hint="it needs macOS 15 or later") from error

    def call(self, tokens: Sequence[int], position: int, size: int) -> NDArray[np.float32]:
        """Logits of the last of `tokens`, float32 [V].

        A `prefill` is padded to `size` tokens.
        """
        inputs = padded_inputs(tokens, position, size)
        function = self._decode if size == 1 else self._prefill
        try:
            outputs = function.predict(inputs, state=self._state)
        except Exception as error:
            what = f"Core ML failed on {len(tokens)} tokens at position {position}: {error}"
            raise BundleError(what, hint="run `tinyqmoe parity --backend mlprogram`") from error
        return np.asarray(outputs["logits"], np.float32).reshape(-1)

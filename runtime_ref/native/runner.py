"""Runner of the weights of a `.pte`: a session of the C++ core, without ExecuTorch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import NATIVE, Artifact, Bundle
from exporter.codec.native import library
from exporter.errors import BundleError
from exporter.progress import Progress
from exporter.session import Session
from runtime_ref.generate import Runner, check_room
from runtime_ref.memory import MB, Holder, ModelShape, RuntimeMemory
from runtime_ref.native.package import NativePackage

NAME = NATIVE
HAS_RESIDENCY = True
HAS_THREADS = True
SPEED_IS_REAL = True

# Measured by benchmarks/memory_prediction.py.
RUNTIME_BYTES = int(0.5 * MB)
MATRIX_BYTES = 5400  # of an open matrix, and of its part of the manifest


def build(progress: Progress) -> None:
    """Nothing is compiled here: the core comes with the package. Raises MissingComponentError."""
    library()


def prepare() -> None:
    """Loads the core. Raises MissingComponentError."""
    library()


def core() -> ctypes.CDLL | None:
    """Handle of the core, whose residency the session shares. Raises MissingComponentError."""
    return library()


def open(bundle: Bundle, artifact: Artifact, threads: int | None, progress: Progress) -> Runner:
    """Runner of an open session.

    Raises BundleError, MissingComponentError, MemoryError.
    """
    return NativeRunner(bundle, artifact, threads)


def default_threads() -> int:
    """Number of threads that share a product: one for each core this process may use."""
    return len(os.sched_getaffinity(0))


def memory(artifact: Artifact, shape: ModelShape) -> RuntimeMemory:
    """Predicted memory of a session, in bytes, without the files it maps.

    The cache is written when the session opens. The buffers are those of native/llm/runner.cc and
    products.cc: the rows of a batch, its quantized activations, and the logits, which Python holds
    once more.
    """
    network, tokens = cast(NativePackage, artifact).network, artifact.prefill_tokens
    heads = (2 * network.heads + 2 * network.kv_heads + 1) * network.head_dim
    rows = 4 * tokens * (2 * network.hidden + heads + 2 * network.inner)
    quantized = 4 * tokens * max(network.hidden, network.inner)
    logits = 2 * 4 * network.vocab
    return RuntimeMemory(
        loaded=[
            Holder("KV cache", shape.kv_cache_bytes),
            Holder("runtime", RUNTIME_BYTES + MATRIX_BYTES * len(artifact.places)),
        ],
        used=[Holder("activations", rows + quantized), Holder("logits", logits)],
    )


class NativeRunner:
    """Runner of one session with its KV cache.

    `threads` share each product; None is as many as this process may use. Raises BundleError,
    MissingComponentError, MemoryError.
    """

    name = NAME

    def __init__(self, bundle: Bundle, artifact: Artifact, threads: int | None = None) -> None:
        self.artifact = artifact
        self.context = bundle.manifest.interface.context
        self._bundle = bundle
        if missing := [f for f in artifact.files if not bundle.file(f).is_file()]:
            what = f"{bundle.path} lacks {', '.join(missing)}"
            raise BundleError(what, hint="copy the bundle again, or export again")
        n_threads = threads or default_threads()
        self._session = Session(bundle.path, n_threads, artifact.prefill_tokens)

    def file(self, relative: str) -> Path:
        """Path of a file of the package; `relative` as in the manifest."""
        return self._bundle.file(relative)

    def forward(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of the last position, float32 [V].

        `tokens` are run at `position` onward; what was held from there on is forgotten. Raises
        ContextError before anything runs if they do not fit, UsageError for a token outside the
        vocabulary, BundleError.
        """
        check_room(tokens, position, self.context)
        self._session.trim(position)
        return self._session.feed(tokens)

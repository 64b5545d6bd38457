"""Runner of the custom-op format: a network in an interpreter, custom layers in our C++ core."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Artifact, Bundle
from exporter.errors import BundleError
from exporter.progress import Progress
from runtime_ref.coreml.package import CoreMLPackage, check_tools
from runtime_ref.generate import Runner, check_room
from runtime_ref.memory import Holder, ModelShape, RuntimeMemory

if TYPE_CHECKING:
    from runtime_ref.coreml.neural_network import NeuralNetwork

NAME = "Core ML custom-op"
HAS_RESIDENCY = True
HAS_THREADS = False
SPEED_IS_REAL = False

# Measured by benchmarks/memory_prediction.py.
LAYER_BYTES = 2200  # of a layer of the network, of which a layer of the model takes 76
# Tensors of the width of the MLP that are alive at once: a sigmoid's, and a byte for its sign.
MLP_TENSORS = 5.25


def build(progress: Progress) -> None:
    """Compiles nothing: the core ships with the codec. Raises MissingComponentError."""
    check_tools()


def prepare() -> None:
    """Imports the interpreter and loads the core."""
    from coremltools.proto import Model_pb2, NeuralNetwork_pb2  # noqa: F401

    from runtime_ref.coreml import neural_network  # noqa: F401

    core()


def core() -> ctypes.CDLL | None:
    """Handle of the library whose products the custom layers use: the codec's extension."""
    from exporter.codec import native

    return native.library()


def open(bundle: Bundle, artifact: Artifact, threads: int | None, progress: Progress) -> Runner:
    """Runner of a network that is loaded and checked. Raises BundleError."""
    return CustomOpRunner(bundle, artifact)


def default_threads() -> int:
    """Number of threads that compute a custom layer: the caller's."""
    return 1


def memory(artifact: Artifact, shape: ModelShape) -> RuntimeMemory:
    """Predicted memory of the interpreter and of the app's cache, in bytes, without the weights.

    From loading on, its own form of the network. In a call, the cache, which belongs to the app and
    whose pages come as it is filled; its new rows; and whichever is more, attention or a layer's
    MLP. Attention holds scores twice, over the context and the new tokens, the mask, the residual
    stream and queries.
    """
    tokens, context = artifact.prefill_tokens, shape.context
    scores = (2 * shape.heads + 1) * 4 * tokens * (context + tokens)
    attention = scores + 2 * 4 * tokens * shape.hidden
    mlp = int(MLP_TENSORS * 4 * tokens * shape.intermediate)
    return RuntimeMemory(
        loaded=[Holder("runtime", LAYER_BYTES * sum(artifact.operators.values()))],
        used=[
            Holder("KV cache", shape.kv_cache_bytes),
            Holder("new rows of the KV cache", shape.kv_cache_bytes * tokens // context),
            Holder("activations", max(attention, mlp)),
        ],
    )


class CustomOpRunner:
    """Runner of a network with custom layers, and of a KV cache as an app keeps it.

    The custom layers run in the C++ core that ships.
    """

    name = NAME

    def __init__(self, bundle: Bundle, artifact: Artifact) -> None:
        from runtime_ref.coreml.neural_network import NeuralNetwork

        self.artifact = artifact
        self.context = bundle.manifest.interface.context
        self._bundle = bundle
        self._network = NeuralNetwork(
            CoreMLPackage.open(bundle.file(artifact.path)).model_file, bundle.path
        )
        _check_network(self._network, bundle, artifact)
        sizes = self._network.inputs["kv_cache"].sizes or ()
        self._cache = np.zeros([n for n, _ in sizes], np.float32)  # [C, L, 2, KV, D]

    def file(self, relative: str) -> Path:
        """Path of a file of the package; `relative` as in the manifest."""
        return self._bundle.file(relative)

    def forward(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of the last position, float32 [V].

        It is fed as an app feeds it: new rows of the cache go into their place there. Raises
        ContextError.
        """
        check_room(tokens, position, self.context)
        for begin in range(0, len(tokens), self.artifact.prefill_tokens):
            chunk = np.array(tokens[begin : begin + self.artifact.prefill_tokens], np.int32)
            positions = np.arange(position + begin, position + begin + chunk.size, dtype=np.int32)
            outputs = self._network.predict(
                {"input_ids": chunk, "positions": positions, "kv_cache": self._cache}
            )
            self._cache[positions[0] : positions[0] + chunk.size] = outputs["kv_new"]
        return outputs["logits"]


def _check_network(network: NeuralNetwork, bundle: Bundle, artifact: Artifact) -> None:
    """Compares the interface of the package with the manifest. Raises BundleError."""
    interface = bundle.manifest.interface
    declared = {name: info.sizes for name, info in (network.inputs | network.outputs).items()}
    first = {name: sizes[0] if sizes else None for name, sizes in declared.items()}
    tokens = (1, artifact.prefill_tokens)
    expected = {
        "input_ids": tokens,
        "positions": tokens,
        "kv_cache": (interface.context, interface.context),
        "logits": (interface.vocab_size, interface.vocab_size),
        "kv_new": tokens,
    }
    problems = [
        f"{name} has first size {first.get(name)}, the manifest says {expected.get(name)}"
        for name in expected | first
        if first.get(name) != expected.get(name)
    ]
    if network.int16_activations != (artifact.activations == "int16"):
        problems.append(
            f"int16 activations: {network.int16_activations}, the manifest says "
            f"{artifact.activations}"
        )
    if problems:
        what = f"{artifact.path} is not the package the manifest describes"
        raise BundleError(what, problems=problems, hint="export again")

"""Runs the Core ML packages of a bundle in an interpreter: Core ML itself exists on Apple's systems
only."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from exporter.bundle import Artifact, Bundle
from exporter.errors import BundleError
from runtime_ref import expansion
from runtime_ref.coreml_package import CoreMLPackage
from runtime_ref.generate import check_room

if TYPE_CHECKING:
    from torch import Tensor

    from runtime_ref.neural_network import NeuralNetwork

CACHE_BYTES = 1 << 28  # of weights an ML Program keeps dense, as float32


class MLProgramRunner:
    """The two functions of an ML Program, which share a state. Position 0 starts a new sequence.

    A bundle that was not expanded is expanded into the directory for temporary files, as long as
    the runner lives.
    """

    name = "Core ML mlprogram"

    def __init__(
        self, bundle: Bundle, artifact: Artifact, progress: Callable[[int, int], None]
    ) -> None:
        self.artifact = artifact
        self.context = bundle.manifest.interface.context
        self._root = bundle.path
        if not bundle.file(artifact.path).is_dir():
            recipe = expansion.load_recipe(bundle, artifact)
            self._temporary = tempfile.TemporaryDirectory(
                prefix="tinyqmoe-"
            )  # removed with the runner
            self._root = Path(self._temporary.name)
            expansion.expand(bundle, recipe, self._root / recipe.package, progress)
        self._package = CoreMLPackage.open(self._root / artifact.path)
        self._functions = _Functions(self._package, "float16")
        _check_interface(self._functions, bundle, artifact)

    def file(self, relative: str) -> Path:
        return self._root / relative

    @contextlib.contextmanager
    def float_activations(self) -> Iterator[None]:
        self._functions = _Functions(self._package, "float32")
        try:
            yield
        finally:
            self._functions = _Functions(self._package, "float16")

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """As an app feeds it: `prefill` with padding while its slots fit, else `decode` token by
        token."""
        check_room(tokens, position, self.context)
        size = self.artifact.prefill_tokens
        at = 0
        while at < len(tokens):
            whole = position + at + size <= self.context and len(tokens) - at > 1
            piece = tokens[at : at + size] if whole else tokens[at : at + 1]
            logits = self._functions.call(piece, position + at, size if whole else 1)
            at += len(piece)
        return logits


class _Functions:
    """`decode` and `prefill` in one arithmetic, with their state."""

    def __init__(self, package: CoreMLPackage, arithmetic: Literal["float32", "float16"]) -> None:
        from runtime_ref.mil_program import MLProgram

        self.decode = MLProgram(package, "decode", arithmetic, CACHE_BYTES)
        self.prefill = self.decode.sibling("prefill")
        self.state: dict[str, Tensor] = self.decode.new_state()

    def call(self, tokens: Sequence[int], position: int, size: int) -> np.ndarray:
        """Logits float32 [vocab] of the last of `tokens`; a `prefill` is padded to `size`."""
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(tokens)] = tokens
        inputs = {"input_ids": padded, "position": np.array([position], np.int32)}
        if size == 1:
            outputs = self.decode.predict(inputs, self.state)
        else:
            outputs = self.prefill.predict(
                inputs | {"last": np.array([len(tokens) - 1], np.int32)}, self.state
            )
        return outputs["logits"].astype(np.float32).reshape(-1)


class CustomOpRunner:
    """A network with custom layers, which run in the C++ core that ships, and a cache as an app
    keeps it."""

    name = "Core ML custom-op"

    def __init__(self, bundle: Bundle, artifact: Artifact) -> None:
        from runtime_ref.neural_network import NeuralNetwork

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
        return self._bundle.file(relative)

    @contextlib.contextmanager
    def float_activations(self) -> Iterator[None]:
        with self._network.float_activations():
            yield

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """As an app feeds it: what is new in the cache goes into its place there."""
        check_room(tokens, position, self.context)
        for begin in range(0, len(tokens), self.artifact.prefill_tokens):
            piece = np.array(tokens[begin : begin + self.artifact.prefill_tokens], np.int32)
            positions = np.arange(position + begin, position + begin + piece.size, dtype=np.int32)
            outputs = self._network.predict(
                {"input_ids": piece, "positions": positions, "kv_cache": self._cache}
            )
            self._cache[positions[0] : positions[0] + piece.size] = outputs["kv_new"]
        return outputs["logits"]


def _check_network(network: NeuralNetwork, bundle: Bundle, artifact: Artifact) -> None:
    """The package and the manifest must say the same."""
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
        raise BundleError(what, problems=problems, do="export again")


def _check_interface(functions: _Functions, bundle: Bundle, artifact: Artifact) -> None:
    """The package and the manifest must say the same."""
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
        raise BundleError(what, problems=problems, do="export again")

"""Packages with custom layers, emitted and fed by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.backends.coreml import custom_op
from exporter.backends.coreml.custom_op import EmittedCustomOp
from exporter.backends.coreml.custom_op_graph import CustomOpConfig
from runtime_ref.coreml.neural_network import NeuralNetwork
from runtime_ref.coreml.package import CoreMLPackage
from tests.support.bundles import Parts

CONTEXT = 40


MAX_TOKENS = 40


@dataclasses.dataclass(frozen=True)
class Made:
    """A package and what it was made of."""

    parts: Parts
    emitted: EmittedCustomOp
    package: Path

    @property
    def root(self) -> Path:
        return self.package.parent

    @property
    def model_file(self) -> Path:
        return CoreMLPackage.open(self.package).model_file

    def open(self) -> NeuralNetwork:
        return NeuralNetwork(self.model_file, self.root)

    def tokens(self, n: int) -> np.ndarray:
        vocab = self.parts.checkpoint.config.vocab_size
        return np.random.default_rng(n).integers(0, vocab, n).astype(np.int32)


def call(
    network: NeuralNetwork, tokens: np.ndarray, position: int, cache: np.ndarray
) -> dict[str, np.ndarray]:
    positions = np.arange(position, position + len(tokens), dtype=np.int32)
    return network.predict({"input_ids": tokens, "positions": positions, "kv_cache": cache})


def emit(
    parts: Parts, package: Path, *, int8: bool = True, context: int = CONTEXT, **model: Any
) -> Made:
    """`model` replaces fields of the model's config."""
    shape = dataclasses.replace(parts.checkpoint.config, **model)
    config = CustomOpConfig(context, min(context, MAX_TOKENS), int8)
    emitted = custom_op.write(parts.encoded, shape, config, package, {"author": "someone"})
    return Made(parts, emitted, package)


def new_cache(network: NeuralNetwork, value: float = 0.0) -> np.ndarray:
    return np.full([n for n, _ in network.inputs["kv_cache"].sizes or ()], value, np.float32)


def feed(
    network: NeuralNetwork, tokens: np.ndarray, pieces: Sequence[int], cache: np.ndarray
) -> np.ndarray:
    """Logits [len(pieces), V] after each piece; the cache is filled in place."""
    rows, at = [], 0
    for n in pieces:
        outputs = call(network, tokens[at : at + n], at, cache)
        cache[at : at + n] = outputs["kv_new"]
        rows.append(outputs["logits"])
        at += n
    return np.stack(rows)

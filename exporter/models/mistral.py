"""Mistral: Llama's layout.

A sliding window that is in force is refused.
"""

from __future__ import annotations

from typing import Any

from exporter.models.config import ConfigReader, ModelConfig, decoder_shapes, read_decoder
from exporter.models.layers import Decoder

tensor_shapes = decoder_shapes
DEFAULTS = {"sliding_window": 4096, "num_key_value_heads": 8}  # of transformers, where absent


def read_config(raw: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json describes.

    Raises CheckpointError with all that is unsupported.
    """
    read = ConfigReader(DEFAULTS | raw)
    read.one_of("model_type", "mistral")
    window, positions = read.get("sliding_window"), read.get("max_position_embeddings")
    in_force = isinstance(window, int) and isinstance(positions, int) and window < positions
    read.check(
        not in_force,
        f"sliding_window is {window!r}, fewer than the {positions!r} positions: only attention "
        "over the whole context is supported",
    )
    return read_decoder(read)


class Mistral(Decoder):
    """The network: the shared decoder, with the features that the config names."""


Model = Mistral  # the name that every family has

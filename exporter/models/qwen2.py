"""Qwen2 and Qwen2.5: biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from exporter.models.config import (
    ATTENTION,
    ConfigReader,
    ModelConfig,
    decoder_shapes,
    read_decoder,
)
from exporter.models.layers import Decoder

tensor_shapes = decoder_shapes
DEFAULTS = {"num_key_value_heads": 32}  # of transformers, where absent


def read_config(raw: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json describes.

    Raises CheckpointError with all that is unsupported.
    """
    read = ConfigReader(DEFAULTS | raw)
    read.one_of("model_type", "qwen2")
    read.one_of("use_sliding_window", False)
    return read_decoder(read, biases=ATTENTION[:3])


class Qwen2(Decoder):
    """The network: the shared decoder, with the features that the config names."""


Model = Qwen2  # the name that every family has

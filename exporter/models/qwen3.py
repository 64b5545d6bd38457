"""Qwen3: an RMSNorm over each head of queries and keys, and biases as the config says."""

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
DEFAULTS = {"num_key_value_heads": 32, "head_dim": 128}  # of transformers, where absent


def read_config(raw: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json describes.

    Raises CheckpointError with all that is unsupported.
    """
    read = ConfigReader(DEFAULTS | raw)
    read.one_of("model_type", "qwen3")
    read.one_of("use_sliding_window", False)
    biases = ATTENTION if read.one_of("attention_bias", False, True) else ()
    return read_decoder(read, biases=biases, head_norm=True)


class Qwen3(Decoder):
    """The network: the shared decoder, with the features that the config names."""


Model = Qwen3  # the name that every family has

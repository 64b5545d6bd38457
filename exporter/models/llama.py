"""Llama 2 and 3.x, whose layers may have biases as the config says."""

from __future__ import annotations

from typing import Any

from exporter.models.config import (
    ATTENTION,
    MLP,
    ConfigReader,
    ModelConfig,
    decoder_shapes,
    read_decoder,
)
from exporter.models.layers import Decoder

tensor_shapes = decoder_shapes


def read_config(raw: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json describes.

    Raises CheckpointError with all that is unsupported.
    """
    read = ConfigReader(raw)
    read.one_of("model_type", "llama")
    attention = read.one_of("attention_bias", False, True)
    mlp = read.one_of("mlp_bias", False, True)
    biases = (ATTENTION if attention else ()) + (MLP if mlp else ())
    return read_decoder(read, biases=biases)


class Llama(Decoder):
    """The network: the shared decoder, with the features that the config names."""


Model = Llama  # the name that every family has

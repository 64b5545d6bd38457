"""Models in PyTorch: the original one in float32, and the quantized one of a bundle.

Weights are read, or decoded, in blocks of rows for each pack of sequences, so that the model is
never in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.bundle import KVType
from exporter.evaluation.language_model import ModelFacts, Request, Row
from exporter.evaluation.packing import Pack, packs
from exporter.models.config import ModelConfig, rope_frequencies
from exporter.models.layers import STORES, Decoder, rotate
from exporter.reference.model import OriginalLayers, QuantizedLayers, finite

if TYPE_CHECKING:
    from exporter.checkpoint.checkpoint import Checkpoint

LOGIT_ROWS = 64  # that are in memory at a time


class PackedRotation(nn.Module):
    """The cosines and sines of RoPE, float32 [2, S, D/2], at the positions of a pack."""

    def __init__(self, config: ModelConfig, pack: Callable[[], Pack]) -> None:
        super().__init__()
        self.frequencies, self.pack = rope_frequencies(config), pack

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        angles = self.pack().positions.float()[:, None] * self.frequencies
        return torch.stack((angles.cos(), angles.sin()))


class PackedAttention(nn.Module):
    """Grouped-query attention in a pack: each token sees what `Pack.seen` says.

    Keys and values are rounded as a cache of type `kv_type` stores them.
    """

    def __init__(self, config: ModelConfig, kv_type: KVType, pack: Callable[[], Pack]) -> None:
        super().__init__()
        self.head_dim, self.store, self.pack = config.head_dim, STORES[kv_type], pack

    def forward(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor, input_pos: Tensor) -> Tensor:
        """Attention of the queries, [1, S, H * D]: shapes as in `models.layers.TorchAttention`."""
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        q, k, v = rotate(q, angles), self.store(rotate(k, angles)), self.store(v)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        seen = self.pack().seen
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


class PackedLayers:
    """The layers of a network that computes packs; `pack` is the one to compute."""

    pack: Pack
    kv_type: KVType

    def rotation(self, config: ModelConfig) -> nn.Module:
        return PackedRotation(config, lambda: self.pack)

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        return PackedAttention(config, self.kv_type, lambda: self.pack)


class PackedOriginalLayers(PackedLayers, OriginalLayers):
    """Layers of a checkpoint."""


class PackedQuantizedLayers(PackedLayers, QuantizedLayers):
    """Layers of a coded model."""


class NetworkModel:
    """A network in PyTorch that computes packs, as a `LanguageModel`."""

    def __init__(self, network: Decoder, layers: PackedLayers, facts: ModelFacts) -> None:
        self.facts, self._network, self._layers = facts, network, layers

    def logits(self, requests: Iterable[Request]) -> Iterator[Row]:
        """See `LanguageModel`. Raises CheckpointError for logits that are not finite."""
        for pack in packs(requests):
            hidden = self._hidden(pack)
            for scored in pack.scored.split(LOGIT_ROWS):
                yield from self._rows(hidden, scored)

    @torch.inference_mode()
    def _hidden(self, pack: Pack) -> Tensor:
        """Hidden states of the tokens of a pack, float32 [1, S, hidden]."""
        self._layers.pack = pack
        return self._network.hidden(pack.tokens, torch.zeros(1, dtype=torch.int64))

    @torch.inference_mode()
    def _rows(self, hidden: Tensor, scored: Tensor) -> NDArray[np.float32]:
        """Logits after some tokens, float32 [n, V]; those of equal tokens are computed once."""
        tokens, where = scored.unique(return_inverse=True)
        logits = finite(self._network.logits(hidden[:, tokens]))[0]
        rows: NDArray[np.float32] = logits.numpy()[where.numpy()]
        return rows


def original(checkpoint: Checkpoint, facts: ModelFacts) -> NetworkModel:
    """The model of a checkpoint in float32."""
    layers = PackedOriginalLayers(checkpoint)
    return NetworkModel(checkpoint.network(facts.context, layers), layers, facts)

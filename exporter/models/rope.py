"""Stretching of the RoPE frequencies, by which a model reads more positions than it was trained on.

Each kind is a dataclass with the parameters of Hugging Face configs. `stretch` gives its
frequencies. `attention_factor` is what it multiplies queries and keys by, after their rotation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class RopeScaling(Protocol):
    """A kind of stretching."""

    @property
    def attention_factor(self) -> float:
        """The factor of queries and keys; 1 where attention stays as it is."""

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        """The stretched frequencies of theta^(-2i/D), float32 [D/2], in radians per position."""


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float
    attention_factor: float = 1.0

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """The stretching of Llama 3.1 and later.

    As in Meta's `apply_scaling` and transformers' `_compute_llama3_parameters`: wavelengths over
    original/low_freq_factor are stretched by `factor`, those under original/high_freq_factor stay,
    and between them the two are blended linearly in original/wavelength.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    attention_factor: float = 1.0

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        # Full turns within the original context.
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        keep = ((turns - self.low_freq_factor) / span).clamp(0, 1)
        return (1 - keep) * frequencies / self.factor + keep * frequencies


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071), as in transformers' `_compute_yarn_parameters`.

    Pairs that turn more than `beta_fast` times within the original context stay, those that turn
    less than `beta_slow` times are stretched by `factor`, and between them the two are blended
    linearly in the number of the pair. `truncate`: whether those bounds are whole pairs.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        pairs = len(frequencies)
        low, high = (
            self._pair(turns, 2 * pairs, theta) for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        ramp = (torch.arange(pairs, dtype=torch.float32) - low) / max(high - low, 0.001)
        stretched = ramp.clamp(0, 1)
        return frequencies / self.factor * stretched + frequencies * (1 - stretched)

    def _pair(self, turns: float, head_dim: int, theta: float) -> float:
        """The number of the pair that turns so often within the original context."""
        period = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(period) / (2 * math.log(theta))


def yarn_attention_factor(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """The factor of queries and keys under YaRN.

    It is 0.1 ln(factor) + 1, or the quotient of two such terms where a config weights them.
    """

    def term(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return term(mscale) / term(mscale_all_dim) if mscale and mscale_all_dim else term(1.0)


@dataclass(frozen=True)
class DividedFrequencies:
    """Each frequency divided by a factor of its own: the form in which GGUF files hold them."""

    factors: tuple[float, ...]
    attention_factor: float = 1.0

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / torch.tensor(self.factors, dtype=torch.float32)

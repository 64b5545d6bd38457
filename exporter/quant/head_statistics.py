"""Statistics of a head: how much each token of the vocabulary matters as an output."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.quant.calibration import finite


class HeadStatistics:
    """Sums over tokens, float64 [vocab]: of squared gradients of logits, and of probabilities."""

    def __init__(self, vocab_size: int) -> None:
        self.squares = torch.zeros(vocab_size, dtype=torch.float64)
        self.shares = torch.zeros_like(self.squares)

    def gradient(self, logits: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Gradient of the loss, float32 [n, hidden], by the inputs of a head [vocab, hidden].

        logits: float32 [n, vocab], in place of which their gradient is computed. The labels are
        drawn by `generator`; the squares are of all labels, weighted by their probability.
        """
        p = finite(logits).softmax(-1)
        shares = p.sum(0)  # of few tokens: float32 is exact enough
        self.shares += shares
        self.squares += shares - p.square().sum(0)
        labels = drawn(p, generator)
        p.scatter_add_(1, labels, torch.full(labels.shape, -1.0))
        return p @ weight


def drawn(p: Tensor, generator: torch.Generator) -> Tensor:
    """A label for each distribution, int64 [n, 1], of float32 [n, vocab].

    One random number finds its place among the sums of probabilities; `torch.multinomial` takes one
    for each label that there could be, and six times as long.
    """
    sums = p.cumsum(-1)
    places = torch.rand(len(p), 1, generator=generator) * sums[:, -1:]
    return torch.searchsorted(sums, places, right=True).clamp_(max=p.shape[-1] - 1)

"""int8 levels at a rate: what an entropy code makes of them is small where a weight matters little.

A row i of a matrix W with inputs x costs the loss of the model, to second order,

    R_i (w_i - v_i)^T H (w_i - v_i),   H = mean x x^T,   R_i = mean squared gradient of output i,

where v_i are its quantized weights. With H^-1 = U^T U (U upper triangular) and d_j = 1 / U_jj^2,
quantizing column after column with feedback of the error (GPTQ, arXiv 2210.17323) leaves a loss of
R_i sum_j d_j e_ij^2 with rounding errors e_ij alone. A step of

    s_i = max(c / sqrt(R_i mean_j d_j), max_j |w_ij| / LARGEST)

makes every bit save the same loss wherever it is spent: one constant c sets the rate of a whole
model. A level is the nearest one, or one nearer zero where the bits that it saves are worth more
than the error: at a high rate a bit halves errors, so it is worth (ln 2 / 6) s_i^2 of squared
error. Rate terms in feedback are those of CERWU (arXiv 2505.18758); that steps and entropy coding
come close to the bound of any code is shown in WaterSIC (arXiv 2603.04956). At last levels change
by one wherever that lowers the loss and the worth of their bits together (exporter.quant.descent).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.quant.descent import descend
from exporter.quant.feedback import Price, Rounding, round_with_feedback
from exporter.quant.tensor import short_scales

LARGEST = 110  # of the levels that a weight gets before feedback, which may add to it
MOST = 127
DAMPING = 0.3  # of the median of the diagonal of H, added to it: few tokens know H badly
INVERTED_AT_ONCE = 128  # rows of a triangle
BIT = math.log(2) / 6  # what a bit is worth, in squared errors of levels
REFIT = (0.7, 1.4)  # how far a scale may go from its step


def inverse_factor(gram: Tensor) -> Tensor:
    """U, upper triangular, of the inverse of H, which is U^T U; float32 [cols, cols].

    H is `gram`, float32 [cols, cols], with DAMPING. Only its upper triangle is read. It is computed
    in float64.
    """
    damped = gram.double()
    damped.diagonal().add_(damping(gram))
    # With its rows and columns in reverse order, H = L L^T gives U^-1.
    upper: Tensor = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    del damped
    _invert(upper)
    return upper.float().contiguous()


def damping(gram: Tensor) -> float:
    """What is added to the diagonal of H, which is `gram`, float32 [cols, cols].

    It follows the median: the mean may be that of a few inputs with huge values. A matrix whose
    inputs are all zero is as good as one of which nothing is known.
    """
    power = gram.diagonal()
    return DAMPING * float(power.median()) or DAMPING * float(power.mean()) or 1.0


def _invert(upper: Tensor) -> None:
    """Inverts an upper triangular matrix in its place.

    [[A, B], [0, C]] has the inverse [[A^-1, -A^-1 B C^-1], [0, C^-1]], by halves a third of the
    work of solving for the identity.
    """
    half, solve = len(upper) // 2, torch.linalg.solve_triangular
    if len(upper) <= INVERTED_AT_ONCE:
        upper.copy_(solve(upper, torch.eye(len(upper), dtype=upper.dtype), upper=True))
        return
    a, b, c = upper[:half, :half], upper[:half, half:], upper[half:, half:]
    b.copy_(solve(c, solve(a, -b, upper=True), upper=True, left=False))
    _invert(a)
    _invert(c)


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of a matrix: U, upper triangular, float32 [cols, cols]."""

    upper: Tensor

    @functools.cached_property
    def gram(self) -> Tensor:
        """H with its damping, float32 [cols, cols]."""
        return torch.cholesky_inverse(self.upper, upper=True).contiguous()

    @property
    def errors(self) -> Tensor:
        """d, the loss by a squared error of each column after feedback, float32 [cols]."""
        return 1 / self.upper.diagonal().square()


@dataclass(frozen=True)
class Curvature:
    """What the loss feels of a matrix, so far as it is known.

    sensitivity: R, float32 [rows].
    """

    inputs: Inputs
    sensitivity: Tensor

    def rows(self, part: slice) -> Curvature:
        """The same for some rows of the matrix."""
        return Curvature(self.inputs, self.sensitivity[part])

    @property
    def unit_steps(self) -> Tensor:
        """The steps of rows at c = 1, float32 [rows]."""
        return 1 / torch.sqrt(self.sensitivity * self.inputs.errors.mean())

    def steps(self, w: Tensor, c: float) -> Tensor:
        """The steps of rows, float32 [rows], of weights float32 [rows, cols]."""
        return torch.maximum(c * self.unit_steps, finest_steps(w))


def finest_steps(w: Tensor) -> Tensor:
    """The smallest steps that rows may have, float32 [n], of weights float32 [n, cols]."""
    return (w.abs().amax(1) / LARGEST).clamp(min=1e-30)


class Prices:
    """The bits of levels, and those that one step nearer zero saves.

    `bits` and `saved`: float32 [2 * MOST + 1] from -MOST up.
    """

    def __init__(self, counts: Tensor) -> None:
        """Prices of levels that occur `counts` times, [2 * MOST + 1] from -MOST up."""
        self.bits = -((counts + 0.3) / (counts.sum() + 0.3 * len(counts))).log2()
        levels = torch.arange(-MOST, MOST + 1)
        self.saved = self.bits - self.bits[levels - levels.sign() + MOST]


class LearntPrices(Prices):
    """Prices by the levels that have been chosen so far, and at first by rounded weights."""

    def __init__(self, rounded: Tensor) -> None:
        """`rounded`: levels as int8 [n, cols], which are trusted less with every column."""
        self.first, self.cols = count(rounded), rounded.shape[1]
        self.counts, self.done = torch.zeros_like(self.first), 0
        super().__init__(self.first)

    def learn(self, levels: Tensor) -> None:
        """Takes note of the levels of more columns, int8 [n, columns]."""
        self.counts += count(levels)
        self.done += levels.shape[1]
        share = self.done / self.cols
        super().__init__(self.counts + max(0.0, 1 - 4 * share) * share * self.first)


def count(levels: Tensor) -> Tensor:
    """The number of times each level occurs, float32 [2 * MOST + 1] from -MOST up."""
    return torch.bincount(levels.flatten().long() + MOST, minlength=2 * MOST + 1).float()


def learn_prices(w: Tensor, curvature: Curvature, c: float) -> Prices:
    """The prices that some rows, weights float32 [n, cols], make themselves."""
    steps = curvature.steps(w, c)
    prices = LearntPrices((w / steps[:, None]).round().clamp(-MOST, MOST).to(torch.int8))
    round_rows(w, curvature, c, prices)
    return Prices(prices.counts)


def quantize_rows(
    w: Tensor, curvature: Curvature, c: float, prices: Prices
) -> tuple[Tensor, Tensor]:
    """Levels int8 [n, cols] and scales float32 [n, 1] of weights float32 [n, cols].

    The levels are those of `round_rows` after coordinate descent. The scales are the best for them.
    """
    steps, inputs = curvature.steps(w, c), curvature.inputs
    levels = round_rows(w, curvature, c, prices)
    whole = (w / steps[:, None]) @ inputs.gram
    gradient = whole.addmm(levels.float(), inputs.gram, alpha=-1)
    worth = BIT * float(inputs.errors.mean())
    descend(levels, gradient, inputs.gram, prices.bits, worth)
    # Of levels q and weights u in steps, the least-squares scale is s (1 + <q, (u - q) H> / q H q).
    q = levels.float()
    power = (q * whole.sub_(gradient)).sum(1)
    factor = 1 + (q * gradient).sum(1) / torch.where(power == 0, 1.0, power)
    scales = torch.where(power == 0, 0.0, steps * factor.clamp(*REFIT))
    return levels, short_scales(scales, up=False)[:, None]


def round_rows(w: Tensor, curvature: Curvature, c: float, prices: Prices) -> Tensor:
    """Levels int8 [n, cols] of weights float32 [n, cols], column after column with feedback."""
    steps = curvature.steps(w, c)
    upper, spread = curvature.inputs.upper, curvature.inputs.errors
    bits = BIT * spread.mean() / spread
    rounding = Rounding.of(w)
    for now in rounding.blocks(upper, 0, w.shape[1]):
        block, price = rounding.columns(now), Price(bits[now], prices.saved)
        round_with_feedback(block, upper[now, now], steps, price)
        if isinstance(prices, LearntPrices):
            prices.learn(block.levels)
    return rounding.levels

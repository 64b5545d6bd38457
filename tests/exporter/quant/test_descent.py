"""Coordinate descent against a slow reference in numpy, and what must hold of its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.quant.descent import SWEEPS, descend
from exporter.quant.rate import (
    MOST,
    Curvature,
    Inputs,
    inverse_factor,
    learn_prices,
    quantize_rows,
    round_rows,
)

SHAPES = [(1, 1), (5, 3), (7, 64), (17, 65), (33, 130)]


@dataclass(frozen=True)
class Problem:
    """Weights in steps, float32 [rows, cols], a Gram matrix, and the bits of levels."""

    u: torch.Tensor
    gram: torch.Tensor
    bits: torch.Tensor
    worth: float

    @classmethod
    def random(cls, rows: int, cols: int, seed: int, worth: float) -> Problem:
        """Inputs that depend on each other, and bits as of a Laplace distribution."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2 * cols + 1, cols, generator=generator)
        x = x @ torch.randn(cols, cols, generator=generator)
        u = 3 * torch.randn(rows, cols, generator=generator)
        gram = x.T @ x / len(x)
        bits = 1 + 0.5 * torch.arange(-MOST, MOST + 1).abs().float()
        return cls(u, gram, bits, worth * float(gram.diagonal().mean()))

    def descended(self) -> tuple[np.ndarray, np.ndarray]:
        """Levels after a descent from rounded weights, and what is left of the gradient."""
        levels = self.u.round().to(torch.int8)
        gradient = (self.u - levels.float()) @ self.gram
        descend(levels, gradient, self.gram, self.bits, self.worth)
        return levels.numpy(), gradient.numpy()

    def loss(self, levels: np.ndarray) -> np.ndarray:
        """The loss of each row with the worth of its bits, in float64."""
        left = self.u.double().numpy() - levels
        squared = np.einsum("ij,jk,ik->i", left, self.gram.double().numpy(), left)
        bits: np.ndarray = self.bits.numpy()[levels.astype(int) + MOST].sum(1)
        return squared + self.worth * bits

    def reference(self) -> np.ndarray:
        """The same descent, a level at a time and every loss computed anew."""
        levels = self.u.round().numpy().astype(int)
        for row in range(len(levels)):
            for _ in range(SWEEPS):
                before = levels.copy()
                for j in range(levels.shape[1]):
                    levels[row] = min(self._neighbours(levels[row], j), key=self._of_row(row))
                if (before == levels).all():
                    break
        return levels

    def _of_row(self, row: int) -> Callable[[np.ndarray], float]:
        one = Problem(self.u[row : row + 1], self.gram, self.bits, self.worth)
        return lambda levels: float(one.loss(levels[None])[0])

    def _neighbours(self, levels: np.ndarray, j: int) -> list[np.ndarray]:
        return [levels + change * (np.arange(len(levels)) == j) for change in (0, -1, 1)]


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("worth", [0.0, 0.1])
def test_levels_are_those_of_a_slow_descent(rows: int, cols: int, worth: float) -> None:
    problem = Problem.random(rows, cols, rows + cols, worth)
    levels, _ = problem.descended()
    expected = problem.reference()
    same_rows = (levels == expected).all(1)  # but for near ties, that float32 decides otherwise
    assert same_rows.mean() > 0.9
    np.testing.assert_allclose(problem.loss(levels), problem.loss(expected), rtol=0.05)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 20),
    cols=st.integers(1, 40),
    seed=st.integers(0, 999),
    worth=st.floats(0, 1),
)
def test_the_loss_falls_and_the_gradient_follows(
    rows: int, cols: int, seed: int, worth: float
) -> None:
    problem = Problem.random(rows, cols, seed, worth)
    levels, gradient = problem.descended()
    rounded = problem.u.round().numpy()
    assert (problem.loss(levels) <= problem.loss(rounded) * (1 + 1e-5) + 1e-4).all()
    left = problem.u.double().numpy() - levels
    expected = left @ problem.gram.double().numpy()
    scale = float(problem.gram.abs().max()) * cols
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * scale)


def test_no_single_change_lowers_the_loss_any_more() -> None:
    problem = Problem.random(9, 30, 1, 0.05)
    levels, _ = problem.descended()
    best = problem.loss(levels)
    for j in range(levels.shape[1]):
        for change in (-1, 1):
            moved = levels.copy()
            moved[:, j] += change
            assert (problem.loss(moved) > best * (1 - 1e-5)).all()


def test_levels_stay_in_the_alphabet() -> None:
    problem = Problem.random(4, 8, 2, 0.0)
    far = Problem(100 * problem.u, problem.gram, problem.bits, 0.0)
    levels = far.u.round().clamp(-MOST, MOST).to(torch.int8)
    descend(levels, (far.u - levels.float()) @ far.gram, far.gram, far.bits, far.worth)
    assert int(levels.abs().max()) == MOST
    assert int(levels.min()) >= -MOST


def test_inputs_that_do_not_depend_on_each_other_leave_the_nearest_levels() -> None:
    u = torch.linspace(-3, 3, 60).view(3, 20) + 0.01
    levels = u.round().to(torch.int8)
    descend(levels, u - levels.float(), torch.eye(20), torch.zeros(2 * MOST + 1), 0.0)
    torch.testing.assert_close(levels, u.round().to(torch.int8))


def test_a_quantized_matrix_has_less_loss_than_a_rounded_one() -> None:
    generator = torch.Generator().manual_seed(3)
    w = 0.05 * torch.randn(24, 96, generator=generator)
    x = torch.randn(300, 96, generator=generator) @ torch.randn(96, 96, generator=generator)
    curvature = Curvature(Inputs(inverse_factor(x.T @ x / len(x))), torch.ones(24))
    c = 0.02 * float(curvature.inputs.errors.mean().sqrt())
    prices = learn_prices(w, curvature, c)
    steps = curvature.steps(w, c)[:, None]

    def loss(levels: torch.Tensor) -> float:
        left = w - steps * levels
        return float(((left @ curvature.inputs.gram) * left).sum())

    levels, _ = quantize_rows(w, curvature, c, prices)
    assert loss(levels) < 0.97 * loss(round_rows(w, curvature, c, prices))

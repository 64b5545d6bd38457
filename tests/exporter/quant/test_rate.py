"""Quantization at a rate against slow references in numpy: feedback column by column, prices,
scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from exporter.quant import rate
from exporter.quant.rate import Curvature, Inputs, inverse_factor

SHAPES = [(5, 3), (7, 64), (4, 65), (33, 130), (2, 200)]


def inputs(cols: int, seed: int = 0) -> torch.Tensor:
    """A Gram matrix of inputs that depend on each other, some of them large."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator)
    x = torch.randn(3 * cols, cols, generator=generator) @ mixing
    x[:, 0] *= 20
    return x.T @ x / len(x)


def problem(rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor, Curvature]:
    """Weights, the Gram matrix of their inputs, and the curvature with rows of many scales."""
    generator = torch.Generator().manual_seed(rows * cols)
    w = torch.randn(rows, cols, generator=generator) * 0.05
    gram = inputs(cols)
    return w, gram, Curvature(Inputs(inverse_factor(gram)), torch.logspace(-2, 2, rows))


def damped(gram: torch.Tensor) -> np.ndarray:
    h = gram.double().numpy()
    return h + rate.damping(gram) * np.eye(len(h))


def reference(
    w: np.ndarray, h: np.ndarray, steps: np.ndarray, saved: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Levels, and column errors over the diagonal, by the formulas of optimal brain surgery.

    The inverse of what is left of H is taken anew for each column, in float64.
    """
    rest, cols = w.astype(np.float64).copy(), w.shape[1]
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(cols)]
    worth = np.array([1 / inverse[0, 0] for inverse in inverses])
    levels, errors = np.zeros(w.shape, int), np.zeros(w.shape)
    for j, inverse in enumerate(inverses):
        bit = math.log(2) / 6 * worth.mean() / worth[j]
        for i, step in enumerate(steps):
            x = rest[i, j] / step
            level = int(np.clip(np.round(x), -127, 127))
            nearer = level - int(np.sign(level))
            loss = (x - nearer) ** 2 - (x - level) ** 2
            levels[i, j] = nearer if loss < bit * saved[level + 127] else level
            error = rest[i, j] - levels[i, j] * step
            rest[i, j:] -= error / inverse[0, 0] * inverse[0]
            errors[i, j] = error / math.sqrt(inverse[0, 0])
    return levels, errors


def weighted(error: np.ndarray, h: np.ndarray) -> np.ndarray:
    return np.einsum("ij,jk,ik->i", error, h, error)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_feedback_is_that_of_a_dense_inverse(rows: int, cols: int) -> None:
    w, gram, curvature = problem(rows, cols)
    c = 0.02 * float(curvature.inputs.errors.mean().sqrt())
    prices = rate.learn_prices(w, curvature, c)
    levels = rate.round_rows(w, curvature, c, prices)
    steps = curvature.steps(w, c)
    expected, errors = reference(w.numpy(), damped(gram), steps.numpy(), prices.saved.numpy())
    same = levels.numpy() == expected  # but for ties, that float32 decides otherwise
    assert same.mean() > 0.98
    loss = weighted((w - levels * steps[:, None]).double().numpy(), damped(gram))
    np.testing.assert_allclose(loss, (errors**2).sum(1), rtol=0.05)


@pytest.mark.parametrize(("rows", "cols"), [*SHAPES, (2, 600)])
def test_the_factor_is_that_of_the_inverse(rows: int, cols: int) -> None:
    _, gram, curvature = problem(rows, cols)
    upper = curvature.inputs.upper.double().numpy()
    assert (np.tril(upper, -1) == 0).all()
    product = upper.T @ upper @ damped(gram)
    np.testing.assert_allclose(product, np.eye(cols), atol=2e-4)
    last = 1 / np.linalg.inv(damped(gram)[-1:, -1:])[0, 0]
    np.testing.assert_allclose(curvature.inputs.errors[-1], last, rtol=1e-4)


def test_inputs_that_are_always_zero_leave_rounding() -> None:
    torch.testing.assert_close(inverse_factor(torch.zeros(3, 3)), torch.eye(3))


def test_a_huge_input_does_not_hide_the_others() -> None:
    gram = inputs(64)
    small = rate.damping(gram)
    gram[5, 5] *= 1e6
    assert rate.damping(gram) == pytest.approx(small, rel=0.05)


def test_inputs_of_which_most_are_zero_are_damped_by_their_mean() -> None:
    gram = torch.zeros(8, 8)
    gram[2, 2] = 4.0
    assert rate.damping(gram) == pytest.approx(rate.DAMPING * 0.5)


@pytest.mark.parametrize(("rows", "cols"), SHAPES[1:])
def test_feedback_lowers_the_loss_of_rounding(
    rows: int, cols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "DAMPING", 0.01)  # inputs that depend on each other strongly
    w, gram, curvature = problem(rows, cols)
    c = 0.02 * float(curvature.inputs.errors.mean().sqrt())
    prices = rate.learn_prices(w, curvature, c)
    levels, scales = rate.quantize_rows(w, curvature, c, prices)
    steps = curvature.steps(w, c)[:, None]
    rounded = (w / steps).round() * steps
    h = damped(gram)
    ours, theirs = (weighted((w - v).double().numpy(), h) for v in (levels * scales, rounded))
    assert ours.sum() < 0.8 * theirs.sum()


def test_scales_are_the_best_for_their_levels() -> None:
    w, gram, curvature = problem(33, 130)
    c = 0.01 * float(curvature.inputs.errors.mean().sqrt())
    levels, scales = rate.quantize_rows(w, curvature, c, rate.learn_prices(w, curvature, c))
    steps, h = curvature.steps(w, c), damped(gram)
    q = levels.double().numpy()
    best = np.einsum("ij,jk,ik->i", q, h, w.double().numpy()) / weighted(q, h)
    limited = np.clip(best, 0.7 * steps.numpy(), 1.4 * steps.numpy())
    np.testing.assert_allclose(scales[:, 0].numpy(), limited, rtol=2e-3)
    mantissas = np.frexp(scales.numpy())[0] * 2**11
    np.testing.assert_array_equal(mantissas, np.round(mantissas))


def test_rows_of_zeros_have_no_scale() -> None:
    w, _, curvature = problem(7, 64)
    w[3] = 0
    levels, scales = rate.quantize_rows(w, curvature, 0.01, rate.learn_prices(w, curvature, 0.01))
    assert not levels[3].any()
    assert scales[3] == 0
    assert (scales[[0, 1, 2, 4, 5, 6]] > 0).all()


def test_a_small_constant_takes_the_finest_steps() -> None:
    w, _, curvature = problem(33, 130)
    levels, scales = rate.quantize_rows(w, curvature, 1e-9, rate.learn_prices(w, curvature, 1e-9))
    assert 100 <= levels.abs().max() <= 127
    torch.testing.assert_close(levels * scales, w, atol=0.04 * float(w.abs().max()), rtol=0)


def test_steps_follow_the_sensitivity_of_rows() -> None:
    w, _, curvature = problem(33, 130)
    steps = curvature.steps(w, 1.0)
    expected = 1 / torch.sqrt(curvature.sensitivity * curvature.inputs.errors.mean())
    torch.testing.assert_close(steps, expected)


def test_prices_save_bits_toward_what_is_common() -> None:
    counts = torch.zeros(255)
    counts[126:129] = torch.tensor([10.0, 80.0, 10.0])
    saved = rate.Prices(counts).saved
    assert saved[127] == 0
    np.testing.assert_allclose(saved[[126, 128]], math.log2(80.3 / 10.3), rtol=1e-5)
    np.testing.assert_allclose(saved[[125, 129]], math.log2(10.3 / 0.3), rtol=1e-5)

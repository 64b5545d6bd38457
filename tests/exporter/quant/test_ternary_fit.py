"""Fitted ternary levels against a slow reference in float64, and by the loss that they leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.quant import rate, ternary, ternary_fit
from exporter.quant.rate import Curvature, Inputs, inverse_factor

SHAPES = [(5, 3, 3), (7, 64, 16), (4, 65, 20), (33, 130, 130), (2, 200, 64), (3, 150, 70)]


def problem(rows: int, cols: int) -> tuple[torch.Tensor, Curvature]:
    """Weights, and the curvature of inputs that depend on each other, some of them large."""
    generator = torch.Generator().manual_seed(rows * cols)
    mixing = torch.randn(cols, cols, generator=generator)
    x = torch.randn(3 * cols, cols, generator=generator) @ mixing
    x[:, 0] *= 5
    upper = inverse_factor(x.T @ x / len(x))
    return torch.randn(rows, cols, generator=generator) * 0.05, Curvature(
        Inputs(upper), torch.ones(rows)
    )


def damped(curvature: Curvature) -> np.ndarray:
    """H with its damping, by inversion in float64."""
    upper = curvature.inputs.upper.double().numpy()
    return np.linalg.inv(upper.T @ upper)


def losses(w: torch.Tensor, v: torch.Tensor, h: np.ndarray) -> np.ndarray:
    error = (w - v).double().numpy()
    return np.einsum("ij,jk,ik->i", error, h, error)


def nearest(w: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(w / scale), -1, 1)


def reference_feedback(w: np.ndarray, h: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels and scales of one row, column by column: the inverse of what is left of H anew."""
    rest, cols = w.astype(np.float64).copy(), len(w)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(cols)]
    worth = np.array([1 / inverse[0, 0] for inverse in inverses])
    levels, scales = np.zeros(cols), []
    for j, inverse in enumerate(inverses):
        if j % size == 0:
            part = slice(j, j + size)
            scale = np.abs(rest[part]).mean()
            for _ in range(ternary_fit.ROUNDS):
                t = nearest(rest[part], scale)
                scale = (worth[part] * rest[part] * t).sum() / (worth[part] * t * t).sum()
            scales.append(scale)
        levels[j] = nearest(rest[j : j + 1], scales[-1])[0]
        error = rest[j] - levels[j] * scales[-1]
        rest[j:] -= error / inverse[0, 0] * inverse[0]
    return levels, np.array(scales)


@pytest.mark.parametrize(("rows", "cols", "size"), SHAPES)
def test_feedback_is_that_of_a_dense_inverse(
    rows: int, cols: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, curvature = problem(rows, cols)
    monkeypatch.setattr(ternary_fit, "REFIT", (1.0, 1.0))  # scales as they were fitted
    levels, scales = ternary_fit.fit_rows(w, curvature, size)
    h = damped(curvature)
    expected = [reference_feedback(row, h, size) for row in w.numpy()]
    same = levels.numpy() == np.array([t for t, _ in expected])
    assert same.mean() > 0.95  # a tie that float32 decides otherwise changes what follows
    theirs = torch.tensor(np.array([np.repeat(s, size)[:cols] * t for t, s in expected]))
    ours = ternary.dequantize(levels, scales, size)
    np.testing.assert_allclose(losses(w, ours, h).sum(), losses(w, theirs, h).sum(), rtol=0.05)


@pytest.mark.parametrize(("rows", "cols", "size"), SHAPES)
def test_scales_are_the_least_squares_solution(rows: int, cols: int, size: int) -> None:
    w, curvature = problem(rows, cols)
    levels, scales = ternary_fit.fit_rows(w, curvature, size)
    groups, h = np.arange(cols) // size, damped(curvature)
    a = np.linalg.cholesky(h).T
    for i, row in enumerate(w.double().numpy()):
        design = np.stack([a @ (levels[i].numpy() * (groups == g)) for g in range(groups[-1] + 1)])
        best = np.linalg.lstsq(design.T, a @ row, rcond=None)[0]
        np.testing.assert_allclose(scales[i].numpy(), best, rtol=5e-3)


@pytest.mark.parametrize(("rows", "cols", "size"), SHAPES[1:])
def test_each_step_lowers_the_loss(
    rows: int, cols: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "DAMPING", 0.01)  # inputs that depend on each other strongly
    w, curvature = problem(rows, cols)
    h, config = damped(curvature), ternary.Config(size)

    def left(levels: torch.Tensor, scales: torch.Tensor) -> float:
        assert levels.dtype == torch.int8
        assert set(levels.unique().tolist()) <= {-1, 0, 1}
        assert scales.shape == (rows, -(-cols // size))
        return float(losses(w, ternary.dequantize(levels, scales, size), h).sum())

    rounded = left(*ternary.quantize_rows(w, config))
    fitted = left(*ternary.fit_rows(w, config, curvature))
    monkeypatch.setattr(ternary_fit, "REFIT", (1.0, 1.0))
    fed_back = left(*ternary.fit_rows(w, config, curvature))
    assert fitted < fed_back < 0.7 * rounded


def test_groups_of_zeros_have_no_scale() -> None:
    w, curvature = problem(7, 64)
    w[3], w[5, 16:32] = 0, 0
    diagonal = Curvature(
        Inputs(inverse_factor(torch.eye(64))), torch.ones(7)
    )  # nothing is fed back
    levels, scales = ternary_fit.fit_rows(w, diagonal, 16)
    assert not levels[3].any()
    assert not levels[5, 16:32].any()
    expected = torch.ones(7, 4, dtype=torch.bool)
    expected[3], expected[5, 1] = False, False
    assert torch.equal(scales > 0, expected)
    levels, scales = ternary_fit.fit_rows(w, curvature, 16)
    assert not levels[3].any()
    assert not scales[3].any()
    assert scales.isfinite().all()


def test_scales_are_short() -> None:
    w, curvature = problem(33, 130)
    _, scales = ternary_fit.fit_rows(w, curvature, 32)
    mantissas = np.frexp(scales.numpy())[0] * 2**11
    np.testing.assert_array_equal(mantissas, np.round(mantissas))
    assert (scales > 0).all()

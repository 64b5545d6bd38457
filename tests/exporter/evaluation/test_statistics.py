"""Uncertainties against closed formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exporter.evaluation.statistics import Estimate, exponential, ratio, share


def test_a_share_has_the_harness_error_and_wilsons_interval() -> None:
    found = share([True] * 8 + [False] * 2)
    hits = np.array([1.0] * 8 + [0.0] * 2)
    assert found.value == 0.8
    assert found.stderr == pytest.approx(hits.std(ddof=1) / math.sqrt(10))
    # Wilson's formula for 8 of 10, as in Newcombe, Statistics in Medicine 17 (1998), by hand.
    assert (found.low, found.high) == (
        pytest.approx(0.49016, abs=1e-5),
        pytest.approx(0.94332, abs=1e-5),
    )


@pytest.mark.parametrize("hit", [True, False])
def test_a_share_of_all_or_none_stays_within_0_and_1(hit: bool) -> None:
    found = share([hit] * 20)
    assert (found.value, found.stderr) == (float(hit), 0)
    assert 0 <= found.low <= found.high <= 1  # type: ignore[operator]
    assert found.high - found.low > 0.1  # type: ignore[operator]


def test_one_item_says_nothing_of_its_spread() -> None:
    assert share([True]).stderr is None
    assert ratio([3.0], [2]) == Estimate(1.5, None, None, None)
    assert exponential(ratio([3.0], [2])) == Estimate(math.exp(1.5), None, None, None)


def test_the_bootstrap_has_the_error_of_a_mean() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400)
    found = ratio(values.tolist(), [1] * 400)
    expected = values.std(ddof=1) / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(expected, rel=0.1)
    assert found.low == pytest.approx(values.mean() - 1.96 * expected, abs=0.03)
    assert found.high == pytest.approx(values.mean() + 1.96 * expected, abs=0.03)
    assert ratio(values.tolist(), [1] * 400) == found, "the seed is fixed"


def test_long_items_weigh_more() -> None:
    assert ratio([10.0, 1.0], [100, 1]).value == pytest.approx(11 / 101)


def test_an_exponential_keeps_its_interval_around_it() -> None:
    found = exponential(Estimate(2.0, 0.1, 1.8, 2.3))
    assert found == Estimate(
        math.exp(2), pytest.approx(0.1 * math.exp(2)), math.exp(1.8), math.exp(2.3)
    )

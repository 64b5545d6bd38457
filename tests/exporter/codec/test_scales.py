"""Scales as they are stored: all codes, and what 16 bits do not hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.codec.scales import stored, type_of, widened
from exporter.quant.tensor import short_scales

CODES = np.arange(1 << 16, dtype=np.uint16)


def test_every_code_has_the_value_of_the_formula() -> None:
    number = CODES.astype(np.int64)
    expected = np.ldexp(1 + number % 1024 / 1024, number // 1024 - 47)
    expected[0] = 0
    values = widened(CODES)
    assert values.dtype == np.float32
    assert np.array_equal(values, expected)
    assert np.array_equal(stored(values), CODES)


def test_every_positive_half_is_stored_in_16_bits() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    codes = stored(halves)
    assert type_of(codes) == "ue6m10"
    assert np.array_equal(widened(codes), halves)


@pytest.mark.parametrize("up", [True, False])
def test_scales_of_quantizers_are_stored_in_16_bits(up: bool) -> None:
    magnitudes = 10.0 ** torch.arange(-8.0, 0.0)[:, None]
    drawn = magnitudes * torch.rand(8, 500, generator=torch.Generator().manual_seed(1))
    scales = short_scales(drawn, up=up).numpy()
    codes = stored(scales)
    assert (type_of(codes), codes.shape) == ("ue6m10", scales.shape)
    assert np.array_equal(widened(codes), scales)


@pytest.mark.parametrize(
    "value", [1 / 3, 2.0**-47, 2.0**17, 1e-40, -1.0, -0.0, np.inf, np.nan, 1 + 2.0**-11]
)
def test_one_scale_that_does_not_fit_keeps_all_in_32_bits(value: float) -> None:
    scales = np.array([[1.0, value], [0.0, 0.5]], np.float32)
    kept = stored(scales)
    assert type_of(kept) == "float32"
    assert widened(kept).tobytes() == scales.tobytes()

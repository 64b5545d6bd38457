"""exporter.quant against slow loops over single weights, and the properties every scheme
promises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint import tensors as stored
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError, UsageError
from exporter.quant import int8, load, ternary
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from tests.support.checkpoints import write_llama

Q_PROJ, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


# ---- the reference: one group of one row at a time, in float64 -----------------------------------


def short(scale: float, to_integer: Callable[[float], int]) -> float:
    """11 significant bits, as half precision has them."""
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(to_integer(mantissa * 2048), exponent - 11)


def reference_int8(group: list[float]) -> tuple[list[int], float]:
    scale = short(float(np.float32(max(abs(w) for w in group)) / np.float32(127)), math.ceil)
    if scale == 0:
        return [0] * len(group), 0.0
    return [
        int(np.clip(np.round(np.float32(w) / np.float32(scale)), -127, 127)) for w in group
    ], scale


def reference_ternary(group: list[float], sparsity: float | None) -> tuple[list[int], float]:
    size = len(group)
    if sparsity is None:
        threshold = 0.7 * math.fsum(abs(w) for w in group) / size
        kept = {i for i in range(size) if abs(group[i]) > threshold}
    else:
        order = sorted(range(size), key=lambda i: (abs(group[i]), i))
        kept = set(order[ternary.zeros_per_group(sparsity, size) :])
    kept = {i for i in kept if group[i] != 0}
    scale = math.fsum(abs(group[i]) for i in kept) / len(kept) if kept else 0.0
    return [int(np.sign(group[i])) if i in kept else 0 for i in range(size)], short(scale, round)


def reference(w: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Levels and scales of `quantize_rows`, by the loops above."""
    size = config.group_size or w.shape[1]
    levels, scales = [], []
    for row in w.tolist():
        groups = [row[at : at + size] for at in range(0, len(row), size)]
        if isinstance(config, int8.Config):
            results = [reference_int8(group) for group in groups]
        else:
            results = [reference_ternary(group, config.sparsity) for group in groups]
        levels.append([level for group, _ in results for level in group])
        scales.append([scale for _, scale in results])
    return np.array(levels), np.array(scales)


def weights(rows: int, cols: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random, or with many ties where dtype is bfloat16; with a row of zeros and a row of equal
    values."""
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows * cols)) * 0.02
    w[0], w[1] = 0.0, -0.5
    return w.to(dtype).float()


CONFIGS = [
    int8.Config(),
    int8.Config(8),
    ternary.Config(),
    ternary.Config(8),
    ternary.Config(sparsity=0.0),
    ternary.Config(sparsity=0.7),
    ternary.Config(8, 0.5),
    ternary.Config(1000, 0.95),
]


def scheme_of(config: Any) -> Any:
    return int8 if isinstance(config, int8.Config) else ternary


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cols", [1, 8, 43, 64])
@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_matches_the_reference(config: Any, cols: int, dtype: torch.dtype) -> None:
    w = weights(9, cols, dtype)
    levels, scales = scheme_of(config).quantize_rows(w, config)
    expected_levels, expected_scales = reference(w.numpy(), config)
    assert levels.dtype == torch.int8
    assert scales.dtype == torch.float32
    assert scales.shape == (9, -(-cols // min(config.group_size or cols, cols)))
    np.testing.assert_array_equal(levels.numpy(), expected_levels)
    np.testing.assert_allclose(scales.numpy(), expected_scales, rtol=1e-6)


FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True)
MATRICES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=FINITE
)


@settings(deadline=None, max_examples=150)
@given(w=MATRICES, config=st.sampled_from(CONFIGS))
def test_properties(w: np.ndarray, config: Any) -> None:
    scheme, size = scheme_of(config), config.group_size or w.shape[1]
    levels, scales = scheme.quantize_rows(torch.from_numpy(w), config)
    restored = scheme.dequantize(levels, scales, size)
    assert restored.isfinite().all()
    assert (scales >= 0).all()
    assert int(levels.min()) >= scheme.LEVEL_MIN
    assert int(levels.max()) < scheme.LEVEL_MIN + scheme.N_LEVELS
    assert (torch.sign(levels) * torch.from_numpy(w) >= 0).all()
    assert (restored[torch.from_numpy(w) == 0] == 0).all()
    negated, same_scales = scheme.quantize_rows(torch.from_numpy(-w), config)
    assert torch.equal(negated, -levels)
    assert torch.equal(same_scales, scales)


def test_int8_error_is_half_a_step() -> None:
    w = weights(6, 200)
    levels, scales = int8.quantize_rows(w, int8.Config(32))
    error = (int8.dequantize(levels, scales, 32) - w).abs()
    steps = scales.repeat_interleave(32, dim=1)[:, :200]
    assert (error <= 0.5001 * steps).all()
    assert (levels.abs().amax(1)[1:] == 127).all()


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1.2e-38, 3e38])
def test_extreme_magnitudes_stay_finite(tiny: float) -> None:
    w = torch.tensor([[tiny, -tiny, 0.0, tiny / 2]])
    for scheme, config in (
        (int8, int8.Config()),
        (ternary, ternary.Config()),
        (ternary, ternary.Config(sparsity=0.5)),
    ):
        levels, scales = scheme.quantize_rows(w, config)
        assert scheme.dequantize(levels, scales, 4).isfinite().all()


@settings(deadline=None, max_examples=100)
@given(sparsity=st.floats(0, 1, exclude_max=True), size=st.integers(1, 200), ties=st.booleans())
def test_sparsity_is_exact(sparsity: float, size: int, ties: bool) -> None:
    w = torch.randn(3, size * 2)
    w = torch.where(w == 0, 1.0, w.sign() if ties else w)
    levels, _ = ternary.quantize_rows(w, ternary.Config(size, sparsity))
    zeros = (levels.reshape(3, 2, size) == 0).sum(-1)
    assert (zeros == ternary.zeros_per_group(sparsity, size)).all()
    assert sparsity * size - 1 <= ternary.zeros_per_group(sparsity, size) <= sparsity * size + 1e-6


@pytest.mark.parametrize(
    ("sparsity", "size", "zeros"), [(0.29, 100, 29), (0.7, 10, 7), (0.99, 4, 3), (0.9, 1, 0)]
)
def test_zeros_per_group(sparsity: float, size: int, zeros: int) -> None:
    assert ternary.zeros_per_group(sparsity, size) == zeros


def test_of_equal_weights_the_first_become_zero() -> None:
    levels, scales = ternary.quantize_rows(
        torch.tensor([[2.0, -2.0, 5.0, 2.0, -2.0]]), ternary.Config(sparsity=0.6)
    )
    assert levels.tolist() == [[0, 0, 1, 0, -1]]
    assert scales.tolist() == [[3.5]]


def test_scale_is_the_least_squares_optimum() -> None:
    w = weights(5, 64)[2:]
    for config in (ternary.Config(), ternary.Config(sparsity=0.6)):
        levels, scales = ternary.quantize_rows(w, config)
        best = (w * levels).sum(1, keepdim=True) / levels.square().sum(1, keepdim=True)
        torch.testing.assert_close(
            scales, best, rtol=2.0**-11, atol=0
        )  # the scale has 11 significant bits


def test_result_does_not_depend_on_the_block() -> None:
    w = weights(64, 4096, torch.bfloat16)
    together = ternary.quantize_rows(w, ternary.Config(sparsity=0.7))
    alone = [ternary.quantize_rows(row[None], ternary.Config(sparsity=0.7)) for row in w]
    assert torch.equal(together[0], torch.cat([levels for levels, _ in alone]))
    assert torch.equal(together[1], torch.cat([scales for _, scales in alone]))


# ---- configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [*CONFIGS, QuantConfig(), QuantConfig("ternary", 64, 0.7, "ternary")], ids=repr
)
def test_config_round_trip(config: Any) -> None:
    raw = config.to_dict()
    assert type(config).from_dict(raw) == config
    assert set(raw) == {field.name for field in dataclasses.fields(config)}
    with pytest.raises(UsageError, match="has no bits"):
        type(config).from_dict(raw | {"bits": 2})


@pytest.mark.parametrize("group_size", [0, -1, 1.5, True, "8"])
def test_bad_group_size(group_size: Any) -> None:
    for config in (int8.Config, ternary.Config):
        with pytest.raises(UsageError, match="group size must be"):
            config(group_size)


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, float("nan"), True, "0.5"])
def test_bad_sparsity(sparsity: Any) -> None:
    with pytest.raises(UsageError, match="sparsity must be"):
        ternary.Config(sparsity=sparsity)


def test_all_offenders_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        QuantConfig(scheme="int2", group_size=0, sparsity=2.0, embedding="float")
    assert len(caught.value.problems) == 4
    with pytest.raises(UsageError, match="sparsity is an option of scheme ternary"):
        QuantConfig(scheme="int8", sparsity=0.5)


def test_which_config_a_tensor_gets() -> None:
    mixed = QuantConfig("ternary", 64, 0.7, "int8")
    assert mixed.config_for(Q_PROJ) == ternary.Config(64, 0.7)
    assert mixed.config_for(EMBEDDING) == mixed.config_for(HEAD) == int8.Config()
    assert QuantConfig("ternary", 64, 0.7, "ternary").config_for(HEAD) == ternary.Config(64, 0.7)
    assert QuantConfig("int8", 64, None, "int8").config_for(HEAD) == int8.Config(64)
    assert QuantConfig("int8", 64, None, "ternary").config_for(HEAD) == ternary.Config()
    for name in (
        NORM,
        "model.layers.3.input_layernorm.weight",
        "model.layers.3.post_attention_layernorm.weight",
    ):
        assert mixed.config_for(name) is None


# ---- streams -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = write_llama(
        tmp_path_factory.mktemp("quant"), dtype=torch.bfloat16, tie_word_embeddings=False
    )
    return Checkpoint.open(directory)


@pytest.mark.parametrize(
    "config", [QuantConfig("ternary", 32, 0.7), QuantConfig("int8", embedding="ternary")], ids=repr
)
def test_streaming_equals_whole(
    checkpoint: Checkpoint, config: QuantConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BLOCK_WEIGHTS", 500)
    steps: list[tuple[str, int, int]] = []
    tensors = list(quantize(checkpoint, config, lambda *step: steps.append(step)))
    matrices = [name for name in checkpoint.names if len(checkpoint.shape(name)) == 2]
    assert [tensor.name for tensor in tensors] == matrices
    assert {stage for stage, _, _ in steps} == {"quantize and code"}
    assert len(steps) == len(matrices)
    assert (
        steps[-1][1] == steps[-1][2] == sum(math.prod(checkpoint.shape(name)) for name in matrices)
    )
    for tensor in tensors:
        rows, cols = checkpoint.shape(tensor.name)
        w = checkpoint.rows(tensor.name, 0, rows)
        scheme = load(tensor.scheme)
        levels, scales = scheme.quantize_rows(w, config.config_for(tensor.name))
        assert (tensor.level_min, tensor.n_levels) == (scheme.LEVEL_MIN, scheme.N_LEVELS)
        assert (tensor.levels.dtype, tensor.scales.dtype) == (np.int8, np.float32)
        assert tensor.scales.shape == (rows, -(-cols // tensor.group_size))
        np.testing.assert_array_equal(tensor.levels, levels.numpy())
        np.testing.assert_array_equal(tensor.scales, scales.numpy())
        assert torch.equal(
            tensor.dequantize(2, 5), scheme.dequantize(levels, scales, tensor.group_size)[2:5]
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "config",
    [QuantConfig("ternary"), QuantConfig("ternary", sparsity=0.5), QuantConfig("int8")],
    ids=repr,
)
def test_weights_that_are_not_finite_never_pass(
    tmp_path: Path, value: float, config: QuantConfig
) -> None:
    from safetensors.torch import load_file, save_file

    directory = write_llama(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    tensors[Q_PROJ][7, 3] = value
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="q_proj"):
        list(quantize(Checkpoint.open(directory), config))


def test_threads_are_as_before(checkpoint: Checkpoint) -> None:
    threads = torch.get_num_threads()
    for _ in quantize(checkpoint, QuantConfig()):
        assert torch.get_num_threads() == threads
    checkpoint.check_finite()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "config", [int8.Config(), int8.Config(8), ternary.Config(), ternary.Config(16, 0.5)]
)
def test_scales_are_halves(config: int8.Config | ternary.Config) -> None:
    """So that float16 packages hold the very weights of the others."""
    w = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    _, scales = scheme_of(config).quantize_rows(w, config)
    assert torch.equal(scales.half().float(), scales)

"""The operators against numpy and the slow decoder: functional, `.out`, fake, and inside a real
ExecuTorch program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporter.backends.executorch import operators  # noqa: F401  (registers torch.ops.tinyqmoe)
from exporter.codec import encoder
from exporter.codec.reference import decode
from exporter.errors import CodecError

OPS = torch.ops.tinyqmoe


@dataclass(frozen=True)
class Matrix:
    """A coded random matrix, its levels and its scales."""

    levels: np.ndarray
    scales: np.ndarray
    blob: np.ndarray
    group_size: int

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.blob), torch.from_numpy(self.scales)

    def weights(self) -> np.ndarray:
        """float64 [rows, cols]."""
        spread = np.repeat(self.scales.astype(np.float64), self.group_size, axis=1)
        return self.levels * spread[:, : self.levels.shape[1]]


def matrix(rows: int, cols: int, group_size: int, kind: str, codec: encoder.Codec) -> Matrix:
    rng = np.random.default_rng(rows * cols)
    low, n = (-1, 3) if kind == "ternary" else (-127, 255)
    levels = rng.integers(low, low + n, (rows, cols), dtype=np.int8)
    scales = rng.uniform(0.01, 0.1, (rows, -(-cols // group_size))).astype(np.float32)
    return Matrix(levels, scales, encoder.encode(levels, low, n, codec).blob, group_size)


SHAPES = {  # rows, columns, group size, scheme, codec
    "one group": (48, 64, 64, "int8", "raw"),
    "groups": (33, 128, 32, "int8", "raw"),
    "groups do not divide": (40, 100, 24, "int8", "raw"),
    "group of one": (5, 9, 1, "int8", "raw"),
    "ternary raw": (70, 172, 172, "ternary", "raw"),
    "ternary lzw": (70, 172, 172, "ternary", "lzw"),
    "ternary lzw groups do not divide": (33, 43, 20, "ternary", "lzw"),
    "int8 lzw": (16, 50, 50, "int8", "lzw"),
    "one row": (1, 300, 300, "int8", "lzw"),
    "one column": (300, 1, 1, "ternary", "raw"),
    "wide": (3, 4100, 4100, "int8", "raw"),
}


@pytest.fixture(scope="module", params=SHAPES)
def coded(request: pytest.FixtureRequest) -> Matrix:
    rows, cols, group_size, kind, codec = SHAPES[request.param]
    return matrix(rows, cols, group_size, kind, codec)  # type: ignore[arg-type]


def activations(tokens: int, cols: int, seed: int = 0) -> np.ndarray:
    """float32 [tokens, cols] with rows of very different size, ties of the rounding, and a row of
    zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, cols)).astype(np.float32) * np.float32(10.0) ** rng.integers(
        -3, 4, (tokens, 1)
    )
    x = x.astype(np.float32)
    x[-1] = 0
    x[0] = np.round(x[0] * 2) / 2
    x[0, 0] = 32512.0
    return x


def linear_x16(x: np.ndarray, m: Matrix) -> np.ndarray:
    """The arithmetic of DESIGN and tinyqmoe.h, written down again in numpy."""
    largest = np.abs(x).max(-1, keepdims=True)
    one = np.float32(32512)
    usable = largest >= np.float32(2.0**-100)
    safe = np.where(usable, largest, one)
    q = np.rint(x * np.where(usable, one / safe, np.float32(0))).astype(np.int64)
    x_scales = np.where(usable, safe / one, np.float32(0))
    begins = range(0, m.levels.shape[1], m.group_size)
    sums = [
        q[:, b : b + m.group_size] @ m.levels[:, b : b + m.group_size].T.astype(np.int64)
        for b in begins
    ]
    if len(sums) == 1:
        return sums[0].astype(np.float32) * (x_scales * m.scales.T)
    total = np.zeros(sums[0].shape, np.float32)
    for g, integer in enumerate(sums):
        total = total + integer.astype(np.float32) * m.scales[:, g]
    return x_scales * total


# ---- values


@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_linear_x16_gives_the_same_bits_as_numpy(coded: Matrix, tokens: int) -> None:
    rows, cols = coded.levels.shape
    x = activations(tokens, cols)
    y = OPS.lzw_linear(torch.from_numpy(x), *coded.tensors, rows, coded.group_size, True)
    assert y.dtype == torch.float32
    expected = linear_x16(x, coded)
    assert expected.dtype == np.float32
    assert np.array_equal(y.numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("tokens", [1, 5])
def test_linear_float_is_the_product(coded: Matrix, tokens: int) -> None:
    rows, cols = coded.levels.shape
    x = np.random.default_rng(1).normal(size=(tokens, cols)).astype(np.float32)
    y = OPS.lzw_linear(torch.from_numpy(x), *coded.tensors, rows, coded.group_size, False).numpy()
    size = (
        np.abs(x).astype(np.float64) @ np.abs(coded.weights()).T
    )  # what rounding errors are relative to
    assert (np.abs(y - x.astype(np.float64) @ coded.weights().T) <= 1e-5 * size).all()


def test_leading_dimensions_are_kept(coded: Matrix) -> None:
    rows, cols = coded.levels.shape
    x = torch.from_numpy(activations(6, cols))
    flat = OPS.lzw_linear(x, *coded.tensors, rows, coded.group_size, True)
    shaped = OPS.lzw_linear(x.reshape(2, 3, cols), *coded.tensors, rows, coded.group_size, True)
    assert torch.equal(shaped, flat.reshape(2, 3, rows))
    single = OPS.lzw_linear(x[1], *coded.tensors, rows, coded.group_size, True)
    assert torch.equal(single, flat[1])


def test_activations_that_are_not_contiguous(coded: Matrix) -> None:
    rows, cols = coded.levels.shape
    x = torch.from_numpy(activations(4, 2 * cols))[:, ::2]
    y = OPS.lzw_linear(x, *coded.tensors, rows, coded.group_size, True)
    assert torch.equal(
        y, OPS.lzw_linear(x.contiguous(), *coded.tensors, rows, coded.group_size, True)
    )


def test_threads_do_not_change_the_bits() -> None:
    m = matrix(257, 96, 96, "ternary", "lzw")
    x = torch.from_numpy(activations(3, 96))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([OPS.lzw_linear(x, *m.tensors, 257, 96, mode) for mode in (True, False)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


def test_embedding_gives_rows_times_scales(coded: Matrix) -> None:
    rows, cols = coded.levels.shape
    ids = torch.tensor([[0, rows - 1, rows // 2], [0, 0, rows // 3]])
    got = OPS.lzw_embedding(ids, *coded.tensors, cols, coded.group_size)
    spread = np.repeat(coded.scales, coded.group_size, axis=1)[:, :cols]
    expected = coded.levels.astype(np.float32) * spread
    assert np.array_equal(got.numpy(), expected[ids.numpy()])


def test_decode_gives_the_levels_of_the_slow_decoder(coded: Matrix) -> None:
    got = OPS.lzw_decode(torch.from_numpy(coded.blob), *coded.levels.shape)
    assert got.dtype == torch.int8
    assert np.array_equal(got.numpy(), decode(coded.blob))
    assert np.array_equal(got.numpy(), coded.levels)


# ---- schemas, fake kernels, `.out`

SMALL = matrix(12, 20, 8, "ternary", "lzw")
CALLS: dict[str, tuple[Any, ...]] = {
    "lzw_decode": (torch.from_numpy(SMALL.blob), 12, 20),
    "lzw_linear": (torch.randn(2, 20), *SMALL.tensors, 12, 8, True),
    "lzw_embedding": (torch.tensor([[1, 11, 0]]), *SMALL.tensors, 20, 8),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    results = torch.library.opcheck(getattr(OPS, name).default, CALLS[name], test_utils=tests)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", CALLS)
def test_out_form_writes_the_same_values(name: str) -> None:
    operator = getattr(OPS, name)
    expected = operator(*CALLS[name])
    out = torch.full_like(expected, 7)
    returned = operator.out(*CALLS[name], out=out)
    assert returned.data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", CALLS)
def test_out_form_refuses_an_out_of_another_shape(name: str) -> None:
    operator = getattr(OPS, name)
    expected = operator(*CALLS[name])
    for wrong in (expected.new_empty(3, *expected.shape), expected.new_empty(expected.shape[:-1])):
        with pytest.raises((RuntimeError, ValueError)):
            operator.out(*CALLS[name], out=wrong)


def test_fake_kernels_need_no_valid_blob() -> None:
    """A program is lowered with a stand-in for every blob."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        blob, scales = torch.empty(64, dtype=torch.uint8), torch.empty(1, 16)
        assert OPS.lzw_linear(torch.empty(1, 7, 20), blob, scales, 12, 8, True).shape == (1, 7, 12)
        rows = OPS.lzw_embedding(torch.zeros(1, 7, dtype=torch.long), blob, scales, 20, 8)
        assert (rows.shape, rows.dtype) == ((1, 7, 20), torch.float32)
        levels = OPS.lzw_decode(blob, 5, 6)
        assert (levels.shape, levels.dtype) == ((5, 6), torch.int8)


# ---- errors


def test_wrong_shapes_are_refused() -> None:
    x, (blob, scales) = torch.randn(2, 20), SMALL.tensors
    ids = torch.tensor([1])
    for call in (
        lambda: OPS.lzw_decode(blob, 20, 12),
        lambda: OPS.lzw_linear(x, blob, scales, 13, 8, True),
        lambda: OPS.lzw_linear(x[:, :19], blob, scales, 12, 8, True),
        lambda: OPS.lzw_linear(x, blob, scales[:, :2], 12, 8, True),
        lambda: OPS.lzw_linear(x, blob, scales[:11], 12, 8, True),
        lambda: OPS.lzw_linear(x, blob, scales, 12, 0, True),
        lambda: OPS.lzw_embedding(ids, blob, scales, 21, 8),
        lambda: OPS.lzw_embedding(ids, blob, scales[:11], 20, 8),
    ):
        with pytest.raises(ValueError, match=r"expected|must be"):
            call()


def test_an_id_outside_the_embedding_is_refused() -> None:
    for bad in (12, -1, 2**40):
        with pytest.raises(CodecError, match="BAD_ID"):
            OPS.lzw_embedding(torch.tensor([0, bad]), *SMALL.tensors, 20, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused_in_x16(value: float) -> None:
    x = torch.zeros(2, 20)
    x[1, 3] = value
    with pytest.raises(CodecError, match="NON_FINITE"):
        OPS.lzw_linear(x, *SMALL.tensors, 12, 8, True)


def test_a_damaged_blob_is_refused() -> None:
    blob = torch.from_numpy(SMALL.blob.copy())
    blob[9] ^= 1
    with pytest.raises(CodecError, match="BAD_HEADER_CRC"):
        OPS.lzw_decode(blob, 12, 20)
    with pytest.raises(CodecError, match="TRUNCATED"):
        OPS.lzw_decode(blob[:40], 12, 20)


# ---- in a program


class Decoder(nn.Module):
    """Levels of a constant blob, of which `skip` rows are left out: an input, so that the program
    does compute."""

    blob: Tensor

    def __init__(self, m: Matrix) -> None:
        super().__init__()
        self.register_buffer("blob", torch.from_numpy(m.blob))
        self.shape = m.levels.shape

    def forward(self, offset: Tensor) -> Tensor:
        return OPS.lzw_decode(self.blob, *self.shape).to(torch.int32) + offset


def lower(model: nn.Module, example: tuple[Tensor, ...], path: Path) -> list[str]:
    """Writes a program with the default passes; returns the names of its operators."""
    from executorch.exir import EdgeCompileConfig, to_edge

    edge = to_edge(
        torch.export.export(model, example),
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    manager = edge.to_executorch()
    path.write_bytes(manager.buffer)
    return [
        f"{op.name}.{op.overload}" for op in manager.executorch_program.execution_plan[0].operators
    ]


def method(path: Path) -> Any:
    from executorch.runtime import Runtime

    from runtime_ref.executorch import kernels

    kernels.load()
    program = Runtime.get().load_program(path)
    return program, program.load_method("forward")  # the method uses the program's memory


@pytest.mark.parametrize("codec", ["raw", "lzw"])
def test_decode_runs_in_executorch(tmp_path: Path, codec: encoder.Codec) -> None:
    m = matrix(70, 300, 300, "ternary", codec)
    names = lower(Decoder(m), (torch.zeros(1, dtype=torch.int32),), tmp_path / "decode.pte")
    assert (
        "tinyqmoe::lzw_decode.out" in names
    )  # constant folding would have put the levels into the file
    assert (tmp_path / "decode.pte").stat().st_size < m.levels.size / 2 + 4096
    program, forward = method(tmp_path / "decode.pte")
    for offset in (0, 5):
        (levels,) = forward.execute((torch.tensor([offset], dtype=torch.int32),))
        assert np.array_equal(levels.numpy(), m.levels.astype(np.int32) + offset)
    del program


def test_a_blob_that_does_not_fit_its_call_is_an_error_in_executorch(tmp_path: Path) -> None:
    m = matrix(70, 300, 300, "ternary", "lzw")
    decoder = Decoder(m)
    decoder.shape = (300, 70)
    lower(decoder, (torch.zeros(1, dtype=torch.int32),), tmp_path / "wrong.pte")
    program, forward = method(tmp_path / "wrong.pte")
    with pytest.raises(RuntimeError):
        forward.execute((torch.zeros(1, dtype=torch.int32),))
    del program


class Product(nn.Module):
    """Embedding and product of the same constants, with a group size that does not divide the
    rows."""

    blob: Tensor
    scales: Tensor

    def __init__(self, m: Matrix, int16_activations: bool) -> None:
        super().__init__()
        blob, scales = m.tensors
        self.register_buffer("blob", blob)
        self.register_buffer("scales", scales)
        self.rows, self.cols, self.group_size, self.mode = (
            *m.levels.shape,
            m.group_size,
            int16_activations,
        )

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = OPS.lzw_embedding(ids, self.blob, self.scales, self.cols, self.group_size)
        return rows, OPS.lzw_linear(
            x, self.blob, self.scales, self.rows, self.group_size, self.mode
        )


@pytest.mark.parametrize("int16_activations", [True, False])
def test_executorch_gives_the_same_bits_as_pytorch(tmp_path: Path, int16_activations: bool) -> None:
    m = matrix(333, 100, 24, "int8", "raw")  # enough rows for several tasks of the thread pool
    inputs = (torch.tensor([[3, 332, 0]]), torch.from_numpy(activations(9, 100))[None])
    lower(Product(m, int16_activations), inputs, tmp_path / "product.pte")
    program, forward = method(tmp_path / "product.pte")
    for got, expected in zip(
        forward.execute(inputs), Product(m, int16_activations)(*inputs), strict=True
    ):
        assert torch.equal(got, expected)
    with pytest.raises(RuntimeError):
        forward.execute((torch.tensor([[3, 333, 0]]), inputs[1]))
    del program

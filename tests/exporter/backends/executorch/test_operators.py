"""The operators in programs of the real ExecuTorch runtime, against numpy, the slow decoder and
PyTorch, and the planned memory of programs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exporter.backends.executorch import lowering
from exporter.backends.executorch.graph import ALIGNMENT, Constant, Graph, Value
from exporter.codec import encoder
from exporter.codec.reference import decode
from exporter.codec.scales import stored, type_of
from exporter.models import layers
from runtime_ref.executorch import kernels


@dataclass(frozen=True)
class Matrix:
    """A coded random matrix, its levels and its scales."""

    levels: np.ndarray
    scales: np.ndarray
    blob: np.ndarray
    group_size: int

    def weights(self) -> np.ndarray:
        """float64 [rows, cols]."""
        spread = np.repeat(self.scales.astype(np.float64), self.group_size, axis=1)
        return self.levels * spread[:, : self.levels.shape[1]]


def matrix(rows: int, cols: int, group_size: int, kind: str, codec: encoder.Codec) -> Matrix:
    rng = np.random.default_rng(rows * cols)
    low, n = (-1, 3) if kind == "ternary" else (-127, 255)
    levels = rng.integers(low, low + n, (rows, cols), dtype=np.int8)
    scales = rng.uniform(0.01, 0.1, (rows, -(-cols // group_size))).astype(np.float32)
    if codec == "lzw":  # they are stored in 16 bits
        scales = scales.astype(np.float16).astype(np.float32)
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


# ---- programs of one operator


class OneCall:
    """A loaded program with one call, of `like` for each input."""

    def __init__(self, path: Path, record: Callable[[Graph, list[Value]], Value], *like: Tensor):
        from executorch.runtime import Runtime

        kernels.load()
        graph = Graph(tokens=1)
        inputs = [graph.input(tuple(x.shape), x.dtype, dynamic=True) for x in like]
        lowering.write(graph.program(record(graph, inputs), {}), path)
        self.program = Runtime.get().load_program(path)  # the method uses its memory
        self.method = self.program.load_method("forward")

    def __call__(self, *inputs: Tensor) -> np.ndarray:
        (out,) = self.method.execute(inputs)
        return out.numpy().copy()


def constants(graph: Graph, m: Matrix) -> tuple[Value, Value]:
    """Blob and scales in a program."""
    scales = stored(m.scales)
    dtype = lowering.SCALE_TYPES[type_of(scales)]
    return (
        graph.constant(Constant(m.blob.tobytes(), m.blob.shape, torch.uint8)),
        graph.constant(Constant(scales.tobytes(), m.scales.shape, dtype)),
    )


def linear(path: Path, m: Matrix, like: Tensor, *, int16: bool = True) -> OneCall:
    rows = m.levels.shape[0]
    sizes = (*like.shape[:-1], rows)

    def record(graph: Graph, inputs: list[Value]) -> Value:
        arguments = (*inputs, *constants(graph, m), rows, m.group_size, int16)
        return graph.call("lzw_linear", *arguments, sizes=sizes, dynamic=True)

    return OneCall(path, record, like)


def linears(path: Path, matrices: list[Matrix], like: Tensor, which: int) -> OneCall:
    """The result of one of several products of the same input, which are one call."""

    def record(graph: Graph, inputs: list[Value]) -> Value:
        outs = []
        for m in matrices:
            rows = m.levels.shape[0]
            arguments = (*inputs, *constants(graph, m), rows, m.group_size, True)
            sizes = (*like.shape[:-1], rows)
            outs.append(graph.call("lzw_linear", *arguments, sizes=sizes, dynamic=True))
        lowering.join_products(graph)
        assert graph.census() == {"tinyqmoe::lzw_linears.out": 1}
        return outs[which]

    return OneCall(path, record, like)


def embedding(path: Path, m: Matrix, like: Tensor) -> OneCall:
    cols = m.levels.shape[1]

    def record(graph: Graph, inputs: list[Value]) -> Value:
        arguments = (*inputs, *constants(graph, m), cols, m.group_size)
        sizes = (*like.shape, cols)
        return graph.call("lzw_embedding", *arguments, sizes=sizes, dynamic=True)

    return OneCall(path, record, like)


# ---- over coded matrices


@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_linear_x16_gives_the_same_bits_as_numpy(
    coded: Matrix, tokens: int, tmp_path: Path
) -> None:
    x = activations(tokens, coded.levels.shape[1])
    got = linear(tmp_path / "m.pte", coded, torch.from_numpy(x))(torch.from_numpy(x))
    expected = linear_x16(x, coded)
    assert expected.dtype == np.float32
    assert np.array_equal(got.view(np.int32), expected.view(np.int32))


TOGETHER = [
    matrix(70, 172, 172, "ternary", "lzw"),
    matrix(5, 172, 50, "int8", "raw"),
    matrix(200, 172, 172, "int8", "lzw"),
]


@pytest.mark.parametrize("which", range(len(TOGETHER)))
@pytest.mark.parametrize("tokens", [1, 9])
def test_products_of_one_input_give_the_same_bits_in_one_call(
    which: int, tokens: int, tmp_path: Path
) -> None:
    x = activations(tokens, 172)
    got = linears(tmp_path / "m.pte", TOGETHER, torch.from_numpy(x), which)(torch.from_numpy(x))
    expected = linear_x16(x, TOGETHER[which])
    assert np.array_equal(got.view(np.int32), expected.view(np.int32))


def test_only_products_of_one_input_are_joined(tmp_path: Path) -> None:
    graph = Graph(tokens=1)
    for name in ("x", "x", "y"):
        x = graph.input((1, 172), torch.float32, dynamic=True)
        for m in TOGETHER[: 2 if name == "x" else 1]:
            arguments = (x, *constants(graph, m), m.levels.shape[0], m.group_size, True)
            graph.call("lzw_linear", *arguments, sizes=(1, m.levels.shape[0]), dynamic=True)
    lowering.join_products(graph)
    assert graph.census() == {"tinyqmoe::lzw_linears.out": 2, "tinyqmoe::lzw_linear.out": 1}


def test_linear_float_is_the_product(coded: Matrix, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(5, coded.levels.shape[1])).astype(np.float32)
    got = linear(tmp_path / "m.pte", coded, torch.from_numpy(x), int16=False)(torch.from_numpy(x))
    # What rounding errors are relative to.
    size = np.abs(x).astype(np.float64) @ np.abs(coded.weights()).T
    assert (np.abs(got - x.astype(np.float64) @ coded.weights().T) <= 1e-5 * size).all()


def test_leading_dimensions_are_kept_and_shorter_inputs_too(coded: Matrix, tmp_path: Path) -> None:
    rows, cols = coded.levels.shape
    x = torch.from_numpy(activations(6, cols))
    flat = linear(tmp_path / "flat.pte", coded, x)
    shaped = linear(tmp_path / "shaped.pte", coded, x.reshape(2, 3, cols))
    assert np.array_equal(shaped(x.reshape(2, 3, cols)), flat(x).reshape(2, 3, rows))
    assert np.array_equal(flat(x[1:3]), flat(x)[1:3])


def test_embedding_gives_rows_times_scales(coded: Matrix, tmp_path: Path) -> None:
    rows, cols = coded.levels.shape
    ids = torch.tensor([[0, rows - 1, rows // 2], [0, 0, rows // 3]])
    spread = np.repeat(coded.scales, coded.group_size, axis=1)[:, :cols]
    expected = coded.levels.astype(np.float32) * spread
    assert np.array_equal(embedding(tmp_path / "m.pte", coded, ids)(ids), expected[ids.numpy()])


def test_decode_gives_the_levels_of_the_slow_decoder(coded: Matrix, tmp_path: Path) -> None:
    shape = coded.levels.shape

    def record(graph: Graph, inputs: list[Value]) -> Value:
        blob, _ = constants(graph, coded)
        return graph.call("lzw_decode", blob, *shape, sizes=shape, dynamic=False, dtype=torch.int8)

    got = OneCall(tmp_path / "m.pte", record)()
    assert got.dtype == np.int8
    assert np.array_equal(got, decode(coded.blob))
    assert np.array_equal(got, coded.levels)


# ---- the rest of a layer, against PyTorch


def call_of(name: str, *numbers: Any, sizes: tuple[int, ...]) -> Callable[..., Value]:
    def record(graph: Graph, inputs: list[Value]) -> Value:
        return graph.call(name, *inputs, *numbers, sizes=sizes, dynamic=True)

    return record


def random(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(sum(sizes)))


@pytest.mark.parametrize("runs", [1, 3])
def test_rms_norm_is_that_of_pytorch(runs: int, tmp_path: Path) -> None:
    x, weight = random(1, 9, 20 * runs), random(20)
    norm = OneCall(tmp_path / "m.pte", call_of("rms_norm", 1e-5, sizes=tuple(x.shape)), x, weight)
    expected = layers.RMSNorm(weight, 1e-5)(x)
    assert np.allclose(norm(x, weight), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_swiglu_is_that_of_pytorch(tmp_path: Path) -> None:
    gate, up = random(1, 7, 1000), random(1, 7, 1001)[..., :1000].contiguous()
    swiglu = OneCall(tmp_path / "m.pte", call_of("swiglu", sizes=tuple(gate.shape)), gate, up)
    assert np.allclose(swiglu(gate, up), layers.SwiGLU()(gate, up).numpy(), rtol=1e-5, atol=1e-6)


def test_a_sum_is_exact_with_a_residual_and_with_a_bias(tmp_path: Path) -> None:
    x, y, bias = random(1, 7, 30), random(1, 7, 31)[..., :30].contiguous(), random(30)
    for other in (y, bias):
        add = OneCall(tmp_path / "m.pte", call_of("add", sizes=tuple(x.shape)), x, other)
        assert np.array_equal(add(x, other), (x + other).numpy())


def test_the_last_token_is_the_last(tmp_path: Path) -> None:
    x = random(1, 7, 30)
    last = OneCall(tmp_path / "m.pte", call_of("last", sizes=(1, 30)), x)
    for n in (1, 3, 7):
        assert np.array_equal(last(x[:, :n].contiguous()), x[:, n - 1].numpy())


# ---- errors


SMALL = matrix(12, 20, 8, "ternary", "lzw")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(SMALL, scales=SMALL.scales[:, :2]),
        replace(SMALL, scales=SMALL.scales[:11]),
        replace(SMALL, levels=SMALL.levels[:11]),
        replace(SMALL, blob=SMALL.blob[:40]),
    ],
    ids=["groups", "rows of scales", "rows", "truncated"],
)
def test_a_matrix_that_does_not_fit_its_call_is_an_error(wrong: Matrix, tmp_path: Path) -> None:
    x = torch.randn(2, 20)
    with pytest.raises(RuntimeError):
        linear(tmp_path / "m.pte", wrong, x)(x)


@pytest.mark.parametrize("which", [1, 2, 3, 5], ids=["blobs", "scales", "group sizes", "results"])
@pytest.mark.parametrize("kept", [0, 1])
def test_lists_of_different_lengths_are_an_error(which: int, kept: int, tmp_path: Path) -> None:
    x = torch.randn(2, 172)

    def record(graph: Graph, inputs: list[Value]) -> Value:
        outs = []
        for m in TOGETHER[:2]:
            arguments = (*inputs, *constants(graph, m), m.levels.shape[0], m.group_size, True)
            sizes = (2, m.levels.shape[0])
            outs.append(graph.call("lzw_linear", *arguments, sizes=sizes, dynamic=True))
        lowering.join_products(graph)
        (call,) = graph.calls.values()
        if which < len(call.arguments):
            del graph.values[call.arguments[which]].val.items[kept:]
        else:
            call.arguments.append(graph.tensors(call.outs[:kept]))
        return outs[0]

    with pytest.raises(RuntimeError):
        OneCall(tmp_path / "m.pte", record, x)(x)


@pytest.mark.parametrize("which", [0, 1])
def test_one_wrong_matrix_of_several_is_an_error(which: int, tmp_path: Path) -> None:
    matrices = [TOGETHER[0], TOGETHER[2]]
    wrong = matrices[which]
    matrices[which] = replace(wrong, scales=wrong.scales[:3])
    x = torch.randn(2, 172)
    with pytest.raises(RuntimeError):
        linears(tmp_path / "m.pte", matrices, x, 0)(x)


def test_an_id_outside_the_embedding_is_an_error(tmp_path: Path) -> None:
    rows = embedding(tmp_path / "m.pte", SMALL, torch.tensor([0, 0]))
    for bad in (12, -1, 2**40):
        with pytest.raises(RuntimeError):
            rows(torch.tensor([0, bad]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_an_error_in_x16(value: float, tmp_path: Path) -> None:
    x = torch.zeros(2, 20)
    x[1, 3] = value
    with pytest.raises(RuntimeError):
        linear(tmp_path / "m.pte", SMALL, x)(x)


def test_a_damaged_blob_is_an_error(tmp_path: Path) -> None:
    blob = SMALL.blob.copy()
    blob[9] ^= 1
    x = torch.randn(2, 20)
    with pytest.raises(RuntimeError):
        linear(tmp_path / "m.pte", replace(SMALL, blob=blob), x)(x)


WRONG: dict[str, tuple[str, tuple[Any, ...], tuple[Tensor, ...]]] = {
    "norm": ("rms_norm", (1e-5,), (random(1, 3, 21), random(20))),
    "swiglu": ("swiglu", (), (random(1, 3, 20), random(1, 3, 21))),
    "bias": ("add", (), (random(1, 3, 20), random(21))),
    "residual": ("add", (), (random(1, 3, 20), random(1, 4, 20))),
    "last": ("last", (), (random(3, 20),)),
}


@pytest.mark.parametrize("what", WRONG)
def test_tensors_that_do_not_fit_together_are_an_error(what: str, tmp_path: Path) -> None:
    name, numbers, inputs = WRONG[what]
    program = OneCall(
        tmp_path / "m.pte", call_of(name, *numbers, sizes=tuple(inputs[0].shape)), *inputs
    )
    with pytest.raises(RuntimeError):
        program(*inputs)


# ---- memory


def test_values_that_live_together_never_share_memory() -> None:
    """Random graphs: whatever a later call reads is not overwritten before."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        graph = Graph(tokens=4)
        values = [graph.input((4, 4), torch.float32, dynamic=False)]
        caches = [graph.cache(int(rng.integers(1, 500))) for _ in range(int(rng.integers(3)))]
        for _ in range(int(rng.integers(1, 20))):
            read = [values[i] for i in rng.integers(0, len(values), 2)]
            sizes = (int(rng.integers(1, 40)), 4)
            values.append(graph.call("add", *read, sizes=sizes, dynamic=False))
        program = graph.program(values[-1], {})
        arena = program.execution_plan[0].non_const_buffer_sizes[1]
        spans = []
        for value in (*caches, *values[1:]):
            at = graph.values[value.index].val.allocation_info.memory_offset_low
            assert at % ALIGNMENT == 0
            assert at + value.n_bytes <= arena
            first, last = (0, 99) if value.first is None else (value.first, value.last)
            spans.append((at, at + value.n_bytes, first, last))
        for a, b in itertools.combinations(spans, 2):
            apart_in_time = a[3] < b[2] or b[3] < a[2]
            assert apart_in_time or a[1] <= b[0] or b[1] <= a[0]

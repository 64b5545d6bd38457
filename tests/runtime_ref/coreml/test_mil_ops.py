"""Every operation of the interpreter, through a real program: against NumPy or PyTorch, and against
coremltools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from runtime_ref.coreml import mil_ops
from runtime_ref.coreml.mil_program import MLProgram
from runtime_ref.coreml.mil_steps import Arithmetic
from tests.support.mil import ct, mb, save, types

Array = np.ndarray
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    """Random float32 values that half precision holds: so both programs compute on the same
    numbers."""
    return RNG.standard_normal(shape).astype(np.float16).astype(np.float32)


X, Y = normal(2, 3, 4), normal(3, 1)
ABOVE_0 = np.abs(X) + np.float32(0.125)
INTS = RNG.integers(-9, 9, (2, 3, 4)).astype(np.int32)
IMAGE = normal(2, 4, 7, 6)


@dataclass(frozen=True)
class Case:
    """`build` is given the inputs as variables, `expected` as arrays. Floats are halves in the
    program of halves."""

    operation: str
    inputs: tuple[Array, ...]
    build: Callable[..., Any]
    expected: Callable[..., Any]


def torch_of(function: Callable[..., torch.Tensor]) -> Callable[..., Array]:
    return lambda *arrays: function(*map(torch.from_numpy, arrays)).numpy()


def layer_norm(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def like(x: Any, value: Array) -> Array:
    """A constant of the type of `x`."""
    return value.astype(types.nptype_from_builtin(x.dtype))


W, B = normal(5, 4), normal(5)
KERNEL, KERNEL_1D = normal(6, 2, 3, 2), normal(5, 3, 2)
CHANNELS = [np.maximum(np.abs(normal(4)), np.float32(0.5)) for _ in range(4)]
Q, K, V = (normal(2, 3, n, 4) for n in (5, 6, 6))
ADDED = np.where(RNG.random((1, 1, 5, 6)) < 0.5, 0, -3e4).astype(np.float32)
ADDED[..., 0] = 0
LOOK = ADDED == 0

CASES = {
    "add": Case("add", (X, Y), lambda x, y: mb.add(x=x, y=y), np.add),
    "add ints": Case("add", (INTS, INTS[0]), lambda x, y: mb.add(x=x, y=y), np.add),
    "add scalar": Case(
        "add", (X,), lambda x: mb.add(x=x, y=like(x, np.array(0.25))), lambda x: x + 0.25
    ),
    "sub": Case("sub", (X, Y), lambda x, y: mb.sub(x=x, y=y), np.subtract),
    "mul": Case("mul", (X, Y), lambda x, y: mb.mul(x=x, y=y), np.multiply),
    "real_div": Case("real_div", (X, ABOVE_0), lambda x, y: mb.real_div(x=x, y=y), np.divide),
    "floor_div": Case(
        "floor_div", (X * 9, ABOVE_0), lambda x, y: mb.floor_div(x=x, y=y), np.floor_divide
    ),
    "floor_div ints": Case(
        "floor_div", (INTS,), lambda x: mb.floor_div(x=x, y=np.int32(4)), lambda x: x // 4
    ),
    "less": Case("less", (INTS, INTS[::-1].copy()), lambda x, y: mb.less(x=x, y=y), np.less),
    "less_equal": Case(
        "less_equal", (INTS, INTS[0]), lambda x, y: mb.less_equal(x=x, y=y), np.less_equal
    ),
    "greater_equal": Case(
        "greater_equal", (X, Y), lambda x, y: mb.greater_equal(x=x, y=y), np.greater_equal
    ),
    "abs": Case("abs", (X,), lambda x: mb.abs(x=x), np.abs),
    "square": Case("square", (X,), lambda x: mb.square(x=x), np.square),
    "sqrt": Case("sqrt", (ABOVE_0,), lambda x: mb.sqrt(x=x), np.sqrt),
    "rsqrt": Case(
        "rsqrt",
        (ABOVE_0,),
        lambda x: mb.rsqrt(x=x, epsilon=like(x, np.array(0.5))),
        lambda x: 1 / np.sqrt(x + 0.5),
    ),
    "sigmoid": Case("sigmoid", (X,), lambda x: mb.sigmoid(x=x), lambda x: 1 / (1 + np.exp(-x))),
    "tanh": Case("tanh", (X,), lambda x: mb.tanh(x=x), np.tanh),
    "silu": Case("silu", (X,), lambda x: mb.silu(x=x), lambda x: x / (1 + np.exp(-x))),
    "relu": Case("relu", (X,), lambda x: mb.relu(x=x), lambda x: np.maximum(x, 0)),
    "gelu": Case("gelu", (X,), lambda x: mb.gelu(x=x, mode="EXACT"), torch_of(functional.gelu)),
    "gelu tanh": Case(
        "gelu",
        (X,),
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        torch_of(lambda x: functional.gelu(x, approximate="tanh")),
    ),
    "gelu sigmoid": Case(
        "gelu",
        (X,),
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        lambda x: x / (1 + np.exp(-1.702 * x)),
    ),
    "cast to int": Case(
        "cast", (X * 9,), lambda x: mb.cast(x=x, dtype="int32"), lambda x: x.astype(np.int32)
    ),
    "cast of int": Case(
        "cast", (INTS,), lambda x: mb.cast(x=x, dtype="fp32"), lambda x: x.astype(np.float32)
    ),
    "cast of bool": Case(
        "cast",
        (INTS,),
        lambda x: mb.cast(x=mb.cast(x=x, dtype="bool"), dtype="int32"),
        lambda x: x.astype(bool).astype(np.int32),
    ),
    "cast through int8": Case(
        "cast", (INTS,), lambda x: mb.cast(x=mb.cast(x=x, dtype="int8"), dtype="int32"), lambda x: x
    ),
    "identity": Case("identity", (X,), lambda x: mb.identity(x=x), lambda x: x),
    "select": Case(
        "select",
        (X, INTS),
        lambda x, i: mb.select(cond=mb.less(x=i, y=np.int32(0)), a=x, b=like(x, np.array(2.0))),
        lambda x, i: np.where(i < 0, x, 2),
    ),
    "select ints": Case(
        "select",
        (INTS,),
        lambda i: mb.select(cond=mb.less(x=i, y=np.int32(0)), a=mb.add(x=i, y=np.int32(20)), b=i),
        lambda i: np.where(i < 0, i + 20, i),
    ),
    "reduce_sum": Case(
        "reduce_sum", (X,), lambda x: mb.reduce_sum(x=x, axes=[0, -1]), lambda x: x.sum((0, 2))
    ),
    "reduce_sum ints": Case(
        "reduce_sum",
        (INTS,),
        lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=True),
        lambda x: x.sum(1, keepdims=True),
    ),
    "reduce_mean": Case(
        "reduce_mean",
        (X,),
        lambda x: mb.reduce_mean(x=x, axes=[-1], keep_dims=True),
        lambda x: x.mean(2, keepdims=True),
    ),
    "reduce_max": Case(
        "reduce_max", (X,), lambda x: mb.reduce_max(x=x, axes=[1]), lambda x: x.max(1)
    ),
    "softmax": Case(
        "softmax",
        (X,),
        lambda x: mb.softmax(x=x, axis=1),
        torch_of(lambda x: torch.softmax(x, dim=1)),
    ),
    "layer_norm": Case(
        "layer_norm",
        (X,),
        lambda x: mb.layer_norm(
            x=x,
            axes=[-1, 1],
            gamma=like(x, X[0]),
            beta=like(x, X[1]),
            epsilon=like(x, np.array(0.125)),
        ),
        lambda x: layer_norm(x, (1, 2), 0.125) * X[0] + X[1],
    ),
    "layer_norm plain": Case(
        "layer_norm",
        (X,),
        lambda x: mb.layer_norm(x=x, axes=[2], epsilon=like(x, np.array(0.125))),
        lambda x: layer_norm(x, (2,), 0.125),
    ),
    "batch_norm": Case(
        "batch_norm",
        (IMAGE,),
        lambda x: mb.batch_norm(
            x=x,
            mean=like(x, CHANNELS[0]),
            variance=like(x, CHANNELS[1]),
            gamma=like(x, CHANNELS[2]),
            beta=like(x, CHANNELS[3]),
            epsilon=like(x, np.array(0.0625)),
        ),
        torch_of(lambda x: functional.batch_norm(x, *map(torch.from_numpy, CHANNELS), eps=0.0625)),
    ),
    "linear": Case(
        "linear",
        (X,),
        lambda x: mb.linear(x=x, weight=like(x, W), bias=like(x, B)),
        lambda x: x @ W.T + B,
    ),
    "matmul": Case(
        "matmul",
        (X, X),
        lambda x, y: mb.matmul(x=x, y=y, transpose_y=True),
        lambda x, y: x @ y.swapaxes(1, 2),
    ),
    "matmul transposed": Case(
        "matmul",
        (X, X),
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True),
        lambda x, y: x.swapaxes(1, 2) @ y,
    ),
    "matmul constant": Case(
        "matmul", (X,), lambda x: mb.matmul(x=x, y=like(x, W.T.copy())), lambda x: x @ W.T
    ),
    "matmul rows": Case(
        "matmul", (X,), lambda x: mb.matmul(x=x, y=like(x, W), transpose_y=True), lambda x: x @ W.T
    ),
    "matmul broadcast": Case(
        "matmul",
        (IMAGE, IMAGE[0, :1].swapaxes(1, 2).copy()),
        lambda x, y: mb.matmul(x=x, y=y),
        np.matmul,
    ),
    "sdpa": Case(
        "scaled_dot_product_attention",
        (Q, K, V),
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        torch_of(functional.scaled_dot_product_attention),
    ),
    "sdpa added": Case(
        "scaled_dot_product_attention",
        (Q, K, V, ADDED),
        lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
        torch_of(lambda q, k, v, m: functional.scaled_dot_product_attention(q, k, v, m)),
    ),
    "sdpa bool": Case(
        "scaled_dot_product_attention",
        (Q, K, V, LOOK.astype(np.int32)),
        lambda q, k, v, m: mb.scaled_dot_product_attention(
            query=q, key=k, value=v, attn_mask=mb.cast(x=m, dtype="bool")
        ),
        torch_of(lambda q, k, v, m: functional.scaled_dot_product_attention(q, k, v, m.bool())),
    ),
    "conv": Case(
        "conv",
        (IMAGE,),
        lambda x: mb.conv(
            x=x,
            weight=like(x, KERNEL),
            bias=like(x, X.reshape(-1)[:6]),
            strides=[2, 1],
            dilations=[1, 2],
            groups=2,
            pad_type="custom",
            pad=[1, 0, 2, 1],
        ),
        torch_of(
            lambda x: functional.conv2d(
                functional.pad(x, (2, 1, 1, 0)),
                torch.from_numpy(KERNEL),
                torch.from_numpy(X.reshape(-1)[:6]),
                (2, 1),
                0,
                (1, 2),
                2,
            )
        ),
    ),
    "conv 1d": Case(
        "conv",
        (X,),
        lambda x: mb.conv(x=x, weight=like(x, KERNEL_1D), pad_type="valid"),
        torch_of(lambda x: functional.conv1d(x, torch.from_numpy(KERNEL_1D))),
    ),
    "max_pool": Case(
        "max_pool",
        (IMAGE,),
        lambda x: mb.max_pool(
            x=x, kernel_sizes=[3, 2], strides=[2, 1], pad_type="custom", pad=[1, 1, 0, 0]
        ),
        torch_of(lambda x: functional.max_pool2d(x, (3, 2), (2, 1), (1, 0))),
    ),
    "avg_pool": Case(
        "avg_pool",
        (IMAGE,),
        lambda x: mb.avg_pool(
            x=x,
            kernel_sizes=[2, 2],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=True,
        ),
        torch_of(lambda x: functional.avg_pool2d(x, 2, 2, 1, count_include_pad=False)),
    ),
    "avg_pool with padding": Case(
        "avg_pool",
        (IMAGE,),
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[2, 2], strides=[1, 1], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        torch_of(lambda x: functional.avg_pool2d(x, 2, 1, 1)),
    ),
    "gather": Case(
        "gather",
        (X, np.array([[2, 0], [1, 1]], np.int32)),
        lambda x, i: mb.gather(x=x, indices=i, axis=1),
        lambda x, i: np.take(x, i, axis=1),
    ),
    "gather of constant": Case(
        "gather",
        (X, np.array([4, 0, 0], np.int32)),
        lambda x, i: mb.gather(x=like(x, W), indices=i, axis=0),
        lambda x, i: W[i],
    ),
    "gather columns of constant": Case(
        "gather",
        (X, np.array([[3], [1]], np.int32)),
        lambda x, i: mb.gather(x=like(x, W), indices=i, axis=-1),
        lambda x, i: W[:, i],
    ),
    "gather one": Case(
        "gather",
        (X, np.array([1], np.int32)),
        lambda x, i: mb.gather(
            x=x, indices=mb.squeeze(x=i, axes=[0]), axis=0, validate_indices=True
        ),
        lambda x, i: x[i[0]],
    ),
    "gather batch": Case(
        "gather",
        (X, np.array([[2, 0], [1, 1]], np.int32)),
        lambda x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1),
        lambda x, i: np.stack([x[n, i[n]] for n in range(2)]),
    ),
    "reshape": Case(
        "reshape", (X,), lambda x: mb.reshape(x=x, shape=[4, -1]), lambda x: x.reshape(4, 6)
    ),
    "reshape zeros": Case(
        "reshape", (X,), lambda x: mb.reshape(x=x, shape=[0, -1, 0]), lambda x: x.reshape(2, 3, 4)
    ),
    "reshape more zeros": Case(
        "reshape",
        (X[:, 0],),
        lambda x: mb.reshape(x=x, shape=[1, 0, -1, 0]),
        lambda x: x.reshape(1, 1, 2, 4),
    ),
    "transpose": Case(
        "transpose",
        (X,),
        lambda x: mb.transpose(x=x, perm=[2, 0, -2]),
        lambda x: x.transpose(2, 0, 1),
    ),
    "expand_dims": Case(
        "expand_dims",
        (X,),
        lambda x: mb.expand_dims(x=x, axes=[-1, 1]),
        lambda x: x[:, None, ..., None],
    ),
    "squeeze": Case(
        "squeeze", (Y[None],), lambda x: mb.squeeze(x=x, axes=[-1]), lambda x: x[..., 0]
    ),
    "squeeze all": Case("squeeze", (Y[None],), lambda x: mb.squeeze(x=x), lambda x: x[0, :, 0]),
    "tile": Case(
        "tile", (X,), lambda x: mb.tile(x=x, reps=[1, 3, 2]), lambda x: np.tile(x, (1, 3, 2))
    ),
    "split": Case(
        "split",
        (X,),
        lambda x: mb.split(x=x, num_splits=2, axis=-1)[1],
        lambda x: np.split(x, 2, axis=-1)[1],
    ),
    "split sizes": Case(
        "split", (INTS,), lambda x: mb.split(x=x, split_sizes=[1, 2], axis=1)[1], lambda x: x[:, 1:]
    ),
    "concat": Case(
        "concat",
        (X, X),
        lambda x, y: mb.concat(values=(x, y), axis=-2),
        lambda x, y: np.concatenate([x, y], 1),
    ),
    "concat ints": Case(
        "concat",
        (INTS[0, 0, :1],),
        lambda x: mb.concat(values=(np.array([7, 8], np.int32), x), axis=0),
        lambda x: np.concatenate([[7, 8], x]),
    ),
    "slice_by_index": Case(
        "slice_by_index",
        (X,),
        lambda x: mb.slice_by_index(
            x=x,
            begin=[1, 0, -1],
            end=[0, -1, 0],
            stride=[1, 2, -2],
            end_mask=[True, False, False],
            begin_mask=[False, True, False],
            squeeze_mask=[True, False, False],
        ),
        lambda x: x[1, :-1:2, -1:0:-2],
    ),
    "slice_by_index computed": Case(
        "slice_by_index",
        (X, np.array([0, 1, 1], np.int32)),
        lambda x, b: mb.reshape(  # whose shape is known
            x=mb.slice_by_index(x=x, begin=b, end=mb.add(x=b, y=np.array([1, 2, 3], np.int32))),
            shape=[1, 2, 3],
        ),
        lambda x, b: x[0:1, 1:3, 1:4],
    ),
    "slice_update": Case(
        "slice_update",
        (X, Y[:2, 0]),
        lambda x, u: mb.slice_update(
            x=x,
            update=u,
            begin=[1, -1, 0],
            end=[2, 0, 4],
            stride=[1, 1, 3],
            squeeze_mask=[True, True, False],
        ),
        lambda x, u: np.concatenate([x[:1], [[*x[1, :2], [u[0], *x[1, 2, 1:3], u[1]]]]]),
    ),
    "shape": Case("shape", (X,), lambda x: mb.shape(x=x), lambda x: np.array(x.shape)),
    "fill": Case(
        "fill",
        (INTS,),
        lambda x: mb.fill(shape=mb.shape(x=x), value=np.float32(0.5)),
        lambda x: np.full(x.shape, 0.5, np.float32),
    ),
    "fill default": Case(
        "fill", (INTS,), lambda x: mb.fill(shape=[2, 1]), lambda x: np.zeros((2, 1), np.float32)
    ),
    "range_1d": Case(
        "range_1d",
        (np.array([2], np.int32),),
        lambda x: mb.reshape(
            x=mb.range_1d(start=mb.squeeze(x=x), end=np.int32(9), step=np.int32(3)), shape=[3]
        ),
        lambda x: np.array([2, 5, 8]),
    ),
}


def converted(array: Array, halves: bool) -> Array:
    return array.astype(np.float16) if halves and array.dtype == np.float32 else array


def program_of(halves: bool) -> Any:
    """One program of all cases; inputs are named i0_0.., outputs o0.."""
    specs, names = [], []
    for i, case in enumerate(CASES.values()):
        for j, array in enumerate(case.inputs):
            dtype = types.numpy_type_to_builtin_type(converted(array, halves).dtype)
            specs.append(mb.TensorSpec(shape=array.shape, dtype=dtype))
            names.append(f"i{i}_{j}")
    scope: dict[str, Any] = {"build": build_all}
    exec(
        f"def body({', '.join(names)}):\n    return build([{', '.join(names)}])", scope
    )  # the builder reads the names
    return mb.program(input_specs=specs, opset_version=ct.target.iOS18)(scope["body"])


def build_all(inputs: list[Any]) -> tuple[Any, ...]:
    left = iter(inputs)
    outputs = []
    for i, case in enumerate(CASES.values()):
        result = case.build(*(next(left) for _ in case.inputs))
        result = mb.cast(x=result, dtype="int32") if result.dtype == types.bool else result
        outputs.append(mb.identity(x=result, name=f"o{i}"))
    return tuple(outputs)


Results = dict[str, Array]


@pytest.fixture(scope="module", params=[False, True], ids=["singles", "halves"])
def halves(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def results(halves: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[Arithmetic, Results]:
    package = save(program_of(halves), tmp_path_factory.mktemp("cases") / "x.mlpackage")
    inputs = {
        f"i{i}_{j}": converted(array, halves)
        for i, case in enumerate(CASES.values())
        for j, array in enumerate(case.inputs)
    }
    found: dict[Arithmetic, Results] = {}
    for arithmetic in ("float32", "float16"):
        outputs = MLProgram(package, None, arithmetic, 0).predict(inputs, {})
        found[arithmetic] = {name: outputs[f"o{i}"] for i, name in enumerate(CASES)}
    return found


def test_every_operation_has_a_case() -> None:
    assert {case.operation for case in CASES.values()} == set(mil_ops.BY_NAME)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_numpy_or_pytorch_gives(
    name: str, halves: bool, results: dict[Arithmetic, Results]
) -> None:
    case = CASES[name]
    expected = np.asarray(
        case.expected(*(converted(array, halves).astype(array.dtype) for array in case.inputs))
    )
    for arithmetic, found in results.items():
        got = found[name]
        assert got.shape == expected.shape
        if np.issubdtype(got.dtype, np.floating):
            rounded = halves and arithmetic == "float16"  # to 11 bits
            assert got.dtype == (
                np.float16 if rounded and not name.startswith(("fill", "cast")) else np.float32
            )
            np.testing.assert_allclose(got, expected, rtol=2**-11 if rounded else 1e-5, atol=1e-5)
        else:
            assert got.dtype == np.int32
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("halves", [False], indirect=True, ids=["singles"])
def test_operations_give_what_coremltools_infers(results: dict[Arithmetic, Results]) -> None:
    """For constant inputs the builder computes some values itself, in the type of the inputs."""
    inferred: dict[str, Any] = {}

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        for name, case in CASES.items():
            result = case.build(*(mb.const(val=array) for array in case.inputs))
            inferred[name] = result.val
        return mb.identity(x=x)

    known = {name: value for name, value in inferred.items() if value is not None}
    assert len(known) >= 50
    for name, value in known.items():
        np.testing.assert_allclose(
            results["float32"][name], value, rtol=1e-5, atol=1e-5, err_msg=name
        )

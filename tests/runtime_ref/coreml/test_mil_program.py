"""Whole ML Programs: states, functions that share weights, converted models, arithmetic, and what
is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from exporter.errors import BundleError, UsageError
from exporter.quiet import quiet
from runtime_ref.coreml import mil_program, mil_weights
from runtime_ref.coreml.mil_program import MLProgram, TensorInfo
from runtime_ref.coreml.mil_steps import Arithmetic
from runtime_ref.coreml.mil_weights import LookedUp, ShiftedScaled, Stored, Weight, WeightCache
from runtime_ref.coreml.package import CoreMLPackage, Packed, packed_bytes
from tests.support.mil import ct, edited, mb, operations, save, types

ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "float16")
RNG = np.random.default_rng(0)
LAYERS, HEADS, SLOTS, DIM = 2, 2, 6, 4
CACHE = (LAYERS, HEADS, SLOTS, DIM)
INT8 = RNG.integers(-127, 128, (16, 8)).astype(np.int8)
SCALES = RNG.uniform(0.001, 0.01, (16, 1)).astype(np.float16)


# A cache of two layers, read once and updated in a chain.


def int8_linear(x: Any) -> Any:
    """What has the same `weight_id` lies once in the weight file."""
    weight, bias = (
        mb.constexpr_blockwise_shift_scale(data=INT8, scale=SCALES),
        mb.const(val=np.zeros(16, np.float16)),
    )
    for part, op in (("data", weight.op.data.op), ("scale", weight.op.scale.op), ("bias", bias.op)):
        op.weight_id = part
    return mb.linear(x=x, weight=weight, bias=bias)


def cached(n_tokens: int) -> Any:
    """A function: x fp16 [S, 8] is projected to keys [H, S, D], which are written at `position` of
    each layer."""

    def body(x: Any, position: Any, cache: Any) -> Any:
        value = mb.read_state(input=cache)
        outputs = []
        for layer in range(LAYERS):
            keys = mb.reshape(x=int8_linear(x), shape=[n_tokens, 2, HEADS, DIM])
            keys = mb.slice_by_index(
                x=keys, begin=[0, layer, 0, 0], end=[n_tokens, layer + 1, HEADS, DIM]
            )
            keys = mb.transpose(x=keys, perm=[1, 2, 0, 3])  # [1, H, S, D]
            begin = mb.concat(
                values=[np.array([layer, 0], np.int32), position, np.zeros(1, np.int32)], axis=0
            )
            end = mb.add(x=begin, y=np.array([1, HEADS, n_tokens, DIM], np.int32))
            value = mb.slice_update(x=value, update=keys, begin=begin, end=end)
            value = mb.coreml_update_state(state=cache, value=value)
            of_layer = mb.slice_by_index(
                x=value, begin=[layer, 0, 0, 0], end=[layer + 1, HEADS, SLOTS, DIM]
            )
            outputs.append(mb.reduce_sum(x=of_layer, axes=[0, 2]))
        return mb.concat(values=outputs, axis=0, name="sums")  # [2 H, D]

    specs = [
        mb.TensorSpec(shape=(n_tokens, 8), dtype=types.fp16),
        mb.TensorSpec(shape=(1,), dtype=types.int32),
        mb.StateTensorSpec(CACHE, dtype=types.fp16),
    ]
    return mb.function(specs, opset_version=ct.target.iOS18)(body)


@pytest.fixture(scope="module")
def two_functions(tmp_path_factory: pytest.TempPathFactory) -> CoreMLPackage:
    """`decode` and `prefill`, which name the same weights."""
    from coremltools.converters.mil.mil import Program

    program = Program()
    with quiet():
        program.add_function("decode", cached(1))
        program.add_function("prefill", cached(3))
    program.default_function_name = "decode"
    program.export_as_multifunction = True
    return save(program, tmp_path_factory.mktemp("two") / "x.mlpackage")


class Cache:
    """What the functions compute, in NumPy."""

    def __init__(self) -> None:
        self.weight = INT8.astype(np.float32) * SCALES.astype(np.float32)
        self.cache = np.zeros(CACHE, np.float32)

    def __call__(self, x: np.ndarray, position: int) -> np.ndarray:
        keys = (
            (x.astype(np.float32) @ self.weight.T)
            .reshape(len(x), LAYERS, HEADS, DIM)
            .transpose(1, 2, 0, 3)
        )
        sums = []
        for layer in range(LAYERS):
            self.cache[layer, :, position : position + len(x)] = keys[layer]
            sums.append(self.cache[layer].sum(1))
        return np.concatenate(sums)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("cache_bytes", [0, 10**6])
def test_two_functions_share_a_state(
    two_functions: CoreMLPackage, arithmetic: Arithmetic, cache_bytes: int
) -> None:
    decode = MLProgram(two_functions, None, arithmetic, cache_bytes)
    prefill = decode.sibling("prefill")
    state, expected = decode.new_state(), Cache()
    memory = state["cache"].data_ptr()
    for program, position, n in (
        (prefill, 0, 3),
        (decode, 3, 1),
        (decode, 4, 1),
        (decode, 2, 1),
        (prefill, 3, 3),
    ):
        x = RNG.standard_normal((n, 8)).astype(np.float16)
        got = program.predict({"x": x, "position": np.array([position], np.int32)}, state)["sums"]
        close = {"float32": 1e-5, "float16": 2e-2}[arithmetic]
        np.testing.assert_allclose(got, expected(x, position), atol=close)
        np.testing.assert_allclose(state["cache"].float().numpy(), expected.cache, atol=close)
    assert state["cache"].data_ptr() == memory
    assert state["cache"].dtype == (torch.float16 if arithmetic == "float16" else torch.float32)


def test_the_interface_is_what_the_description_says(two_functions: CoreMLPackage) -> None:
    decode = MLProgram(two_functions, "decode", "float16", 0)
    assert decode.inputs == {
        "x": TensorInfo((1, 8), "float16"),
        "position": TensorInfo((1,), "int32"),
    }
    assert decode.outputs == {"sums": TensorInfo((4, 4), "float16")}
    assert decode.states == {"cache": TensorInfo(CACHE, "float16")}
    assert MLProgram(two_functions, "prefill", "float16", 0).inputs["x"].shape == (3, 8)


def test_a_chain_of_updates_copies_no_cache(
    two_functions: CoreMLPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = MLProgram(two_functions, "decode", "float16", 0)
    in_place = []
    may_write = mil_program._may_write
    monkeypatch.setattr(
        mil_program, "_may_write", lambda *args: in_place.append(may_write(*args)) or in_place[-1]
    )
    decode.predict(
        {"x": np.ones((1, 8), np.float16), "position": np.zeros(1, np.int32)}, decode.new_state()
    )
    assert in_place == [True] * LAYERS


def test_a_sibling_shares_dense_weights(two_functions: CoreMLPackage) -> None:
    decode = MLProgram(two_functions, "decode", "float32", 10**6)
    prefill = decode.sibling("prefill")
    for program in (decode, prefill):
        x = np.ones(program.inputs["x"].shape, np.float16)
        program.predict({"x": x, "position": np.zeros(1, np.int32)}, program.new_state())
    assert prefill._cache is decode._cache
    assert sorted(tuple(weight.shape) for weight in decode._cache.dense.values()) == [
        (16,),
        (16, 8),
    ]
    assert decode._cache.free_bytes == 10**6 - 4 * (16 * 8 + 16)


# Reads and writes of states in every order.


def stateful(body: Callable[[Any, Any], Any]) -> Any:
    """A program of x fp16 [4] and a state fp16 [4]."""

    def named(x: Any, memory: Any) -> Any:
        return body(x, memory)

    specs = [
        mb.TensorSpec(shape=(4,), dtype=types.fp16),
        mb.StateTensorSpec((4,), dtype=types.fp16),
    ]
    return mb.program(input_specs=specs, opset_version=ct.target.iOS18)(named)


def update(x: Any, at: int) -> Any:
    """`x` with 9 at one place."""
    return mb.slice_update(x=x, update=np.array([9], np.float16), begin=[at], end=[at + 1])


def read_before_and_after(x: Any, state: Any) -> Any:
    before = mb.read_state(input=state)
    mb.coreml_update_state(state=state, value=x)
    return mb.concat(values=[before, mb.read_state(input=state)], axis=0)


def old_value_survives_an_update(x: Any, state: Any) -> Any:
    before = mb.read_state(input=state)
    after = mb.coreml_update_state(state=state, value=update(before, 1))
    return mb.concat(values=[before, after], axis=0)


def updated_but_not_written(x: Any, state: Any) -> Any:
    changed = update(mb.read_state(input=state), 0)
    return mb.concat(values=[changed, mb.read_state(input=state)], axis=0)


def written_after_another_read(x: Any, state: Any) -> Any:
    changed = update(mb.read_state(input=state), 0)
    stale = mb.read_state(input=state)
    after = mb.coreml_update_state(state=state, value=changed)
    return mb.concat(values=[stale, after], axis=0)


def two_updates_before_a_write(x: Any, state: Any) -> Any:
    once = update(mb.read_state(input=state), 0)
    after = mb.coreml_update_state(state=state, value=update(once, 2))
    return mb.concat(values=[once, after], axis=0)


def view_survives(x: Any, state: Any) -> Any:
    """A slice that was read before shares memory with the state."""
    value = mb.read_state(input=state)
    part = mb.slice_by_index(x=value, begin=[0], end=[2])
    after = mb.coreml_update_state(state=state, value=update(value, 0))
    return mb.concat(values=[part, after], axis=0)


def overwritten_while_read(x: Any, state: Any) -> Any:
    before = mb.read_state(input=state)
    mb.coreml_update_state(state=state, value=mb.add(x=before, y=x))
    return mb.concat(values=[before, mb.read_state(input=state)], axis=0)


def constant_is_not_changed(x: Any, state: Any) -> Any:
    """The copy that is updated is not read again, but the constant is."""
    constant = mb.const(val=np.zeros(4, np.float16))
    mb.coreml_update_state(state=state, value=update(mb.identity(x=constant), 3))
    return mb.concat(values=[mb.read_state(input=state), mb.identity(x=constant)], axis=0)


X4, S4 = np.arange(1, 5), np.arange(5, 9)
ORDERS: dict[
    Callable[[Any, Any], Any], tuple[list[int], list[int]]
] = {  # output and state, from x and S4
    read_before_and_after: ([5, 6, 7, 8, 1, 2, 3, 4], [1, 2, 3, 4]),
    old_value_survives_an_update: ([5, 6, 7, 8, 5, 9, 7, 8], [5, 9, 7, 8]),
    updated_but_not_written: ([9, 6, 7, 8, 5, 6, 7, 8], [5, 6, 7, 8]),
    written_after_another_read: ([5, 6, 7, 8, 9, 6, 7, 8], [9, 6, 7, 8]),
    two_updates_before_a_write: ([9, 6, 7, 8, 9, 6, 9, 8], [9, 6, 9, 8]),
    view_survives: ([5, 6, 9, 6, 7, 8], [9, 6, 7, 8]),
    overwritten_while_read: ([5, 6, 7, 8, 6, 8, 10, 12], [6, 8, 10, 12]),
    constant_is_not_changed: ([0, 0, 0, 9, 0, 0, 0, 0], [0, 0, 0, 9]),
}


@pytest.mark.parametrize("body", ORDERS, ids=lambda body: body.__name__)
def test_a_state_has_the_value_of_the_moment(
    body: Callable[[Any, Any], Any], tmp_path: Path
) -> None:
    package = save(stateful(body), tmp_path / "x.mlpackage")
    expected, after = ORDERS[body]
    for arithmetic in ARITHMETICS:
        program = MLProgram(package, None, arithmetic, 10**6)
        for _ in range(
            2
        ):  # a program has no memory but its states; what it keeps of constants must not change
            state = program.new_state()
            state["memory"].copy_(torch.from_numpy(S4))
            (output,) = program.predict({"x": X4.astype(np.float16)}, state).values()
            assert output.tolist() == expected
            assert state["memory"].tolist() == after


def test_a_state_may_be_written_transposed(tmp_path: Path) -> None:
    """The value written is a view of the memory it is written to."""

    def body(memory: Any) -> Any:
        turned = mb.transpose(x=mb.read_state(input=memory), perm=[1, 0])
        return mb.coreml_update_state(state=memory, value=turned)

    specs = [mb.StateTensorSpec((3, 3), dtype=types.fp16)]
    package = save(
        mb.program(input_specs=specs, opset_version=ct.target.iOS18)(body), tmp_path / "x.mlpackage"
    )
    program = MLProgram(package, None, "float16", 0)
    state, values = program.new_state(), torch.arange(9, dtype=torch.float16).reshape(3, 3)
    state["memory"].copy_(values)
    (output,) = program.predict({}, state).values()
    assert output.tolist() == state["memory"].tolist() == values.T.tolist()


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        return update(mb.identity(x=x), 0)

    specs = [mb.TensorSpec(shape=(4,), dtype=types.fp16)]
    package = save(
        mb.program(input_specs=specs, opset_version=ct.target.iOS18)(body), tmp_path / "x.mlpackage"
    )
    x = X4.astype(np.float16)
    (output,) = MLProgram(package, None, "float16", 0).predict({"x": x}, {}).values()
    assert output.tolist() == [9, 2, 3, 4]
    assert x.tolist() == [1, 2, 3, 4]


# Rounding.


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> CoreMLPackage:
    """(x + 1) - 1 in halves, and in singles between casts."""

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(2,), dtype=types.fp16)], opset_version=ct.target.iOS18
    )
    def program(x: Any) -> Any:
        one = np.float16(1)
        halves = mb.sub(x=mb.add(x=x, y=one), y=one, name="halves")
        wide = mb.add(x=mb.cast(x=x, dtype="fp32"), y=np.float32(1))
        return halves, mb.cast(x=mb.sub(x=wide, y=np.float32(1)), dtype="fp16", name="singles")

    return save(program, tmp_path_factory.mktemp("sums") / "x.mlpackage")


def test_every_half_is_rounded_and_only_in_float16(sums: CoreMLPackage) -> None:
    x = np.array(
        [2.0**-12, 3 * 2.0**-12], np.float16
    )  # less than half an ulp of 1, and one and a half
    rounded = MLProgram(sums, None, "float16", 0).predict({"x": x}, {})
    assert rounded["halves"].tolist() == [0, 2.0**-10]
    assert rounded["singles"].tolist() == x.tolist()
    assert rounded["halves"].dtype == np.float16
    exact = MLProgram(sums, None, "float32", 0).predict({"x": x}, {})
    assert exact["halves"].tolist() == exact["singles"].tolist() == x.tolist()
    assert exact["halves"].dtype == np.float32


# Weights.


def test_dequantized_weights_are_rounded_only_in_float16(tmp_path: Path) -> None:
    """The difference of a product and its rounding to half precision."""
    scale = np.float16(0.1)
    data = np.array([[101, np.float16(101) * scale]], np.float16)
    scales = np.array([[scale, 1]], np.float16)

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1, 2), dtype=types.fp16)], opset_version=ct.target.iOS18
    )
    def program(x: Any) -> Any:
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=scales)
        return mb.linear(x=x, weight=weight, bias=np.zeros(1, np.float16))

    package = save(program, tmp_path / "x.mlpackage")
    exact = 101 * float(scale) - float(data[0, 1])
    assert exact != 0
    for arithmetic, expected in (("float16", 0), ("float32", exact)):
        for cache_bytes in (0, 10**6):
            program = MLProgram(package, None, arithmetic, cache_bytes)
            (output,) = program.predict({"x": np.array([[1, -1]], np.float16)}, {}).values()
            assert output.item() == pytest.approx(expected, abs=1e-6)


def test_a_weight_that_does_not_fit_the_cache_is_never_whole(
    two_functions: CoreMLPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[int, int]] = []
    rows = mil_weights.ShiftedScaled.rows
    monkeypatch.setattr(mil_weights, "BLOCK_WEIGHTS", 32)

    def recorded(self: Any, begin: int, end: int) -> torch.Tensor:
        decoded.append((begin, end))
        return rows(self, begin, end)

    monkeypatch.setattr(mil_weights.ShiftedScaled, "rows", recorded)

    def whole(self: Weight) -> torch.Tensor:
        assert self.shape == (16,), "only the bias"
        return self.rows(0, 16)

    monkeypatch.setattr(Weight, "_decoded", whole)
    program = MLProgram(two_functions, "decode", "float16", 0)
    program.predict(
        {"x": np.ones((1, 8), np.float16), "position": np.zeros(1, np.int32)}, program.new_state()
    )
    assert decoded == [(0, 4), (4, 8), (8, 12), (12, 16)] * LAYERS


@pytest.mark.parametrize("block", [1, 24, 1 << 19])
def test_blocks_of_weights_and_dense_ones_give_the_same(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mil_weights, "BLOCK_WEIGHTS", block)
    indices = RNG.integers(0, 4, (10, 8)).astype(types.np_uint2_dtype)
    table = RNG.standard_normal((5, 2, 4, 1)).astype(np.float16)

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(2, 3, 8), dtype=types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any) -> Any:
        weight = mb.constexpr_lut_to_dense(indices=indices, lut=table)
        y = mb.linear(x=x, weight=weight, bias=np.ones(10, np.float16))  # [2, 3, 10]
        z = mb.matmul(
            x=x, y=mb.constexpr_lut_to_dense(indices=indices, lut=table), transpose_y=True
        )
        rows = mb.gather(x=weight, indices=np.array([9, 0], np.int32), axis=0)
        return y, z, mb.matmul(x=y, y=weight), mb.identity(x=rows)

    package = save(program, tmp_path / "x.mlpackage")
    x = RNG.standard_normal((2, 3, 8)).astype(np.float16)
    blocks = np.repeat(np.repeat(table[..., 0], 2, 0), 4, 1)  # [10, 8, 4]
    dense = np.take_along_axis(blocks, indices.astype(np.int64)[..., None], 2)[..., 0].astype(
        np.float32
    )
    z = x.astype(np.float32) @ dense.T
    expected = [z + 1, z, (z + 1) @ dense, dense[[9, 0]]]
    for cache_bytes in (0, 10 * 8 * 4, 10**6):
        outputs = MLProgram(package, None, "float32", cache_bytes).predict({"x": x}, {}).values()
        for got, want in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_compressed_constants_that_make_no_sense() -> None:
    """What a builder would not write."""

    def packed(dtype: str, *shape: int) -> Packed:
        return Packed(np.zeros(packed_bytes(dtype, shape), np.uint8), dtype, shape)

    for indices, table, message in (
        (packed("uint2", 4, 4), torch.zeros(1, 1, 4, 2), "tables of vectors"),
        (packed("uint2", 4, 4), torch.zeros(1, 1, 16, 1), "indices of type uint2 do not go with"),
        (
            packed("uint16", 4, 4),
            torch.zeros(1, 1, 65536, 1),
            "indices of type uint16 do not go with",
        ),
        (packed("int4", 4, 4), torch.zeros(1, 1, 16, 1), "indices of type int4 do not go with"),
        (packed("uint2", 4, 4), torch.zeros(3, 1, 4, 1), r"\[3, 1\] blocks do not divide"),
        (packed("uint2", 4, 4), torch.zeros(1, 4, 1), r"\[1\] blocks do not divide"),
    ):
        with pytest.raises(ValueError, match=message):
            LookedUp(indices, table)
    data = Stored(packed("int8", 4, 4))
    with pytest.raises(ValueError, match=r"offset \[1, 4\] is not of the shape of scale \[4, 1\]"):
        ShiftedScaled(data, torch.ones(4, 1), torch.ones(1, 4), rounded=False)
    weight = Weight(data, torch.float32, WeightCache(0), "key")
    with pytest.raises(IndexError, match=r"an index of 1\.\.4 is not in "):
        weight.take(torch.tensor([1, 4]))
    assert weight.take(torch.zeros(0, 2, dtype=torch.int32)).shape == (0, 2, 4)


def test_a_program_with_several_weight_files(two_functions: CoreMLPackage, tmp_path: Path) -> None:
    """As coremltools never writes them, but Core ML reads them."""

    def second(spec: Any) -> None:
        for op in operations(spec, "decode"):
            bindings = [
                binding.value for argument in op.inputs.values() for binding in argument.arguments
            ]
            for value in [*bindings, *op.attributes.values()]:
                if value.WhichOneof("value") == "blobFileValue":
                    value.blobFileValue.fileName = "@model_path/weights/second.bin"

    package = edited(two_functions, tmp_path / "x.mlpackage", second)
    assert package.weights_dir is not None
    (package.weights_dir / "second.bin").write_bytes(
        (package.weights_dir / "weight.bin").read_bytes()
    )
    (package.weights_dir / "weight.bin").write_bytes(b"")
    inputs = {"x": np.ones((1, 8), np.float16), "position": np.zeros(1, np.int32)}
    results = []
    for each in (two_functions, package):
        program = MLProgram(each, "decode", "float32", 0)
        results.append(program.predict(inputs, program.new_state())["sums"])
    np.testing.assert_array_equal(*results)


# Packages of others: PyTorch models that coremltools converted.


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=(1, 0), groups=4, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(
            self.second(functional.relu(self.norm(self.first(x)))), 3, 2, padding=1
        )
        x = functional.avg_pool2d(x, 2, 2, padding=1, count_include_pad=False)
        return self.last(x.mean((2, 3))).softmax(-1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.qkv, self.out, self.up, self.down = (
            nn.Linear(*n) for n in ((16, 48), (16, 16), (16, 32), (32, 16))
        )
        self.conv = nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        q, k, v = self.qkv(self.norm(x)).view(1, -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(1, -1, 16))
        x = x + self.down(functional.gelu(self.up(self.norm(x)), approximate="tanh"))
        return self.conv(x.transpose(1, 2)).tanh()


IMAGE, IDS = (
    torch.rand(1, 3, 17, 16, generator=torch.Generator().manual_seed(0)),
    torch.tensor([[3, 1, 4, 1, 5, 19]]),
)


@pytest.mark.parametrize("precision", ["FLOAT32", "FLOAT16"])
@pytest.mark.parametrize(
    ("kind", "example"), [(Classifier, IMAGE), (Block, IDS)], ids=["classifier", "block"]
)
def test_a_converted_model_gives_what_pytorch_gives(
    kind: type[nn.Module], example: torch.Tensor, precision: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    if isinstance(model, Classifier):  # not the identity
        functional.batch_norm(IMAGE, torch.zeros(3), torch.ones(3))
        model.norm.running_mean += torch.rand(8)
        model.norm.running_var += torch.rand(8)
    with quiet():
        dtype = np.int32 if example.dtype == torch.int64 else np.float32
        converted = ct.convert(
            torch.jit.trace(model, example),
            inputs=[ct.TensorType("x", tuple(example.shape), dtype=dtype)],
            outputs=[ct.TensorType("y", dtype=np.float32)],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=getattr(ct.precision, precision),
            skip_model_load=True,
        )
        converted.save(str(tmp_path / "x.mlpackage"))
    with torch.no_grad():
        expected = model(example).numpy()
    package = CoreMLPackage.open(tmp_path / "x.mlpackage")
    for arithmetic in ARITHMETICS:
        program = MLProgram(package, None, arithmetic, 10**6)
        got = program.predict({"x": example.numpy().astype(dtype)}, {})["y"]
        assert got.dtype == np.float32
        stored_exactly = precision == "FLOAT32"
        np.testing.assert_allclose(got, expected, atol=1e-5 if stored_exactly else 3e-3)


class Remembering(nn.Module):
    """Attention over a cache of keys, which are values too, as others export language models."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.out = nn.Linear(8, 8), nn.Linear(8, 5)
        self.register_buffer("cache", torch.zeros(1, SLOTS, 8))

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """x [1, 2, 8] are new; `seen` [1, n] has as many columns as slots are used with them."""
        end = seen.shape[-1]
        self.cache[:, end - 2 : end] = self.keys(x)
        known = self.cache[:, :end]
        return self.out((x @ known.transpose(1, 2)).softmax(-1) @ known)


def test_a_converted_model_with_a_state_gives_what_pytorch_gives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Remembering().eval()
    x, seen = torch.randn(1, 2, 8), torch.zeros(1, 4)
    with quiet():
        ct.convert(
            torch.jit.trace(model, (x, seen)),
            inputs=[
                ct.TensorType("x", x.shape, dtype=np.float32),
                ct.TensorType("seen", seen.shape, dtype=np.float32),
            ],
            outputs=[ct.TensorType("y", dtype=np.float32)],
            states=[
                ct.StateType(ct.TensorType(shape=(1, SLOTS, 8), dtype=np.float16), name="cache")
            ],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        ).save(str(tmp_path / "x.mlpackage"))
    program = MLProgram(CoreMLPackage.open(tmp_path / "x.mlpackage"), None, "float32", 10**6)
    state = program.new_state()
    with torch.no_grad():
        model.cache.copy_(torch.randn(1, SLOTS, 8))
        state["cache"].copy_(model.cache)
        for _ in range(2):  # the second call sees what the first one stored
            x = torch.randn(1, 2, 8)
            got = program.predict({"x": x.numpy(), "seen": seen.numpy()}, state)["y"]
            np.testing.assert_allclose(got, model(x, seen).numpy(), atol=1e-5)
            np.testing.assert_allclose(state["cache"].numpy(), model.cache.numpy(), atol=1e-6)


# What is refused.


def test_a_wrong_call_is_refused(two_functions: CoreMLPackage) -> None:
    program = MLProgram(two_functions, "decode", "float16", 0)
    x, position, state = np.ones((1, 8), np.float16), np.zeros(1, np.int32), program.new_state()
    good = {"x": x, "position": position}
    for inputs, states, message in (
        ({"x": x}, state, "input position is missing"),
        (good | {"y": x}, state, "input y is not known"),
        (good | {"x": x[0]}, state, r"input x is float16 \[8\], expected float16 \[1, 8\]"),
        (
            good | {"position": position.astype(np.int64)},
            state,
            r"input position is int64 \[1\], expected int32 \[1\]",
        ),
        (good, {}, "state cache is missing"),
        (good, state | {"more": state["cache"]}, "state more is not known"),
        (
            good,
            {"cache": state["cache"].float()},
            r"state cache is torch.float32 .*, expected torch.float16",
        ),
        (
            good,
            {"cache": state["cache"][:1]},
            r"state cache is torch.float16 \[1, 2, 6, 4\], expected",
        ),
        (good, {"cache": state["cache"].mT.contiguous().mT}, "contiguous"),
    ):
        with pytest.raises(UsageError, match=message):
            program.predict(inputs, states)


def test_a_function_that_is_not_there_is_refused(two_functions: CoreMLPackage) -> None:
    with pytest.raises(
        UsageError, match=r"no function 'other'\nNext step: choose one of: decode, prefill"
    ):
        MLProgram(two_functions, "other", "float16", 0)


def test_a_write_past_the_cache_is_refused(two_functions: CoreMLPackage) -> None:
    program = MLProgram(two_functions, "decode", "float16", 0)
    inputs = {"x": np.ones((1, 8), np.float16), "position": np.array([SLOTS], np.int32)}
    with pytest.raises(
        BundleError,
        match=r"function decode: slice_update slice_update_\d+: update is \[1, 2, 1, 4\]",
    ):
        program.predict(inputs, program.new_state())


Edit = Callable[[Any], None]


def first(spec: Any, kind: str) -> Any:
    return next(op for op in operations(spec, "decode") if op.type == kind)


def const(spec: Any, kind: str, parameter: str) -> Any:
    """The `const` that is bound to a parameter."""
    name = first(spec, kind).inputs[parameter].arguments[0].name
    (found,) = (c for c in operations(spec, "decode") if c.outputs and c.outputs[0].name == name)
    return found


def constant(spec: Any, kind: str, parameter: str) -> Any:
    return const(spec, kind, parameter).attributes["val"].immediateValue.tensor


def rename(kind: str, new: str) -> Edit:
    return lambda spec: setattr(first(spec, kind), "type", new)


def unknown_types(spec: Any) -> None:
    first(spec, "reduce_sum").type = "reduce_prod"
    first(spec, "transpose").type = "pixel_shuffle"


def nested_block(spec: Any) -> None:
    first(spec, "transpose").blocks.add()


def missing_parameter(spec: Any) -> None:
    del first(spec, "transpose").inputs["perm"]


def unknown_parameter(spec: Any) -> None:
    op = first(spec, "transpose")
    op.inputs["other"].CopyFrom(op.inputs["perm"])


def interleaved(spec: Any) -> None:
    constant(spec, "concat", "interleave").bools.values[0] = True


def computed_constant(spec: Any) -> None:
    first(spec, "transpose").inputs["perm"].arguments[0].name = "position"


def constant_of_another_type(spec: Any) -> None:
    op = first(spec, "reduce_sum")
    op.inputs["keep_dims"].CopyFrom(op.inputs["axes"])


def two_values(spec: Any) -> None:
    arguments = first(spec, "linear").inputs["x"].arguments
    arguments.add().CopyFrom(arguments[0])


def undefined(spec: Any) -> None:
    first(spec, "linear").inputs["x"].arguments[0].name = "nobody"


def later_value(spec: Any) -> None:
    first(spec, "linear").inputs["x"].arguments[0].name = first(spec, "reduce_sum").outputs[0].name


def defined_twice(spec: Any) -> None:
    first(spec, "linear").outputs[0].name = "position"


def state_as_a_value(spec: Any) -> None:
    first(spec, "linear").inputs["x"].arguments[0].name = "cache"


def value_as_a_state(spec: Any) -> None:
    first(spec, "read_state").inputs["input"].arguments[0].name = "x"


def state_of_another_type(spec: Any) -> None:
    first(spec, "read_state").outputs[0].type.tensorType.dataType = 11


def attribute(spec: Any) -> None:
    first(spec, "linear").attributes["other"].CopyFrom(first(spec, "linear").attributes["name"])


def wrong_type(spec: Any) -> None:
    first(spec, "linear").inputs["x"].arguments[0].name = "position"


def mixed_types(spec: Any) -> None:
    first(spec, "concat").inputs["values"].arguments[0].name = "x"


def wrong_result_type(spec: Any) -> None:
    first(spec, "reduce_sum").outputs[0].type.tensorType.dataType = 11


def unknown_data_type(spec: Any) -> None:
    first(spec, "reduce_sum").outputs[0].type.tensorType.dataType = 13


def double(spec: Any) -> None:
    first(spec, "reduce_sum").outputs[0].type.tensorType.dataType = 24


def no_tensor(spec: Any) -> None:
    first(spec, "reduce_sum").outputs[0].type.listType.SetInParent()


def blob_of_another_type(spec: Any) -> None:
    first(spec, "constexpr_blockwise_shift_scale").inputs["data"].arguments[
        0
    ].value.type.tensorType.dataType = 31


def blob_of_another_shape(spec: Any) -> None:
    value = first(spec, "constexpr_blockwise_shift_scale").inputs["data"].arguments[0].value
    value.type.tensorType.dimensions[0].constant.size = 17


def blocks_that_do_not_divide(spec: Any) -> None:
    value = first(spec, "constexpr_blockwise_shift_scale").inputs["scale"].arguments[0].value
    data = first(spec, "constexpr_blockwise_shift_scale").inputs["data"].arguments[0].value
    for tensor, shape in ((value.type.tensorType, (8, 2)), (data.type.tensorType, (128, 1))):
        for dimension, size in zip(tensor.dimensions, shape, strict=True):
            dimension.constant.size = size


def compressed_to_another_shape(spec: Any) -> None:
    first(spec, "constexpr_blockwise_shift_scale").outputs[0].type.tensorType.dimensions[
        0
    ].constant.size = 17


def constexpr_without_scale(spec: Any) -> None:
    del first(spec, "constexpr_blockwise_shift_scale").inputs["scale"]


def constexpr_parameter(spec: Any) -> None:
    op = first(spec, "constexpr_blockwise_shift_scale")
    op.inputs["axis"].CopyFrom(op.inputs["scale"])


def constexpr_of_a_value(spec: Any) -> None:
    first(spec, "constexpr_blockwise_shift_scale").inputs["scale"].arguments[0].name = "x"


def short_constant(spec: Any) -> None:
    constant(spec, "transpose", "perm").ints.values.pop()


def constant_out_of_range(spec: Any) -> None:
    found = const(spec, "transpose", "perm")
    for tensor in (found.outputs[0].type.tensorType, found.attributes["val"].type.tensorType):
        tensor.dataType = 22
    constant(spec, "transpose", "perm").ints.values[0] = 1 << 20


def list_constant(spec: Any) -> None:
    const(spec, "transpose", "perm").attributes["val"].immediateValue.list.SetInParent()


def constant_of_doubles(spec: Any) -> None:
    constant(spec, "transpose", "perm").doubles.values.append(1)


def constant_of_bytes(spec: Any) -> None:
    constant(spec, "transpose", "perm").bytes.values = b"123"


def constant_declared_otherwise(spec: Any) -> None:
    const(spec, "transpose", "perm").outputs[0].type.tensorType.dimensions[0].constant.size = 5


def constant_of_no_size(spec: Any) -> None:
    const(spec, "transpose", "perm").attributes["val"].type.tensorType.dimensions[
        0
    ].unknown.SetInParent()


def any_rank(spec: Any) -> None:
    first(spec, "reduce_sum").outputs[0].type.tensorType.rank = -1


def flags_in_a_weight_file(spec: Any) -> None:
    first(spec, "constexpr_blockwise_shift_scale").inputs["data"].arguments[
        0
    ].value.type.tensorType.dataType = 1


def flags_compressed(spec: Any) -> None:
    op = first(spec, "constexpr_blockwise_shift_scale")
    op.inputs["data"].arguments[0].value.CopyFrom(
        const(spec, "concat", "interleave").attributes["val"]
    )


def compressed_indices(spec: Any) -> None:
    one, two = (
        op for op in operations(spec, "decode") if op.type == "constexpr_blockwise_shift_scale"
    )
    two.type = "constexpr_lut_to_dense"
    two.inputs["lut"].CopyFrom(two.inputs["scale"])
    two.inputs["indices"].arguments.add().name = one.outputs[0].name
    for name in ("data", "scale"):
        del two.inputs[name]


def write_of_nothing(spec: Any) -> None:
    del first(spec, "write_state").inputs["data"]


def input_of_another_kind(spec: Any) -> None:
    spec.mlProgram.functions["decode"].inputs[0].type.listType.SetInParent()


def output_that_is_a_constant(spec: Any) -> None:
    body = spec.mlProgram.functions["decode"]
    body.block_specializations[body.opset].outputs[0] = first(spec, "const").outputs[0].name


def other_opset(spec: Any) -> None:
    body = spec.mlProgram.functions["decode"]
    body.block_specializations["CoreML6"].CopyFrom(body.block_specializations[body.opset])
    body.opset = "CoreML6"


def described(spec: Any, field: str, name: str) -> Any:
    (function,) = (f for f in spec.description.functions if f.name == "decode")
    (feature,) = (f for f in getattr(function, field) if f.name == name)
    return feature


def described_otherwise(spec: Any) -> None:
    described(spec, "input", "x").type.multiArrayType.shape[0] = 2


def described_by_another_name(spec: Any) -> None:
    described(spec, "state", "cache").name = "store"


def flexible(spec: Any) -> None:
    described(spec, "input", "x").type.multiArrayType.shapeRange.sizeRanges.add()


def optional(spec: Any) -> None:
    described(spec, "input", "x").type.isOptional = True


def image(spec: Any) -> None:
    described(spec, "input", "x").type.imageType.width = 3


def doubles(spec: Any) -> None:
    described(spec, "output", "sums").type.multiArrayType.dataType = 65600


def not_described(spec: Any) -> None:
    (function,) = (f for f in spec.description.functions if f.name == "decode")
    function.name = "other"


def other_model(spec: Any) -> None:
    spec.identity.SetInParent()


REFUSED: dict[Edit, str] = {
    unknown_types: (
        r"(?s)pixel_shuffle transpose_\d+: this operation is.*reduce_prod "
        r"reduce_sum_\d+: this operation"
    ),
    rename(
        "slice_by_index", "custom_layer"
    ): r"custom_layer slice_by_index_\d+: this operation is not supported",
    nested_block: r"transpose transpose_\d+: operations with blocks inside",
    missing_parameter: r"transpose transpose_\d+: parameters \['perm'\] are missing",
    unknown_parameter: r"transpose transpose_\d+: parameters \['other'\] are not supported",
    interleaved: r"concat concat_\d+: interleave = True is not supported, only \[False\]",
    computed_constant: r"transpose transpose_\d+: perm is computed, expected a constant",
    constant_of_another_type: (
        r"reduce_sum reduce_sum_\d+: keep_dims is int32 \[2\], expected <class "
        r"'bool'>"
    ),
    two_values: r"linear linear_\d+: x is 2 values, expected 1",
    undefined: r"linear linear_\d+: 'nobody' is not defined before",
    later_value: r"linear linear_\d+: 'reduce_sum_\d+' is not defined before",
    defined_twice: r"linear linear_\d+: defines \['position'\] again",
    state_as_a_value: r"linear linear_\d+: x is a state",
    value_as_a_state: r"read_state read_state_\d+: its input is not a state",
    state_of_another_type: r"read_state read_state_\d+: the state is float16 .*, the value float32",
    attribute: r"linear linear_\d+: attributes \['other'\] are not supported",
    wrong_type: r"linear linear_\d+: x is int32 \[1\], supported are float16, float32",
    mixed_types: r"concat concat_\d+: mixes the types float16, int32",
    wrong_result_type: r"reduce_sum reduce_sum_\d+: gives float32 from float16",
    unknown_data_type: r"reduce_sum reduce_sum_\d+: values of type number 13 are not supported",
    double: r"reduce_sum reduce_sum_\d+: values of type int64 are not supported",
    no_tensor: r"reduce_sum reduce_sum_\d+: values of listType are not supported",
    blob_of_another_type: r"weight\.bin, blob at \d+: type is int8, expected uint8",
    blob_of_another_shape: r"weight\.bin, blob at \d+: size in bytes is 128, expected 136",
    blocks_that_do_not_divide: (
        r"blockwise_shift_scale_\d+: \[8, 2\] blocks do not divide a tensor "
        r"\[128, 1\]"
    ),
    compressed_to_another_shape: (
        r"shift_scale_\d+: gives float16 \[16, 8\], declared is float16 \[17, "
        r"8\]"
    ),
    constexpr_without_scale: (
        r"constexpr_blockwise_shift_scale_\d+: parameters \['scale'\] are "
        r"missing"
    ),
    constexpr_parameter: (
        r"constexpr_blockwise_shift_scale_\d+: parameters \['axis'\] are not "
        r"supported"
    ),
    constexpr_of_a_value: (
        r"constexpr_blockwise_shift_scale_\d+: not all of its parameters are "
        r"constants"
    ),
    short_constant: r"const transpose_\d+_perm_0: a constant int32 \[4\] has 3 values",
    constant_out_of_range: (
        r"const transpose_\d+_perm_0: a constant int16 \[4\] has values that "
        r"the type does not hold"
    ),
    list_constant: r"const transpose_\d+_perm_0: constants that are a list are not supported",
    constant_of_doubles: (
        r"const transpose_\d+_perm_0: constants given as doubles are not "
        r"supported"
    ),
    constant_of_bytes: r"const transpose_\d+_perm_0: a constant int32 \[4\] has 3 bytes",
    constant_declared_otherwise: (
        r"const transpose_\d+_perm_0: is int32 \[4\], declared is int32 "
        r"\[5\]"
    ),
    constant_of_no_size: r"const transpose_\d+_perm_0: a constant has a size that is not fixed",
    any_rank: r"reduce_sum reduce_sum_\d+: values of any rank are not supported",
    flags_in_a_weight_file: r"shift_scale_\d+: weight files do not hold values of type bool",
    flags_compressed: (
        r"shift_scale_\d+: data bool \[\] and scale float16 \[16, 1\] are not "
        r"supported"
    ),
    compressed_indices: (
        r"shift_scale_\d+: indices that are compressed themselves are not "
        r"supported"
    ),
    write_of_nothing: (
        r"write_state \w+: has the parameters \['input'\], expected \['data', "
        r"'input'\]"
    ),
    input_of_another_kind: "input .*: values of listType are not supported",
    output_that_is_a_constant: "not all of the outputs .* are computed",
    other_opset: "is of opset 'CoreML6', this computes CoreML7, CoreML8",
    described_otherwise: r"x is described as float16 \[2, 8\], the function has float16 \[1, 8\]",
    described_by_another_name: "(?s)described input or state cache is missing.*state store is "
    "not known",
    flexible: "x has no fixed shape",
    optional: "x is optional",
    image: "x is a imageType",
    doubles: "sums has elements of type number 65600",
    not_described: "does not describe its function 'decode'",
    other_model: "holds a identity, not an ML Program",
}


@pytest.mark.parametrize("edit", REFUSED, ids=lambda edit: edit.__name__)
def test_what_cannot_be_computed_is_refused_on_opening(
    edit: Edit, two_functions: CoreMLPackage, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=REFUSED[edit]):
        MLProgram(edited(two_functions, tmp_path / "x.mlpackage", edit), "decode", "float16", 0)


def test_many_problems_are_cut(two_functions: CoreMLPackage, tmp_path: Path) -> None:
    def all_unknown(spec: Any) -> None:
        for op in operations(spec, "decode"):
            op.type = "unknown"

    with pytest.raises(BundleError) as caught:
        MLProgram(
            edited(two_functions, tmp_path / "x.mlpackage", all_unknown), "decode", "float16", 0
        )
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1].startswith("and ")


def test_a_result_of_another_shape_is_an_error(
    two_functions: CoreMLPackage, tmp_path: Path
) -> None:
    """The declared shapes are checked against what was computed."""

    def lie(spec: Any) -> None:
        first(spec, "linear").outputs[0].type.tensorType.dimensions[1].constant.size = 15

    program = MLProgram(
        edited(two_functions, tmp_path / "x.mlpackage", lie), "decode", "float16", 0
    )
    inputs = {"x": np.ones((1, 8), np.float16), "position": np.zeros(1, np.int32)}
    with pytest.raises(
        BundleError, match=r"linear_\d+ came out as .* \[1, 16\], declared is float16 \[1, 15\]"
    ):
        program.predict(inputs, program.new_state())

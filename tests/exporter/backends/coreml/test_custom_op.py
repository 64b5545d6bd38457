"""Neural networks with custom layers: many shapes against PyTorch, the file byte for byte, wrong
packages."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.backends.coreml import (
    custom_op,
    custom_op_check,
    custom_op_graph,
    mlpackage,
    protobuf_stream,
)
from exporter.bundle import EXACT, Arithmetic
from exporter.codec import encoder
from exporter.codec.native_tensor import NativeTensor
from exporter.encoded import EncodedModel
from exporter.errors import ExportError
from exporter.models.config import rope_frequencies
from exporter.quant.config import QuantConfig
from exporter.quiet import quiet
from runtime_ref.coreml.neural_network import NeuralNetwork
from runtime_ref.coreml.nn_layers import STANDARD
from runtime_ref.parity import TOLERANCES
from tests.support.bundles import Parts, encode, sqnr_db
from tests.support.checkpoints import LLAMA3_ROPE, write_llama
from tests.support.custom_op import CONTEXT, Made, call, emit, feed, new_cache

with quiet():
    import coremltools

TERNARY = QuantConfig(scheme="ternary")
INT8 = QuantConfig(scheme="int8")
DECLARED = Arithmetic("int16", "float32")
EMBED = "model.embed_tokens.weight"
GATE, UP = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))

# Each with one layer unless it says otherwise.
SHAPES: dict[str, tuple[dict[str, Any], QuantConfig]] = {
    "gqa, tied, two layers": ({"num_hidden_layers": 2}, TERNARY),
    "mha, untied": ({"num_key_value_heads": 4, "tie_word_embeddings": False}, TERNARY),
    "mqa, llama3 rope": (
        {"num_key_value_heads": 1, "rope_scaling": LLAMA3_ROPE, "rope_theta": 5e5},
        INT8,
    ),
    "wide heads": (
        {"head_dim": 32, "hidden_size": 40},
        QuantConfig(scheme="ternary", group_size=24),
    ),
    "narrow heads": (
        {"head_dim": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 3},
        QuantConfig(scheme="int8", group_size=32),
    ),
    "odd sizes": (
        {
            "hidden_size": 36,
            "intermediate_size": 43,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        QuantConfig(scheme="ternary", group_size=20, sparsity=0.5, embedding="ternary"),
    ),
    "large vocabulary": ({"vocab_size": 128256, "hidden_size": 16}, TERNARY),
}


@pytest.fixture(scope="module", params=SHAPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    shape, quantization = SHAPES[request.param]
    work = tmp_path_factory.mktemp("shape")
    checkpoint = write_llama(work / "checkpoint", **{"num_hidden_layers": 1} | shape)
    return emit(encode(checkpoint, work / "encoded", quantization), work / "model.mlpackage")


@pytest.fixture(scope="module")
def raw(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Blobs of equal shapes have equal sizes, so that they can be swapped in place."""
    return encode(checkpoint, tmp_path_factory.mktemp("raw"), INT8, "raw")


@torch.inference_mode()
def expected_logits(
    parts: Parts, tokens: np.ndarray, pieces: Sequence[int], arithmetic: Arithmetic = EXACT
) -> np.ndarray:
    """As `feed`, of the quantized model in PyTorch."""
    model, at, rows = parts.reference(CONTEXT, arithmetic), 0, []
    for n in pieces:
        rows.append(
            model(torch.tensor(tokens[None, at : at + n]).long(), torch.tensor([at]))[0].numpy()
        )
        at += n
    return np.stack(rows)


def worst_sqnr(made: Made, pieces: Sequence[int], arithmetic: Arithmetic = DECLARED) -> float:
    network, tokens = made.open(), made.tokens(sum(pieces))
    got = feed(network, tokens, pieces, new_cache(network))
    return min(map(sqnr_db, expected_logits(made.parts, tokens, pieces, arithmetic), got))


# Against the model in PyTorch


@pytest.mark.parametrize(
    "pieces", [[40], [1] * 9, [7, 9, 1, 1, 22]], ids=["full context", "step by step", "split"]
)
def test_logits_match_pytorch(made: Made, pieces: list[int]) -> None:
    assert worst_sqnr(made, pieces) > 60


def test_logits_are_within_the_gate(made: Made) -> None:
    """A difference in the last bit can flip a rounding; parity's gates allow for that."""
    network, pieces = made.open(), [7, 1, 1, 5, 1]
    assert network.int16_activations
    tokens = made.tokens(sum(pieces))
    got = feed(network, tokens, pieces, new_cache(network)).astype(np.float64)
    expected = expected_logits(made.parts, tokens, pieces, DECLARED).astype(np.float64)
    figures, gate = sorted(map(sqnr_db, expected, got)), TOLERANCES["int16", "float32"]
    assert figures[0] >= gate.worst_sqnr_db
    assert figures[len(figures) // 2] >= gate.median_sqnr_db
    log_p, log_q = (torch.log_softmax(torch.from_numpy(x), -1) for x in (expected, got))
    assert (
        float(
            torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
            .sum(-1)
            .median()
        )
        <= gate.median_kl
    )


def test_float_activations_can_be_declared(raw: Parts, tmp_path: Path) -> None:
    made = emit(raw, tmp_path / "m.mlpackage", int8=False)
    assert not made.open().int16_activations
    assert worst_sqnr(made, [9, 1, 1], EXACT) > 90


@pytest.mark.parametrize("garbage", [1e4, -1e4, 3e38, -3e38])
def test_what_is_in_unused_slots_changes_nothing(made: Made, garbage: float) -> None:
    network, tokens, pieces = made.open(), made.tokens(12), [5, 1, 6]
    clean = feed(network, tokens, pieces, new_cache(network))
    assert np.array_equal(feed(network, tokens, pieces, new_cache(network, garbage)), clean)


def test_what_is_in_used_slots_matters(made: Made) -> None:
    network, tokens = made.open(), made.tokens(9)
    cache = new_cache(network)
    clean = feed(network, tokens, [8, 1], cache)[-1]
    cache[3] += 1
    assert sqnr_db(clean, call(network, tokens[8:], 8, cache)["logits"]) < 40


def test_outputs_can_be_written_into_the_cache_that_is_read(made: Made) -> None:
    """As an app does by outputBackings: the new rows are one piece of the cache's memory, behind
    all used ones."""
    network, tokens, pieces = made.open(), made.tokens(20), [6, 1, 1, 12]
    cache, at = new_cache(network), 0
    for n in pieces:
        rows = cache[at : at + n]
        assert rows.flags.c_contiguous
        outputs = call(network, tokens[at : at + n], at, cache)
        assert outputs["kv_new"].shape == rows.shape
        rows[...] = outputs["kv_new"]
        at += n
    whole = new_cache(network)
    call_at_once = call(network, tokens, 0, whole)
    assert not np.shares_memory(call_at_once["kv_new"], whole)
    np.testing.assert_allclose(cache[:6], call_at_once["kv_new"][:6], atol=0.5)


def test_cache_rows_are_keys_after_rope_then_values(made: Made) -> None:
    """Against the caches of the model in PyTorch."""
    network, tokens = made.open(), made.tokens(9)
    rows = call(network, tokens, 0, new_cache(network))["kv_new"]  # [S, L, 2, KV, D]
    model = made.parts.reference(CONTEXT, DECLARED)
    with torch.inference_mode():
        model(torch.tensor(tokens[None]).long(), torch.tensor([0]))
    for i, block in enumerate(model.blocks):
        for which, expected in enumerate((block.attention.k_cache, block.attention.v_cache)):
            np.testing.assert_allclose(rows[:, i, which], expected[0, :9], atol=2e-4)


def test_late_positions(tmp_path: Path) -> None:
    """At the end of a context of 131072, where angles are large: the tables agree with the
    reference and with NumPy."""
    context, n = 131072, 12
    shape = {
        "num_hidden_layers": 1,
        "head_dim": 2,
        "hidden_size": 8,
        "max_position_embeddings": context,
    }
    checkpoint = write_llama(
        tmp_path / "checkpoint", rope_scaling=LLAMA3_ROPE, rope_theta=5e5, **shape
    )
    parts = encode(checkpoint, tmp_path / "encoded", INT8)
    made = emit(parts, tmp_path / "m.mlpackage", int8=False, context=context)
    network, tokens, at = made.open(), made.tokens(n), context - n
    got = call(network, tokens, at, new_cache(network))["logits"]
    with torch.inference_mode():
        reference = parts.reference(context, EXACT)
        expected = reference(torch.tensor(tokens[None]).long(), torch.tensor([at]))[0].numpy()
    assert sqnr_db(expected, got) > 60


@pytest.mark.parametrize("position", [0, 1, 2047, 131071])
def test_rope_tables_in_the_package(parts: Parts, tmp_path: Path, position: int) -> None:
    """Exact cosines and sines of the float32 angle that transformers computes, rounded once."""
    config = parts.checkpoint.config
    layers = coremltools.utils.load_spec(
        str(emit(parts, tmp_path / "m.mlpackage", context=position + 1).model_file)
    ).neuralNetwork.layers
    size = [position + 1, config.head_dim // 2]
    cos, sin = (
        layer.loadConstantND.data for layer in layers if list(layer.loadConstantND.shape) == size
    )
    angle = (np.float32(position) * rope_frequencies(config).numpy()).astype(np.float64)
    half = size[1]
    assert np.array_equal(np.float32(cos.floatValue[-half:]), np.cos(angle).astype(np.float32))
    assert np.array_equal(np.float32(sin.floatValue[-half:]), np.sin(angle).astype(np.float32))


# RMSNorm in half precision


def half_norm(parts: Parts, package: Path, x: np.ndarray) -> np.ndarray:
    """The first norm of the package with every value rounded to half precision."""
    layers = list(
        coremltools.utils.load_spec(str(emit(parts, package).model_file)).neuralNetwork.layers
    )
    names = [layer.name for layer in layers]
    begin, end = names.index(EMBED) + 1, names.index("model.layers.0.self_attn.q_proj.weight")
    values = {EMBED: x.astype(np.float16)}
    for layer in layers[begin:end]:
        kind = layer.WhichOneof("layer")
        inputs = (values[name].astype(np.float32) for name in layer.input)
        with np.errstate(over="ignore"):
            values[layer.output[0]] = (
                STANDARD[kind].prepare(getattr(layer, kind))(*inputs).astype(np.float16)
            )
    return values[layers[end].input[0]].astype(np.float64)


@pytest.mark.parametrize("size", [6e4, 100.0, 1.0, 1e-2, 1e-3])
def test_norm_in_half_precision(parts: Parts, tmp_path: Path, size: float) -> None:
    """Squares of these would leave half precision at both ends."""
    config = parts.checkpoint.config
    x = np.random.default_rng(0).uniform(-1, 1, (16, config.hidden_size))
    x = (x / np.abs(x).max(-1, keepdims=True) * size).astype(np.float16).astype(np.float64)
    weight = parts.encoded.vectors["model.layers.0.input_layernorm.weight"].double().numpy()
    expected = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.rms_norm_eps) * weight
    got = half_norm(parts, tmp_path / "m.mlpackage", x)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=0.01, atol=1e-3)


def test_norm_of_nothing_and_of_one_spike(parts: Parts, tmp_path: Path) -> None:
    hidden = parts.checkpoint.config.hidden_size
    x = np.zeros((2, hidden))
    x[1, 5] = 6e4
    got = half_norm(parts, tmp_path / "m.mlpackage", x)
    assert (got[0] == 0).all()
    weight = float(parts.encoded.vectors["model.layers.0.input_layernorm.weight"][5])
    assert got[1, 5] == pytest.approx(np.sqrt(hidden) * weight, rel=0.01)


# The file


def test_file_is_what_protobuf_itself_writes(made: Made, tmp_path: Path) -> None:
    """Written piece by piece, read and written again by coremltools: the same bytes."""
    spec = coremltools.utils.load_spec(str(made.model_file))
    assert spec.SerializeToString(deterministic=True) == made.model_file.read_bytes()
    coremltools.utils.save_spec(spec, str(tmp_path / "again.mlmodel"))
    again = NeuralNetwork(tmp_path / "again.mlmodel", tmp_path)
    tokens = made.tokens(5)
    network = made.open()
    assert np.array_equal(
        feed(again, tokens, [4, 1], new_cache(again)),
        feed(network, tokens, [4, 1], new_cache(network)),
    )


def test_codes_survive_coremltools_bit_for_bit(made: Made, tmp_path: Path) -> None:
    coremltools.utils.save_spec(
        coremltools.utils.load_spec(str(made.model_file)), str(tmp_path / "again.mlmodel")
    )
    spec = coremltools.utils.load_spec(str(tmp_path / "again.mlmodel"))
    stored = {
        layer.name: layer.custom.weights
        for layer in spec.neuralNetwork.layers
        if layer.custom.weights
    }
    assert stored.keys() == made.parts.encoded.matrices.keys()
    for name, matrix in made.parts.encoded.matrices.items():
        blob, scales = stored[name]
        assert blob.rawValue == matrix.blob_path.read_bytes()
        assert scales.rawValue == matrix.scales_path.read_bytes()


def test_package_opens_as_a_package(made: Made) -> None:
    with quiet():
        model = coremltools.models.MLModel(str(made.package), skip_model_load=True)
    assert model.author == "someone"
    assert model.get_spec().specificationVersion == made.emitted.specification_version == 4
    manifest = json.loads((made.package / "Manifest.json").read_text())
    assert len(manifest["itemInfoEntries"]) == 1
    files = sorted(
        f for f in made.root.rglob("*") if f.is_file() and f.is_relative_to(made.package)
    )
    assert sorted(made.root / f for f in made.emitted.files) == files


def test_interface(made: Made) -> None:
    config = made.parts.checkpoint.config
    kv = f"{config.num_hidden_layers}, 2, {config.num_key_value_heads}, {config.head_dim}"
    assert made.emitted.inputs == {
        "input_ids": "int32 [1..40]",
        "positions": "int32 [1..40]",
        "kv_cache": f"float32 [40, {kv}]",
    }
    assert made.emitted.outputs == {
        "logits": f"float32 [{config.vocab_size}]",
        "kv_new": f"float32 [1..40, {kv}]",
    }
    network = made.open()
    assert {n: str(info) for n, info in network.inputs.items()} == made.emitted.inputs
    assert {n: str(info) for n, info in network.outputs.items()} == made.emitted.outputs


def test_layers_are_as_many_as_the_model_asks(made: Made) -> None:
    layers, n = made.emitted.layers, made.parts.checkpoint.config.num_hidden_layers
    assert (layers["LZWLinear"], layers["LZWEmbedding"], layers["softmaxND"]) == (7 * n + 1, 1, n)
    assert not layers.keys() & {"innerProduct", "convolution", "embedding", "embeddingND"}


def test_constants_are_norms_and_tables(made: Made) -> None:
    config = made.parts.checkpoint.config
    large = sum(v.numel() for v in made.parts.encoded.vectors.values()) + CONTEXT * config.head_dim
    assert 0 <= made.emitted.constants_bytes - 4 * large < 200


def test_every_matrix_is_in_the_file_once_and_opens_in_place(made: Made) -> None:
    data = np.memmap(made.model_file, dtype=np.uint8, mode="r")
    whole = made.model_file.read_bytes()
    assert made.emitted.places.keys() == made.parts.encoded.matrices.keys()
    for name, matrix in made.parts.encoded.matrices.items():
        place = made.emitted.places[name]
        assert made.root / place.file == made.model_file
        assert whole.count(matrix.blob_path.read_bytes()) == 1
        scales = whole[place.scales_offset : place.scales_offset + matrix.scales_bytes]
        assert scales == matrix.scales_path.read_bytes()
        blob = data[place.offset : place.offset + place.n_bytes]
        with NativeTensor(blob, verify=True) as tensor, matrix.open() as own:
            assert np.array_equal(tensor.decode_rows(), own.decode_rows())


def test_a_tied_head_names_the_embedding(made: Made) -> None:
    spec = coremltools.utils.load_spec(str(made.model_file))
    heads = [layer for layer in spec.neuralNetwork.layers if layer.name.startswith("lm_head")]
    shared = [
        layer.custom.parameters["weights_of"].stringValue
        for layer in heads
        if not layer.custom.weights
    ]
    assert shared == ([EMBED] if made.parts.checkpoint.config.tie_word_embeddings else [])


def test_equal_exports_are_equal_bytes(made: Made, tmp_path: Path) -> None:
    again = emit(made.parts, tmp_path / "model.mlpackage")
    for file in made.emitted.files:
        assert (again.root / file).read_bytes() == (made.root / file).read_bytes()


# The side file


@pytest.fixture
def beside(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The same package, as if its weights were too large for a protobuf."""
    monkeypatch.setattr(custom_op, "PROTOBUF_LIMIT_BYTES", made.model_file.stat().st_size - 1)
    return emit(made.parts, tmp_path / "beside.mlpackage")


def test_weights_beside_the_model_give_the_same_bits(made: Made, beside: Made) -> None:
    tokens, inline, side = made.tokens(9), made.open(), beside.open()
    assert np.array_equal(
        feed(side, tokens, [7, 1, 1], new_cache(side)),
        feed(inline, tokens, [7, 1, 1], new_cache(inline)),
    )


def test_weights_beside_the_model_are_aligned_and_nowhere_else(beside: Made) -> None:
    side = beside.root / "beside.weights"
    assert [beside.root / f for f in beside.emitted.files][2:] == [side]
    data, model = side.read_bytes(), beside.model_file.read_bytes()
    for name, matrix in beside.parts.encoded.matrices.items():
        place = beside.emitted.places[name]
        assert (place.file, place.offset % 64, place.scales_offset % 64) == (side.name, 0, 0)
        blob, scales = matrix.blob_path.read_bytes(), matrix.scales_path.read_bytes()
        assert data[place.offset : place.offset + place.n_bytes] == blob
        assert data[place.scales_offset : place.scales_offset + len(scales)] == scales
        assert blob not in model


def test_a_protobuf_of_just_the_limit_keeps_its_weights(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_op, "PROTOBUF_LIMIT_BYTES", made.model_file.stat().st_size)
    assert len(emit(made.parts, tmp_path / "m.mlpackage").emitted.files) == 2


# Wrong packages are seen


def patched(made: Made, change: Callable[[bytearray], None]) -> Made:
    data = bytearray(made.model_file.read_bytes())
    change(data)
    made.model_file.write_bytes(data)
    return made


def swap(data: bytearray, first: int, second: int, n: int) -> None:
    data[first : first + n], data[second : second + n] = (
        data[second : second + n],
        data[first : first + n],
    )


@pytest.fixture
def right(raw: Parts, tmp_path: Path) -> Made:
    """A package that the test may damage; so far, it is right."""
    made = emit(raw, tmp_path / "m.mlpackage", int8=False)
    assert worst_sqnr(made, [9, 1, 1], EXACT) > 90
    return made


def test_a_flipped_level_is_seen(right: Made) -> None:
    matrix, place = right.parts.encoded.matrices[GATE], right.emitted.places[GATE]
    with matrix.open() as tensor:
        levels = tensor.decode_rows()
        low, n = tensor.info.level_min, tensor.info.n_levels
    row, col = divmod(int(np.abs(levels.astype(np.int32)).argmax()), matrix.cols)
    levels[row, col] = -levels[row, col]
    blob = encoder.encode(levels, low, n, "raw").blob.tobytes()
    assert len(blob) == place.n_bytes

    def change(data: bytearray) -> None:
        data[place.offset : place.offset + place.n_bytes] = blob

    assert worst_sqnr(patched(right, change), [9, 1, 1]) < 60


def test_swapped_weights_are_seen(right: Made) -> None:
    first, second = right.emitted.places[GATE], right.emitted.places[UP]
    assert first.n_bytes == second.n_bytes
    assert (
        worst_sqnr(
            patched(right, lambda data: swap(data, first.offset, second.offset, first.n_bytes)),
            [9, 1],
        )
        < 30
    )


def test_swapped_scales_are_seen(right: Made) -> None:
    first, second = (right.emitted.places[name].scales_offset for name in (GATE, UP))
    n = right.parts.encoded.matrices[GATE].scales_bytes
    assert worst_sqnr(patched(right, lambda data: swap(data, first, second, n)), [9, 1]) < 40


def test_a_wrong_rope_base_is_seen(raw: Parts, tmp_path: Path) -> None:
    assert worst_sqnr(emit(raw, tmp_path / "m.mlpackage", rope_theta=20000.0), [9, 1]) < 40


def test_a_wrong_eps_is_seen(raw: Parts, tmp_path: Path) -> None:
    assert worst_sqnr(emit(raw, tmp_path / "m.mlpackage", rms_norm_eps=1e-2), [9, 1]) < 60


@pytest.mark.parametrize("off", [-1, 1])
def test_stale_positions_are_seen(right: Made, off: int) -> None:
    network, tokens = right.open(), right.tokens(9)
    cache = new_cache(network)
    clean = feed(network, tokens, [8, 1], cache)[-1]
    stale = call(network, tokens[8:], 8 + off, cache)["logits"]
    assert sqnr_db(clean, stale) < 60


# What makes an export fail


def failure(raw: Parts, tmp_path: Path) -> str:
    with pytest.raises(ExportError) as caught:
        emit(raw, tmp_path / "m.mlpackage")
    return str(caught.value)


def test_a_missing_product_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        custom_op_graph.NetworkBuilder,
        "_head",
        lambda self, x: self.layer("reshapeStatic", x, targetShape=[48]),
    )
    assert "LZWLinear is there 14 times, expected 15" in failure(raw, tmp_path)


def test_a_dense_product_fails(raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        custom_op_graph.NetworkBuilder,
        "linear",
        lambda self, x, tensor: self.layer("innerProduct", x, name=tensor),
    )
    message = failure(raw, tmp_path)
    assert "innerProduct is there 14 times, expected 0" in message
    assert "lm_head" not in message


def changed_layers(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[str, dict[str, Any]], str]
) -> None:
    """`change` gives the type of a layer, and may edit its parameters."""
    layer = custom_op_graph.NetworkBuilder.layer

    def changed(self: Any, kind: str, *inputs: str, name: str = "", **params: Any) -> str:
        return layer(self, change(kind, params), *inputs, name=name, **params)

    monkeypatch.setattr(custom_op_graph.NetworkBuilder, "layer", changed)


def test_a_missing_embedding_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    custom = custom_op_graph.NetworkBuilder.custom
    monkeypatch.setattr(
        custom_op_graph.NetworkBuilder,
        "custom",
        lambda self, kind, *args, **more: custom(self, "LZWLinear", *args, **more),
    )
    message = failure(raw, tmp_path)
    assert "LZWLinear is there 16 times, expected 15" in message
    assert "LZWEmbedding is there 0 times, expected 1" in message


def test_a_missing_product_of_attention_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(kind: str, params: dict[str, Any]) -> str:
        return (
            "addBroadcastable" if kind == "batchedMatmul" and not params.pop("transposeB") else kind
        )

    changed_layers(monkeypatch, change)
    assert "batchedMatmul is there 4 times, expected 8" in failure(raw, tmp_path)


def test_a_constant_of_another_size_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(kind: str, params: dict[str, Any]) -> str:
        if kind == "loadConstantND" and len(params["shape"]) == 2:
            params["shape"][0] += 1
        return kind

    changed_layers(monkeypatch, change)
    half = raw.checkpoint.config.head_dim // 2
    assert f"has {CONTEXT * half} values for [{CONTEXT + 1}, {half}]" in failure(raw, tmp_path)


def test_layers_that_are_lost_on_the_way_to_the_file_fail(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragments = custom_op._layer_fragments
    monkeypatch.setattr(
        custom_op,
        "_layer_fragments",
        lambda layer, m: [] if layer.name == "logits" else fragments(layer, m),
    )
    message = failure(raw, tmp_path)
    assert "its layers are not those that were written" in message  # one has no type now
    assert "no layer makes logits" in message


DESCRIPTIONS: dict[str, tuple[Callable[[Any], object], str]] = {
    "version": (
        lambda s: setattr(s, "specificationVersion", 3),
        "specification version is 3, expected 4",
    ),
    "input": (
        lambda s: setattr(
            s.description.input[1].type.multiArrayType.shapeRange.sizeRanges[0], "upperBound", 9
        ),
        "input positions is int32 [1..9], expected int32 [1..40]",
    ),
    "cache": (
        lambda s: s.description.input[2].type.multiArrayType.shape.__setitem__(0, 8),
        "input kv_cache is float32 [8, ",
    ),
    "output": (
        lambda s: s.description.output.pop(1),
        "output kv_new is absent, expected float32 [1..40, ",
    ),
    "one more": (
        lambda s: s.description.output.add(name="x"),
        "output x is invalid_array_data_type [], expected none",
    ),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_wrong_description_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    edit, expected = DESCRIPTIONS[name]
    interface = custom_op._interface

    def edited(*args: Any) -> Any:
        spec = interface(*args)
        edit(spec)
        return spec

    monkeypatch.setattr(custom_op, "_interface", edited)
    assert expected in failure(raw, tmp_path)


def test_metadata_that_is_not_written_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlpackage, "fill_metadata", lambda metadata, values: None)
    assert "metadata author is , expected someone" in failure(raw, tmp_path)


def test_a_misplaced_matrix_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = protobuf_stream.write
    monkeypatch.setattr(
        protobuf_stream,
        "write",
        lambda fragments, path: {k: at + 1 for k, at in write(fragments, path).items()},
    )
    assert f"{GATE} is not at byte" in failure(raw, tmp_path)


def test_an_absent_matrix_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = protobuf_stream.write
    monkeypatch.setattr(
        protobuf_stream,
        "write",
        lambda fragments, path: dict(list(write(fragments, path).items())[2:]),
    )
    assert f"{EMBED} is not in the package" in failure(raw, tmp_path)


def test_a_matrix_that_ends_otherwise_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, blob = protobuf_stream.write, raw.encoded.matrices[GATE].blob_path

    def written(fragments: Any, path: Path) -> dict[Path, int]:
        offsets = write(fragments, path)
        with path.open("r+b") as file:
            file.seek(offsets[blob] + blob.stat().st_size - 1)
            file.write(b"\x5a")
        return offsets

    monkeypatch.setattr(protobuf_stream, "write", written)
    assert f"{GATE} is not at byte" in failure(raw, tmp_path)


def test_large_unknown_bytes_fail(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = mlpackage.fill_metadata
    monkeypatch.setattr(
        mlpackage, "fill_metadata", lambda m, values: fill(m, values | {"more": "x" * (1 << 20)})
    )
    assert "bytes are neither blobs, scales nor constants" in failure(raw, tmp_path)


def test_a_file_that_coremltools_cannot_read_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = protobuf_stream.write
    monkeypatch.setattr(
        protobuf_stream, "write", lambda fragments, path: write([*fragments, b"\xff"], path)
    )
    assert "coremltools cannot read the model" in failure(raw, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("positions", "missing", "takes missing, which no layer before it makes"),
        ("kv_new", "kv_old", "no layer makes kv_new"),
        ("kv_new", "logits", "logits makes logits again"),
    ],
)
def test_a_graph_with_a_gap_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, problem: str
) -> None:
    layer = custom_op_graph.NetworkBuilder.layer

    def renamed(self: Any, kind: str, *inputs: str, name: str = "", **params: Any) -> str:
        inputs = tuple(new if i == old else i for i in inputs)
        return layer(self, kind, *inputs, name=new if name == old else name, **params)

    monkeypatch.setattr(custom_op_graph.NetworkBuilder, "layer", renamed)
    assert problem in failure(raw, tmp_path)


def test_export_and_check_do_not_hold_weights(raw: Parts, tmp_path: Path) -> None:
    """Blobs of 4 MB for small matrices: nothing at export decodes them."""
    large, matrices = 4 << 20, {}
    for i, matrix in enumerate(raw.encoded.matrices.values()):
        blob = tmp_path / f"{i}.tqlz"
        blob.write_bytes(matrix.blob_path.read_bytes().ljust(large, b"\1"))
        matrices[matrix.name] = dataclasses.replace(matrix, blob_path=blob)
    tracemalloc.start()
    try:
        made = emit(
            dataclasses.replace(raw, encoded=EncodedModel(matrices, raw.encoded.vectors)),
            tmp_path / "m.mlpackage",
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.model_file.stat().st_size > len(matrices) * large
    assert peak < large


def test_stand_ins_change_nothing_but_weights(made: Made) -> None:
    """What coremltools parses of them is what it parses of the file, and weights keep their
    beginnings."""
    whole = coremltools.utils.load_spec(str(made.model_file))
    short = type(whole).FromString(
        protobuf_stream.shortened(made.model_file, custom_op_check.PATH_TO_WEIGHTS)
    )
    for a, b in zip(whole.neuralNetwork.layers, short.neuralNetwork.layers, strict=True):
        for full, cut in zip(a.custom.weights, b.custom.weights, strict=True):
            assert full.rawValue.startswith(cut.rawValue)
            assert len(cut.rawValue) == len(full.rawValue) or 64 <= len(cut.rawValue) < 128
            assert list(full.floatValue)[: len(cut.floatValue)] == list(cut.floatValue)
        a.custom.ClearField("weights")
        b.custom.ClearField("weights")
    assert short == whole


def test_a_scale_that_is_cut_in_half_fails(raw: Parts, tmp_path: Path) -> None:
    """Packed numbers that end inside a number, far behind what a stand-in keeps."""
    matrix = dataclasses.replace(raw.encoded.matrices[GATE], scale_type="float32")
    cut = tmp_path / "cut"
    cut.write_bytes(bytes(matrix.scales_bytes + 2))
    encoded = EncodedModel(
        raw.encoded.matrices | {GATE: dataclasses.replace(matrix, scales_path=cut)},
        raw.encoded.vectors,
    )
    assert cut.stat().st_size > 2 * protobuf_stream.KEPT_BYTES
    assert "coremltools cannot read the model" in failure(
        dataclasses.replace(raw, encoded=encoded), tmp_path
    )


def test_a_length_that_is_wrong_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the blob of one matrix: one byte less than is written."""
    blob = raw.encoded.matrices[GATE].blob_path
    length = protobuf_stream.length
    monkeypatch.setattr(
        protobuf_stream, "length", lambda fragments: length(fragments) - (list(fragments) == [blob])
    )
    assert "coremltools cannot read the model" in failure(raw, tmp_path)


def test_a_model_above_the_limit_fails(
    raw: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_op_check, "PROTOBUF_LIMIT_BYTES", 1000)
    assert "the limit is 1,000" in failure(raw, tmp_path)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 16383, 16384, (1 << 31) - 1, 1 << 35])
def test_varint_is_protobufs(value: int) -> None:
    from google.protobuf.internal.encoder import _VarintBytes

    assert protobuf_stream.varint(value) == _VarintBytes(value)

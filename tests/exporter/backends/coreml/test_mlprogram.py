"""The ML Program of a model: what is in the package, and that coremltools itself reads it back."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.backends.coreml import (
    mlpackage,
    mlprogram,
    mlprogram_check,
    mlprogram_graph,
    mlprogram_weights,
)
from exporter.backends.coreml.mlprogram import EmittedMLProgram
from exporter.backends.coreml.mlprogram_graph import MLProgramConfig
from exporter.codec.scales import stored, widened
from exporter.codec.weight_file import expand
from exporter.errors import ExportError, UsageError
from exporter.models.llama import read_config
from exporter.quant.config import QuantConfig
from exporter.quiet import quiet
from tests.support import bundles as shared
from tests.support.bundles import Parts
from tests.support.checkpoints import LLAMA3_ROPE, write_llama

CONTEXT = 40
METADATA = {"author": "somebody", "versionString": "7", "tinyqmoe.scheme": "ternary"}
TERNARY = QuantConfig(scheme="ternary")
GROUPED = QuantConfig(scheme="ternary", group_size=16, sparsity=0.5, embedding="ternary")
INT8 = QuantConfig(scheme="int8", group_size=24)


@dataclass(frozen=True)
class Made:
    parts: Parts
    emitted: EmittedMLProgram
    work: Path

    @property
    def package(self) -> Path:
        return self.work / mlprogram.PACKAGE


def emit(parts: Parts, work: Path, **config: Any) -> Made:
    work.mkdir()
    settings = MLProgramConfig(**{"context": CONTEXT, "chunk_bytes": 10**9} | config)
    emitted = mlprogram.write(
        parts.encoded,
        parts.checkpoint.config,
        settings,
        work,
        METADATA,
        lambda done, total: None,
    )
    return Made(parts, emitted, work)


MODELS: dict[str, tuple[QuantConfig, dict[str, Any]]] = {
    "ternary": (TERNARY, {}),
    "grouped": (
        GROUPED,
        {"tie_word_embeddings": False, "num_key_value_heads": 4, "rope_scaling": LLAMA3_ROPE},
    ),
    "int8": (INT8, {"intermediate_size": 72, "head_dim": 30, "num_hidden_layers": 1}),
}


@pytest.fixture(scope="module", params=MODELS, ids=list(MODELS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    quantization, shape = MODELS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    parts = shared.encode(
        write_llama(directory / "model", **shape), directory / "coded", quantization
    )
    done = emit(parts, directory / "out")
    expand(done.work, done.emitted.recipe, done.package, lambda n: None)
    return done


@pytest.fixture(scope="module")
def spec(made: Made) -> Any:
    with quiet():
        import coremltools

        return coremltools.utils.load_spec(str(made.package))


@pytest.fixture(scope="module")
def program(made: Made, spec: Any) -> Any:
    """The program as coremltools builds it from the package, weight file and all."""
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load

        weights = made.package / mlpackage.WEIGHTS_DIR
        return load(
            spec, specification_version=spec.specificationVersion, file_weights_dir=str(weights)
        )


def dense(made: Made, name: str) -> np.ndarray:
    """What the weights of a matrix are in half precision, from its codes: float16 [rows, cols]."""
    matrix = made.parts.encoded.matrices[name]
    with matrix.open() as coded:
        levels = torch.from_numpy(coded.decode_rows())
    scales = np.repeat(widened(matrix.scales()).astype(np.float16), matrix.group_size, axis=1)[
        :, : matrix.cols
    ]
    return levels.numpy().astype(np.float16) * scales


def test_coremltools_reads_the_weights_that_were_coded(made: Made, program: Any) -> None:
    """Bit for bit, by its own blob reader and its own decompression, through both functions."""
    for function in program.functions.values():
        found: dict[tuple[int, ...], list[np.ndarray]] = {}
        for op in function.operations:
            if op.op_type.startswith("constexpr_"):
                found.setdefault(op.outputs[0].shape, []).append(op.materialized_val_inference())
        wanted: dict[tuple[int, ...], list[np.ndarray]] = {}
        for name in made.parts.encoded.matrices:
            value = dense(made, name)
            wanted.setdefault(value.shape, []).append(value)
        assert found.keys() == wanted.keys()
        for shape, values in wanted.items():
            got = {np.asarray(v + 0, np.float16).tobytes() for v in found[shape]}  # + 0: -0 is 0
            assert got == {np.asarray(v + 0, np.float16).tobytes() for v in values}


def test_a_model_that_coremltools_opens(made: Made) -> None:
    with quiet():
        import coremltools

        model = coremltools.models.MLModel(str(made.package), skip_model_load=True)
    assert model.author == "somebody"
    assert model.version == "7"
    assert dict(model.user_defined_metadata) == {"tinyqmoe.scheme": "ternary"}


def described(features: Any) -> dict[str, tuple[int, ...]]:
    return {
        f.name: tuple(f.type.multiArrayType.shape or f.type.stateType.arrayType.shape)
        for f in features
    }


def test_the_interface_is_as_documented(made: Made, spec: Any) -> None:
    config = made.parts.checkpoint.config
    description = spec.description
    assert spec.specificationVersion == 9  # iOS 18
    assert description.defaultFunctionName == "decode"
    functions = {f.name: f for f in description.functions}
    assert described(functions["decode"].input) == {"input_ids": (1, 1), "position": (1,)}
    assert described(functions["prefill"].input) == {
        "input_ids": (1, CONTEXT),
        "position": (1,),
        "last": (1,),
    }
    cache = (config.num_hidden_layers, config.num_key_value_heads, CONTEXT, config.head_dim)
    for function in functions.values():
        assert described(function.output) == {"logits": (1, config.vocab_size)}
        assert described(function.state) == {"k_cache": cache, "v_cache": cache}


def test_each_state_is_read_once_before_its_updates(spec: Any) -> None:
    """And then only what was just written: coremltools merges two reads with a write between
    them."""
    for function in spec.mlProgram.functions.values():
        (block,) = function.block_specializations.values()
        kinds = {"k_cache": "", "v_cache": ""}
        for op in block.operations:
            if op.type in ("read_state", "write_state"):
                kinds[op.inputs["input"].arguments[0].name] += op.type[0]
        layers = kinds["k_cache"].count("w")
        assert layers > 0
        assert kinds == dict.fromkeys(kinds, "r" + "wr" * layers)


def test_both_functions_share_their_weights(made: Made, spec: Any) -> None:
    """As many bytes as the matrices and constants of one function."""
    matrices = made.parts.encoded.matrices.values()
    bits = sum(m.rows * m.cols * (2 if m.scheme == "ternary" else 8) for m in matrices)
    (file,) = made.emitted.recipe.weight_files
    blobs = int.from_bytes((made.package / file.path).read_bytes()[:4], "little")
    assert file.n_bytes <= bits // 8 + made.emitted.constants_bytes + 192 * blobs
    counts = [
        Counter(op.type for block in f.block_specializations.values() for op in block.operations)
        for f in spec.mlProgram.functions.values()
    ]
    assert (
        counts[0]["linear"]
        == counts[1]["linear"]
        == 7 * made.parts.checkpoint.config.num_hidden_layers + 1
    )


def test_levels_lie_where_the_places_say(made: Made) -> None:
    from exporter.codec.weight_file import unpack_uint2

    assert made.emitted.places.keys() == made.parts.encoded.matrices.keys()
    for name, place in made.emitted.places.items():
        matrix = made.parts.encoded.matrices[name]
        data = np.fromfile(made.work / place.file, np.uint8, place.n_bytes, offset=place.offset)
        n = matrix.rows * matrix.cols
        levels = unpack_uint2(data, n) if place.form == "uint2" else data.view(np.int8)
        with matrix.open() as coded:
            assert np.array_equal(levels, coded.decode_rows().reshape(-1))
        stored = np.fromfile(
            made.work / (place.scales_file or place.file),
            np.uint8,
            place.scales_bytes,
            offset=place.scales_offset,
        ).view(np.float16)
        scales = widened(matrix.scales()).astype(np.float16)
        if place.form == "uint2":  # in a table of -scale, 0, scale, 0
            scales = np.stack([-scales, 0 * scales, scales, 0 * scales], axis=-1)
        assert np.array_equal(stored, scales.reshape(-1))
        assert zlib.crc32(stored.data) == place.scales_crc32


def test_two_exports_are_the_same_bytes(made: Made, tmp_path: Path) -> None:
    again = emit(made.parts, tmp_path / "again")
    assert again.emitted == made.emitted
    for file in (p for p in again.work.rglob("*") if p.is_file()):
        assert file.read_bytes() == (made.work / file.relative_to(again.work)).read_bytes(), file


def test_weights_are_split_into_chunks(made: Made, tmp_path: Path) -> None:
    """With the same tensors in all, each file a blob file of its own."""
    largest = max(p.n_bytes for p in made.emitted.places.values()) + 192
    limit = max(largest, made.emitted.recipe.weight_files[0].n_bytes // 3)
    split = emit(made.parts, tmp_path / "split", chunk_bytes=limit)
    expand(split.work, split.emitted.recipe, split.package, lambda n: None)
    assert len(split.emitted.recipe.weight_files) >= 2
    for file in split.emitted.recipe.weight_files:
        assert (split.package / file.path).stat().st_size == file.n_bytes <= limit
    with quiet():
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        spec = coremltools.utils.load_spec(str(split.package))
        load(
            spec,
            specification_version=9,
            file_weights_dir=str(split.package / mlpackage.WEIGHTS_DIR),
        )


def test_a_chunk_smaller_than_a_matrix_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--chunk-bytes is 1,000, and .* alone takes"):
        emit(made.parts, tmp_path / "out", chunk_bytes=1000)


def test_groups_that_do_not_divide_are_refused_all_at_once() -> None:
    groups = {"a": (48, 24), "b": (48, 32), "c": (48, None), "d": (20, 24), "e": (50, 24)}
    with pytest.raises(UsageError) as caught:
        mlprogram._check_groups(groups)
    assert [p.split(":")[0] for p in caught.value.problems] == ["b", "e"]


@pytest.mark.parametrize("scale", [1e-6, 600.0])
def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path: Path, scale: float) -> None:
    parts = shared.encode(write_llama(tmp_path / "model"), tmp_path / "coded", INT8)
    matrix = parts.encoded.matrices["model.layers.1.mlp.up_proj.weight"]
    scales = np.full(matrix.rows * matrix.n_groups, np.float16(scale), np.float32)
    stored(scales).tofile(matrix.scales_path)
    with pytest.raises(
        ExportError, match=r"layers\.1\.mlp\.up_proj\.weight has scales or values up to"
    ):
        emit(parts, tmp_path / "out")


# ---- the checks after writing


def check(made: Made, spec: Any, edit: Callable[[Any], object], **placed: int) -> list[str]:
    """What is wrong with the program after `edit`; `placed` are rows of matrices in the weight
    file, 0 for none."""
    layout = mlprogram_weights.BlobLayout(10**9)
    for name, matrix in made.parts.encoded.matrices.items():
        if rows := placed.get(name.split(".")[-2], matrix.rows):
            layout.place(name, "int8", rows * matrix.cols, matrix)
    edited = type(spec)()
    edited.CopyFrom(spec)
    edit(edited)
    config, model = MLProgramConfig(CONTEXT, 10**9), made.parts.checkpoint.config
    try:
        mlprogram_check.check_program(edited, layout, made.parts.encoded, model, config, METADATA)
    except ExportError as error:
        return error.problems
    return []


def test_a_program_that_is_right_passes_the_check(made: Made, spec: Any) -> None:
    assert check(made, spec, lambda s: None) == []


def first(spec: Any, function: str, kind: str) -> Any:
    return next(op for op in mlprogram_check.operations(spec, function) if op.type == kind)


@pytest.mark.parametrize("function", ["decode", "prefill"])
@pytest.mark.parametrize(
    "kind", ["linear", "scaled_dot_product_attention", "slice_update", "constexpr"]
)
def test_an_operation_too_few_fails_the_check(
    made: Made, spec: Any, function: str, kind: str
) -> None:
    ops = mlprogram_check.operations(spec, function)
    full = next(op.type for op in ops if op.type.startswith(kind))
    n = sum(op.type == full for op in ops)
    problems = check(made, spec, lambda s: setattr(first(s, function, full), "type", "identity"))
    assert problems == [f"{function}: {n - 1} x {full}, expected {n}"]


@pytest.mark.parametrize("kind", ["matmul", "conv"])
def test_a_dense_product_fails_the_check(made: Made, spec: Any, kind: str) -> None:
    problems = check(made, spec, lambda s: setattr(first(s, "prefill", "silu"), "type", kind))
    assert problems == [f"prefill: 1 x {kind}, expected 0"]


@pytest.mark.parametrize("kind", ["read_state", "write_state"])
def test_a_state_that_is_not_read_or_written_fails_the_check(
    made: Made, spec: Any, kind: str
) -> None:
    problems = check(made, spec, lambda s: setattr(first(s, "decode", kind), "type", "identity"))
    assert problems == ["decode: k_cache is not read once and then updated in a chain"]


def test_a_state_read_twice_fails_the_export(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one might write it; coremltools' passes would then merge the reads over a write between
    them."""
    real = mlprogram_graph.ProgramBuilder.update

    def update(self: Any, cache: Any, layer: int, new: Any, position: Any) -> Any:
        state, _ = cache
        return real(self, (state, self.mb.read_state(input=state)), layer, new, position)

    monkeypatch.setattr(mlprogram_graph.ProgramBuilder, "update", update)
    with pytest.raises(ExportError) as caught:
        emit(made.parts, tmp_path / "out")
    right = "is not read once and then updated in a chain"
    assert caught.value.problems == [
        f"{f}: {s}_cache {right}" for f in ("decode", "prefill") for s in "kv"
    ]


def test_a_matrix_that_is_absent_or_cut_fails_the_check(made: Made, spec: Any) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    assert check(made, spec, lambda s: None, gate_proj=0)[0] == f"{name} is not in the program"
    cols = made.parts.encoded.matrices[name].cols
    assert check(made, spec, lambda s: None, gate_proj=3)[0] == f"{name} has {3 * cols:,} elements"


def function(spec: Any, name: str) -> Any:
    return next(f for f in spec.description.functions if f.name == name)


DESCRIPTIONS: dict[str, tuple[Callable[[Any], object], str]] = {
    "version": (
        lambda s: setattr(s, "specificationVersion", 8),
        "specification version is 8, expected 9",
    ),
    "author": (
        lambda s: setattr(s.description.metadata, "author", ""),
        "metadata author is , expected somebody",
    ),
    "licence": (
        lambda s: setattr(s.description.metadata, "license", "MIT"),
        "metadata license is MIT, expected ",
    ),
    "scheme": (
        lambda s: s.description.metadata.userDefined.pop("tinyqmoe.scheme"),
        "metadata tinyqmoe.scheme is absent, expected ternary",
    ),
    "more metadata": (
        lambda s: s.description.metadata.userDefined.update({"x": "y"}),
        "metadata x is y, expected none",
    ),
    "input": (
        lambda s: setattr(function(s, "prefill").input[1], "name", "start"),
        "prefill: input position is absent, expected int32 [1]",
    ),
    "output": (
        lambda s: setattr(function(s, "decode").output[0].type.multiArrayType, "dataType", 65568),
        "decode: output logits is float32 [1, ",
    ),
    "state": (
        lambda s: function(s, "decode").state[0].type.stateType.arrayType.shape.__setitem__(2, 8),
        "decode: state k_cache is float16 [",
    ),
    "function": (
        lambda s: setattr(function(s, "decode"), "name", "step"),
        "decode: input input_ids is absent, expected int32",
    ),
    "size": (
        lambda s: setattr(s.description.metadata, "shortDescription", "x" * (1 << 20)),
        "the program without weights has 1,",
    ),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_wrong_description_fails_the_check(made: Made, spec: Any, name: str) -> None:
    edit, expected = DESCRIPTIONS[name]
    assert any(problem.startswith(expected) for problem in check(made, spec, edit))


def test_a_constant_nobody_asked_for_fails_the_export(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mlprogram_graph.ProgramBuilder.mlp

    def with_dense_weights(self: Any, h: Any, prefix: str) -> Any:
        rows = h.shape[-1]
        return self.mb.linear(x=real(self, h, prefix), weight=np.eye(rows, dtype=np.float16))

    monkeypatch.setattr(mlprogram_graph.ProgramBuilder, "mlp", with_dense_weights)
    with pytest.raises(ExportError, match="nobody asked for the constant"):
        emit(made.parts, tmp_path / "out")


def test_a_program_that_coremltools_cannot_reload_fails(made: Made, spec: Any) -> None:
    damaged = type(spec)()
    damaged.CopyFrom(spec)
    (block,) = damaged.mlProgram.functions["prefill"].block_specializations.values()
    product = next(op for op in block.operations if op.type == "linear")
    product.inputs["x"].arguments[0].name = "nothing_of_that_name"
    with quiet(), pytest.raises(ExportError, match="coremltools cannot read the program it wrote"):
        mlprogram_check.check_reload(damaged)


# ---- rope


def test_rope_tables_are_right_at_the_last_position_of_llama() -> None:
    """At position 131,071 a float32 angle is off by up to 2^-7 / 2, which is the model's own
    definition; the cosine of that angle is exact to half precision."""
    raw = {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 64,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "head_dim": 64,
        "rope_scaling": LLAMA3_ROPE | {"factor": 32.0, "original_max_position_embeddings": 8192},
    }
    config = read_config(raw)
    cos, sin = (table.numpy() for table in mlpackage.rope_tables(config, 131072))
    exact = np.float64(131071) * mlpackage.rope_frequencies(config).double().numpy()
    assert np.abs(cos[-1] - np.cos(exact)).max() < 2**-8
    assert np.abs(sin[-1] - np.sin(exact)).max() < 2**-8
    angles = (torch.tensor(131071.0) * mlpackage.rope_frequencies(config)).double().numpy()
    assert np.abs(cos[-1].astype(np.float16) - np.cos(angles)).max() < 2**-11
    assert np.abs(sin[-1].astype(np.float16) - np.sin(angles)).max() < 2**-11


def test_a_context_shorter_than_a_prefill_makes_it_shorter() -> None:
    assert MLProgramConfig(16, 10**9).prefill_tokens == 16
    assert dataclasses.replace(MLProgramConfig(16, 10**9), context=4096).prefill_tokens == 128

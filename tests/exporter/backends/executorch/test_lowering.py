"""The ExecuTorch backend: programs of many shapes against the model in PyTorch, and what makes an
export fail."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter.backends.executorch import lowering
from exporter.backends.executorch.exir import without_exporter
from exporter.backends.executorch.graph import ALIGNMENT
from exporter.backends.executorch.lowering import EmittedProgram
from exporter.bundle import EXACT, PROGRAM, Arithmetic, Bundle
from exporter.errors import ExportError
from exporter.quant.config import QuantConfig
from runtime_ref.executorch import kernels
from tests.support import bundles as shared
from tests.support.bundles import SHIPPED, Parts, encode, sqnr_db
from tests.support.checkpoints import LLAMA3_ROPE, write_llama

CONTEXT = 40
INT8 = QuantConfig(scheme="int8")
SHAPES: dict[str, tuple[dict[str, Any], QuantConfig]] = {
    "mqa, wide heads, llama3 rope": (
        {"num_key_value_heads": 1, "head_dim": 20, "hidden_size": 36, "rope_scaling": LLAMA3_ROPE},
        QuantConfig(scheme="ternary", group_size=20),
    ),
    "mha, untied, odd sizes": (
        {
            "num_key_value_heads": 4,
            "hidden_size": 40,
            "intermediate_size": 43,
            "tie_word_embeddings": False,
        },
        INT8,
    ),
    "gqa, narrow heads": (
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "hidden_size": 64,
            "vocab_size": 300,
        },
        QuantConfig(scheme="ternary", sparsity=0.5, embedding="ternary"),
    ),
}


class Program:
    """A loaded `.pte`, without a bundle."""

    def __init__(self, path: Path) -> None:
        from executorch.runtime import Runtime

        self.kernels = kernels.load()
        self.program = Runtime.get().load_program(path)
        self.method = self.program.load_method("forward")

    def __call__(self, tokens: list[int], position: int) -> np.ndarray:
        """Logits float32 [vocab]."""
        (logits,) = self.method.execute((torch.tensor([tokens]), torch.tensor([position])))
        return logits.numpy()[0].copy()

    def constant(self, name: str) -> list[Any]:
        return list(self.program.load_method(name).execute(()))


@dataclasses.dataclass(frozen=True)
class Made:
    """A program of one of SHAPES and what it was made of."""

    parts: Parts
    emitted: EmittedProgram
    path: Path


@pytest.fixture(scope="module", params=SHAPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    shape, quantization = SHAPES[request.param]
    work = tmp_path_factory.mktemp("shape")
    checkpoint = write_llama(work / "checkpoint", num_hidden_layers=1, **shape)
    parts = encode(checkpoint, work / "encoded", quantization)
    return Made(parts, parts.emit(work / "model.pte", CONTEXT), work / "model.pte")


def tokens_of(made: Made, n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, made.parts.checkpoint.config.vocab_size, n).tolist()


@torch.inference_mode()
def worst_sqnr(made: Made, pieces: list[int], arithmetic: Arithmetic, path: Path) -> float:
    """Over the logits after each piece of a random sequence."""
    program, model = Program(path), made.parts.reference(CONTEXT, arithmetic)
    tokens, at, figures = tokens_of(made, sum(pieces)), 0, []
    for n in pieces:
        piece = tokens[at : at + n]
        expected = model(torch.tensor([piece]), torch.tensor([at]))[0].numpy()
        figures.append(sqnr_db(expected, program(piece, at)))
        at += n
    return min(figures)


@pytest.mark.parametrize(
    "pieces", [[40], [1] * 12, [7, 9, 1, 1, 22]], ids=["at once", "step by step", "split"]
)
def test_logits_match_pytorch(made: Made, pieces: list[int]) -> None:
    assert worst_sqnr(made, pieces, SHIPPED, made.path) > 50


@pytest.mark.parametrize(
    ("arithmetic", "least"),
    [(EXACT, 80), (Arithmetic("int16", "float32"), 60), (Arithmetic("int16", "int8"), 25)],
    ids=lambda a: getattr(a, "name", ""),
)
def test_logits_match_pytorch_in_other_arithmetics(
    made: Made, arithmetic: Arithmetic, least: float, tmp_path: Path
) -> None:
    made.parts.emit(tmp_path / "model.pte", CONTEXT, arithmetic)
    assert worst_sqnr(made, [7, 1, 1, 5, 1], arithmetic, tmp_path / "model.pte") > least


def test_position_zero_starts_anew(made: Made) -> None:
    program, tokens = Program(made.path), tokens_of(made, 12)
    first = program(tokens[:4], 0)
    program(tokens[4:], 4)
    assert np.array_equal(program(tokens[:4], 0), first)


def test_operators_are_there_as_often_as_the_model_asks(made: Made) -> None:
    layers = made.parts.checkpoint.config.num_hidden_layers
    census = made.emitted.operators
    # q, k and v have one input, gate and up another; o, down and the head are alone.
    assert census["tinyqmoe::lzw_linears.out"] == 2 * layers
    assert census["tinyqmoe::lzw_linear.out"] == 2 * layers + 1
    assert made.emitted.n_products == 7 * layers + 1
    assert census["tinyqmoe::lzw_embedding.out"] == 1
    assert census["tinyqmoe::attention.out"] == layers
    assert all(name.startswith("tinyqmoe::") for name in census)


def test_every_matrix_is_in_the_file_once_and_whole(made: Made) -> None:
    data = made.path.read_bytes()
    for matrix in made.parts.encoded.matrices.values():
        blob, scales = matrix.blob_path.read_bytes(), matrix.scales_path.read_bytes()
        at = made.emitted.blob_offsets[matrix.name]
        assert at % ALIGNMENT == 0
        assert data[at : at + len(blob)] == blob
        assert data.count(blob) == 1
        scales_at = made.emitted.scales_offsets[matrix.name]
        assert data[scales_at : scales_at + len(scales)] == scales


def test_metadata_says_what_a_runner_needs(made: Made) -> None:
    program = Program(made.path)
    assert program.constant("get_max_context_len") == [CONTEXT]
    assert program.constant("get_max_seq_len") == [CONTEXT]
    assert program.constant("get_eos_ids") == [2]
    assert program.constant("get_bos_id") == [1]
    for name in (
        "enable_dynamic_shape",
        "use_kv_cache",
        "use_sdpa_with_kv_cache",
        "get_int16_activations",
    ):
        assert program.constant(name) == [True], name


def test_the_exporter_of_executorch_is_neither_imported_nor_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.startswith("executorch.exir")]:
        monkeypatch.delitem(sys.modules, name)
    with without_exporter():
        from executorch.exir.schema import Program as Schema

        assert Schema.__module__ == "executorch.exir.schema"
        assert not hasattr(sys.modules["executorch.exir"], "to_edge")
    assert not [name for name in sys.modules if name.startswith("executorch.exir")]
    whole = type(sys)("executorch.exir")
    monkeypatch.setitem(sys.modules, "executorch.exir", whole)
    with without_exporter():
        assert sys.modules["executorch.exir"] is whole
    assert sys.modules["executorch.exir"] is whole


@pytest.mark.parametrize(
    ("n", "position"), [(2, CONTEXT - 1), (1, CONTEXT), (1, 10**6), (1, -1), (CONTEXT, 1)]
)
def test_the_program_itself_refuses_what_is_past_the_cache(
    made: Made, n: int, position: int
) -> None:
    program = Program(made.path)
    with pytest.raises(RuntimeError):
        program(tokens_of(made, n), position)


def test_the_program_itself_refuses_a_token_outside_the_vocabulary(made: Made) -> None:
    with pytest.raises(RuntimeError):
        Program(made.path)([made.parts.checkpoint.config.vocab_size], 0)


# ---- the stock runner


def stock_runner(bundle: Bundle) -> Any:
    kernels.load()
    from executorch.extension.llm.runner import TextLLMRunner

    return TextLLMRunner(str(bundle.path / PROGRAM), str(bundle.path / "tokenizer.json"))


@pytest.mark.parametrize(
    "prompt", ["The cat", "when the rain began to fall they went into the little house", "sea"]
)
def test_the_stock_runner_writes_the_same_text(bundle: Bundle, prompt: str) -> None:
    from executorch.extension.llm.runner import GenerationConfig

    from runtime_ref import generate
    from runtime_ref.executorch.runner import ExecuTorchRunner
    from runtime_ref.prompts import PromptEncoder, load_tokenizer

    pieces: list[str] = []
    counts: list[tuple[int, int]] = []
    options = GenerationConfig(echo=False, temperature=0.0, max_new_tokens=12, num_bos=1)
    stock_runner(bundle).generate(
        prompt,
        options,
        pieces.append,
        lambda s: counts.append((s.num_prompt_tokens, s.num_generated_tokens)),
    )
    ids = PromptEncoder(bundle).text(prompt)
    ours = generate.TextStream(
        bundle, ExecuTorchRunner(bundle), ids, generate.Limits(12), generate.Sampling()
    ).result
    assert ours.stopped == "limit"
    assert "".join(pieces) == ours.text
    tokenizer = load_tokenizer(bundle)
    assert [piece for piece in pieces if piece] == [
        tokenizer.decode([token]) for token in ours.tokens
    ]
    assert counts[0][0] == len(ids)


# ---- exports that must fail


def test_a_dense_weight_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the export must not let through: a weight as floats, here beside a product's levels."""
    checkpoint = write_llama(tmp_path / "checkpoint", num_hidden_layers=1, intermediate_size=800)
    parts = encode(checkpoint, tmp_path / "encoded", INT8)
    real = lowering.ProgramLayers.linear

    def linear(self: Any, name: str, out_features: int, in_features: int) -> nn.Module:
        if "down_proj" in name:
            with self.encoded.matrices[name].open() as coded:
                self.graph.vector(torch.from_numpy(coded.decode_rows()).float().flatten())
        return real(self, name, out_features, in_features)

    monkeypatch.setattr(lowering.ProgramLayers, "linear", linear)
    with pytest.raises(ExportError, match="are weights stored dense"):
        parts.emit(tmp_path / "model.pte", CONTEXT)


def test_a_matrix_that_no_call_reads_fails_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_llama(tmp_path / "checkpoint", num_hidden_layers=1)
    parts = encode(checkpoint, tmp_path / "encoded", INT8)
    real = lowering.ProgramLayers.linear

    def linear(self: Any, name: str, out_features: int, in_features: int) -> nn.Module:
        other = name.replace("v_proj", "k_proj")
        return real(self, other, out_features, in_features)

    monkeypatch.setattr(lowering.ProgramLayers, "linear", linear)
    with pytest.raises(ExportError) as caught:
        parts.emit(tmp_path / "model.pte", CONTEXT)
    assert [p for p in caught.value.problems if "v_proj" in p and "not in the program" in p]


@pytest.fixture(scope="module")
def whole(bundle: Bundle, parts: Parts) -> Made:
    """The program of the shared bundle, to check again with something changed."""
    entry = bundle.artifact("pte")
    emitted = EmittedProgram(
        blob_offsets={name: place.offset for name, place in entry.places.items()},
        scales_offsets={name: place.scales_offset for name, place in entry.places.items()},
        vector_offsets={name: at.offset for name, at in entry.vectors.items()},
        vector_bytes=next(
            row.n_bytes for row in bundle.manifest.ledger if row.what.startswith("norms")
        ),
        operators=entry.operators,
        n_products=7 * parts.checkpoint.config.num_hidden_layers + 1,
        arena_bytes=entry.details["arena_bytes"],
    )
    return Made(parts, emitted, bundle.path / PROGRAM)


def check(made: Made, path: Path, **changes: Any) -> None:
    emitted = dataclasses.replace(made.emitted, **changes)
    lowering._check(emitted, made.parts.encoded, path)


def test_a_program_that_is_right_passes_the_check(whole: Made) -> None:
    check(whole, whole.path)


def test_a_missing_lookup_fails_the_check(whole: Made) -> None:
    name = "tinyqmoe::lzw_embedding.out"
    with pytest.raises(ExportError, match=f"{name} is called 0 times, expected 1"):
        check(whole, whole.path, operators=whole.emitted.operators | {name: 0})


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_number_of_products_fails_the_check(whole: Made, change: int) -> None:
    wrong = whole.emitted.n_products + change
    with pytest.raises(ExportError, match=f"it has {wrong} products of matrices, expected"):
        check(whole, whole.path, n_products=wrong)


def test_a_file_that_is_larger_than_its_parts_fails_the_check(whole: Made, tmp_path: Path) -> None:
    config = whole.parts.checkpoint.config
    dense = 4 * config.vocab_size * config.hidden_size * 4  # four times the embedding as floats
    larger = tmp_path / "larger.pte"
    larger.write_bytes(whole.path.read_bytes() + bytes(dense))
    with pytest.raises(ExportError, match="are weights stored dense"):
        check(whole, larger)


def test_a_matrix_that_is_not_in_its_place_fails_the_check(whole: Made) -> None:
    moved = {name: at + 64 for name, at in whole.emitted.blob_offsets.items()}
    with pytest.raises(ExportError) as caught:
        check(whole, whole.path, blob_offsets=moved)
    assert len(caught.value.problems) == len(moved)


# ---- a model that was trained


def test_a_trained_model_tells_its_story(data_dir: Any, tmp_path: Path) -> None:
    from runtime_ref import generate
    from runtime_ref.executorch.runner import ExecuTorchRunner
    from runtime_ref.parity import check_parity

    bundle = shared.export(data_dir("hf-stories260K"), tmp_path / "stories", INT8)
    runner = ExecuTorchRunner(bundle)
    bos = bundle.manifest.interface.bos_token_id
    assert bos is not None
    result = generate.TextStream(
        bundle, runner, [bos], generate.Limits(120), generate.Sampling()
    ).result
    assert result.text.strip().startswith("Once upon a time, there was a little girl named")
    words = result.text.split()
    assert len(words) > 60
    assert len(set(words)) > 30  # a story, not one word over and over
    report = check_parity(bundle, runner, lambda n: None)
    assert report.passed, [c for c in report.checks if not c.passed]

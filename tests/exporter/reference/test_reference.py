"""The reference answers: their arithmetic against the operators, the model against transformers,
and the file."""

from __future__ import annotations

import functools
import itertools
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exporter.bundle import EXACT, REFERENCE, Arithmetic, Bundle, KVType
from exporter.checkpoint.tensors import one_thread
from exporter.codec import native_tensor
from exporter.encoded import EncodedMatrix, encode_matrix
from exporter.errors import CheckpointError
from exporter.quant.tensor import QuantizedTensor
from exporter.reference import answers as reference_answers
from exporter.reference import model as reference_model
from exporter.reference.answers import (
    ExactAnswer,
    answers,
    exact_answers,
    exact_digests,
    reference_tensors,
)
from exporter.reference.model import (
    BLOCK_WEIGHTS,
    CORE_TOKENS,
    QuantizedLinear,
    halves,
    integer_product,
    on_all_cores,
    quantize_activations,
    row_blocks,
)
from exporter.reference.prompts import (
    LAST_TOKENS,
    TEXTS,
    Prompt,
    make_prompts,
    random_tokens,
)
from tests.support.bundles import SHIPPED, TEXT, Parts, dequantized_state, greedy, sqnr_db
from tests.support.checkpoints import hf_model


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


# ---- arithmetic


def test_activations_are_quantized_with_the_bits_of_the_core() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 65)) * 10.0 ** rng.integers(-30, 20, (40, 1))).astype(np.float32)
    x[3], x[4], x[5] = 0, 2.0**-101, 2.0**-100
    x[6] = np.arange(65) - 32.5  # ties
    quantized, scales = quantize_activations(torch.from_numpy(x))
    expected, expected_scales = native_tensor.quantize_x16(x)
    assert np.array_equal(quantized.numpy(), expected.astype(np.float32))
    assert np.array_equal(scales[:, 0].numpy().view(np.int32), expected_scales.view(np.int32))


@pytest.mark.parametrize("cols", [1, 512, 65535])
def test_integer_products_are_exact_where_they_are_largest(cols: int) -> None:
    """Every product as large as they come, one of them off by one: int32 or float32 sums would lose
    it."""
    most = 32512
    quantized = torch.full((3, cols), float(most))
    quantized[1, -1] -= 1
    quantized[2] = 128  # whose low half is the largest
    levels = torch.full((2, cols), 127, dtype=torch.int8)
    levels[1] = -128
    got = integer_product(halves(quantized), levels)
    assert got[0].tolist() == [127 * most * cols, -128 * most * cols]
    assert got[1].tolist() == [127 * (most * cols - 1), -128 * (most * cols - 1)]
    assert got[2].tolist() == [127 * 128 * cols, -128 * 128 * cols]


def test_halves_make_up_every_integer_and_fit_eight_bits() -> None:
    integers = torch.arange(-32512, 32513).float()[None]
    high, low = halves(integers).chunk(2)
    assert torch.equal(256 * high + low, integers)
    assert (high.abs().max(), low.min(), low.max()) == (127, -128, 127)


def test_integer_products_are_those_of_int64() -> None:
    """Over several blocks of columns, the last of which is short."""
    rng = np.random.default_rng(0)
    q = rng.integers(-32512, 32513, (3, 2500))
    levels = rng.integers(-128, 128, (4, 2500), dtype=np.int8)
    got = integer_product(halves(torch.from_numpy(q).float()), torch.from_numpy(levels))
    assert got.tolist() == (q @ levels.T.astype(np.int64)).tolist()


SHAPES = {  # rows, columns, group size, scheme
    "one group": (33, 48, 48, "ternary"),
    "groups": (20, 96, 32, "int8"),
    "groups do not divide": (20, 100, 24, "int8"),
    "wide": (7, 2500, 2500, "int8"),
    "wide groups": (5, 2500, 1100, "int8"),
}


@pytest.fixture(scope="module", params=SHAPES)
def coded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EncodedMatrix:
    rows, cols, group_size, scheme = SHAPES[request.param]
    rng = np.random.default_rng(0)
    low, n = (-1, 3) if scheme == "ternary" else (-127, 255)
    levels = rng.integers(low, low + n, (rows, cols), dtype=np.int8)
    scales = rng.uniform(0.01, 0.1, (rows, -(-cols // group_size))).astype(np.float32)
    tensor = QuantizedTensor("matrix", levels, scales, group_size, scheme, low, n)
    return encode_matrix(tensor, tmp_path_factory.mktemp("matrix"), "auto")


def core_product(matrix: EncodedMatrix, x: torch.Tensor, *, int16: bool) -> torch.Tensor:
    with matrix.open() as tensor:
        multiply = tensor.linear_x16 if int16 else tensor.linear_f32
        y = multiply(x[0].numpy(), np.array(matrix.scales()), matrix.group_size)
    return torch.from_numpy(y)[None]


@pytest.mark.parametrize("block", [1 << 23, 100])
def test_int16_products_have_the_bits_of_the_core(
    coded: EncodedMatrix, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_model, "BLOCK_WEIGHTS", block)
    x = torch.randn(1, 5, coded.cols, generator=torch.Generator().manual_seed(0))
    assert same_bits(QuantizedLinear(coded, "int16")(x), core_product(coded, x, int16=True))


@pytest.mark.parametrize("passed", [1 << 23, 100])
def test_products_of_many_tokens_are_the_same_by_the_core(
    coded: EncodedMatrix, passed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, CORE_TOKENS, coded.cols, generator=torch.Generator().manual_seed(0))
    linear, calls = QuantizedLinear(coded, "int16"), []
    in_pytorch = torch.cat([linear(part) for part in x.split(CORE_TOKENS - 1, 1)], 1)
    monkeypatch.setattr(native_tensor, "PASSED_WEIGHTS", passed)
    monkeypatch.setattr(reference_model, "release", lambda *_: calls.append(1))
    monkeypatch.setattr(reference_model, "integer_product", None)
    assert same_bits(linear(x), in_pytorch)
    threads = os.cpu_count() or 1
    assert len(calls) == -(-coded.rows // max(1, threads * passed // coded.cols))


def test_activations_that_are_not_finite_are_refused(coded: EncodedMatrix) -> None:
    x = torch.ones(1, CORE_TOKENS, coded.cols)
    x[0, 3, 0] = torch.inf
    with pytest.raises(CheckpointError, match="not finite"):
        QuantizedLinear(coded, "int16")(x)


def test_float_products_are_those_of_the_core(coded: EncodedMatrix) -> None:
    x = torch.randn(1, 5, coded.cols, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        QuantizedLinear(coded, "float32")(x),
        core_product(coded, x, int16=False),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 3), (100, 1 << 24), (3_000_000, 5)])
def test_row_blocks_cover_all_rows_in_order(rows: int, cols: int) -> None:
    blocks = row_blocks(rows, cols)
    assert blocks[0][0] == 0
    assert blocks[-1][1] == rows
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(blocks))
    assert all((end - begin) * cols <= max(BLOCK_WEIGHTS, cols) for begin, end in blocks)


def test_workers_multiply_by_one_thread_each() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(n, 40, generator=generator) for n in (7, 40))
    expected = next(one_thread(x @ weights.T for _ in range(1)))
    reference_model._workers.cache_clear()  # new ones, which have not computed anything
    assert all(same_bits(y, expected) for y in on_all_cores(lambda _: x @ weights.T, range(8)))


# ---- the model


@torch.inference_mode()
def test_float_answers_are_those_of_transformers_with_the_same_weights(parts: Parts) -> None:
    weights = dequantized_state(parts)
    theirs = hf_model(vocab_size=parts.checkpoint.config.vocab_size)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert (missing, unexpected) in (([], []), (["lm_head.weight"], []))
    tokens = torch.arange(30)[None] % parts.checkpoint.config.vocab_size
    model = parts.reference(48, EXACT)
    hidden = model.hidden(tokens, torch.tensor([0]))
    assert torch.allclose(model.logits(hidden), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_int16_activations_change_little(parts: Parts) -> None:
    tokens, start = torch.arange(20)[None], torch.tensor([0])
    exact, rounded = (
        parts.reference(48, a)(tokens, start) for a in (EXACT, Arithmetic("int16", "float32"))
    )
    error = (rounded - exact).square().mean() / exact.var()
    assert 0 < error < 1e-6


@torch.inference_mode()
def test_answers_are_the_greedy_continuation(parts: Parts) -> None:
    logits, tokens = answers(parts.reference(48, SHIPPED), Prompt((3, 4, 5), 6))
    expected = greedy(parts.reference(48, SHIPPED), [3, 4, 5], 6)
    assert logits.shape == (6, parts.checkpoint.config.vocab_size)
    assert tokens.tolist() == [int(row.argmax()) for row in expected]
    assert torch.equal(logits, torch.stack(expected))


@torch.inference_mode()
@pytest.mark.parametrize("n_right", range(6))
def test_a_draft_changes_no_answer(parts: Parts, n_right: int) -> None:
    prompt, vocab_size = Prompt((3, 4, 5), 6), parts.checkpoint.config.vocab_size
    logits, tokens = answers(parts.reference(48, SHIPPED), prompt)
    draft = [int(token) for token in tokens[:-1]]
    if n_right < len(draft):
        draft[n_right] = (draft[n_right] + 1) % vocab_size
    calls: list[int] = []
    model = parts.reference(48, SHIPPED)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    drafted, same = answers(model, prompt, draft)
    assert sqnr_db(logits.numpy(), drafted.numpy()) > 60  # sums in another order
    assert same.tolist() == tokens.tolist()
    assert len(calls) == 5 - n_right  # the tokens after the first wrong one, one by one


@torch.inference_mode()
@pytest.mark.parametrize("kv_type", ["float32", "float16", "int8"])
@pytest.mark.parametrize("n_repeated", [1, 20, 43])
def test_a_repeated_token_is_computed_once(parts: Parts, n_repeated: int, kv_type: KVType) -> None:
    arithmetic = Arithmetic("float32", kv_type)
    rest = tuple(range(3, 48 - n_repeated))
    tokens = ((7,) * (n_repeated + 1) + rest)[:48]
    network = functools.partial(parts.reference, 48, arithmetic)
    once, each = network(), network()
    got, _ = answers(once, Prompt(tokens, 0, n_repeated))
    expected, _ = answers(each, Prompt(tokens, 0))
    assert sqnr_db(expected.numpy(), got.numpy()) > (90 if kv_type == "float32" else 45)
    for a, b in zip(once.blocks, each.blocks, strict=True):
        assert torch.allclose(a.attention.k_cache, b.attention.k_cache, rtol=0.01, atol=0.01)
        assert torch.allclose(a.attention.v_cache, b.attention.v_cache, rtol=0.01, atol=0.01)


# ---- prompts


@pytest.mark.parametrize("context", [8, 9, 16, 24, 40, 48, 512, 4096])
@pytest.mark.parametrize("parameters", [1_000, 10**9])
def test_prompts_fit_the_context_and_one_fills_it(context: int, parameters: int) -> None:
    prompts = make_prompts([[5, 6, 7], [8, 9]], context, parameters, 100)
    *short, full = prompts
    assert len(full.tokens) == context
    assert full.new_tokens == 0
    assert full.n_repeated == max(0, context - LAST_TOKENS)
    assert set(full.tokens[: full.n_repeated]) <= {5}
    assert full.tokens[full.n_repeated :][:6] == (5, 6, 7, 8, 9, 5)
    assert short
    assert all(p.new_tokens > 0 and len(p.tokens) + p.new_tokens <= context for p in short)
    lengths = [len(p.tokens) for p in short]
    assert lengths == sorted(set(lengths))
    assert min(lengths) == 1
    if context >= 40:
        assert lengths == [1, 7, 24]


def test_fewer_answers_where_each_takes_much_time_or_space() -> None:
    counts = [
        make_prompts([[1]], 512, *size)[0].new_tokens
        for size in ((10**6, 1000), (10**9, 1000), (10**6, 128256))
    ]
    assert counts == [16, 4, 4]


def test_prompts_are_made_of_the_texts() -> None:
    prompts = make_prompts([[1, 2, 3], [4, 5]], 40, 1_000, 100)
    assert prompts[1].tokens[:4] == (4, 5, 4, 5)
    assert prompts[-1].tokens[:6] == (1, 2, 3, 4, 5, 1)


def test_random_tokens_are_fixed_and_known_to_the_model() -> None:
    tokens = random_tokens(37, 200)
    assert tokens == random_tokens(37, 200)
    assert set(tokens) <= set(range(37))
    assert len(set(tokens)) > 30


# ---- the file


def test_every_prompt_is_answered_in_each_arithmetic(parts: Parts) -> None:
    prompts = [Prompt((1,), 2), Prompt((1, 2, 3), 2), Prompt(tuple(range(48)), 0)]
    steps: list[int] = []
    config = parts.checkpoint.config
    arithmetics = [SHIPPED, EXACT]
    network = functools.partial(parts.reference, 48)
    drafts = [[1], [], []]
    tensors = reference_tensors(network, arithmetics, prompts, drafts, steps.append)
    expected = {f"prompt.{i}" for i in range(3)}
    answered = [(a.name, i) for a in arithmetics for i in range(3)]
    expected |= {f"{a}.{i}.{what}" for a, i in answered for what in ("logits", "tokens")}
    assert tensors.keys() == expected
    assert tensors["prompt.1"].tolist() == [1, 2, 3]
    for a, i in answered:
        rows = max(prompts[i].new_tokens, 1)
        assert tensors[f"{a}.{i}.logits"].shape == (rows, config.vocab_size)
        assert tensors[f"{a}.{i}.logits"].argmax(-1).tolist() == tensors[f"{a}.{i}.tokens"].tolist()
    assert sum(steps) == 2 * (2 + 4 + 48)


def test_the_built_in_texts_are_long_enough() -> None:
    """For a prompt of 24 tokens, with any usual tokenizer."""
    assert len(" ".join(TEXTS).split()) >= 60
    assert all(text.isascii() for text in (*TEXTS, TEXT))


def test_a_bundle_holds_what_its_model_answers(bundle: Bundle, parts: Parts) -> None:
    tensors = load_file(bundle.path / REFERENCE)
    prompt = tensors["prompt.1"].tolist()
    logits, tokens = answers(parts.reference(48, SHIPPED), Prompt(tuple(prompt), 5))
    assert torch.allclose(tensors[f"{SHIPPED.name}.1.logits"][:5], logits, rtol=1e-5, atol=1e-5)
    assert tensors[f"{SHIPPED.name}.1.tokens"][:5].tolist() == tokens.tolist()


def stored_answers(bundle: Bundle) -> tuple[dict[str, torch.Tensor], list[Prompt], list[list[int]]]:
    """Tensors of `reference.safetensors`, its prompts, and the tokens that follow each."""
    stored = load_file(bundle.path / REFERENCE)
    n = sum(name.startswith("prompt.") for name in stored)
    tokens = [stored[f"{SHIPPED.name}.{i}.tokens"].tolist() for i in range(n)]
    full = len(stored[f"prompt.{n - 1}"])
    prompts = [stored[f"prompt.{i}"].tolist() for i in range(n)]
    counts = [0 if len(p) == full else len(t) for p, t in zip(prompts, tokens, strict=True)]
    return stored, [Prompt(tuple(p), n) for p, n in zip(prompts, counts, strict=True)], tokens


@pytest.mark.parametrize("piece", [1, 16, 47])
def test_digests_are_of_every_prompt_in_pieces_of_any_size(
    bundle: Bundle, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_answers, "SESSION_TOKENS", piece)
    stored, prompts, tokens = stored_answers(bundle)
    steps: list[int] = []
    given = exact_answers(bundle.path, prompts, steps.append)
    digests = exact_digests(bundle.path, prompts, given, tokens)
    expected = {name: value for name, value in stored.items() if name.startswith("exact.")}
    assert [answer.tokens for answer in given] == tokens
    assert digests.keys() == expected.keys() == {f"exact.{i}.sha256" for i in range(len(prompts))}
    assert all(torch.equal(digests[name], value) for name, value in expected.items())
    assert sum(steps) == sum(
        len(p.tokens) + len(t) - 1 for p, t in zip(prompts, tokens, strict=True)
    )


def test_a_digest_is_of_the_tokens_of_the_reference(bundle: Bundle) -> None:
    """Where a session would go on with another token."""
    stored, prompts, tokens = stored_answers(bundle)
    wrong = [ExactAnswer([-1], bytes(32)) for _ in prompts]
    digests = exact_digests(bundle.path, prompts, wrong, tokens)
    assert all(torch.equal(value, stored[name]) for name, value in digests.items())

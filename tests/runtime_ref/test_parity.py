"""Parity: a right package passes, and each gate fails when the artifact is wrong, however well it
is sealed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter import bundle as bundles
from exporter.backends.executorch import lowering
from exporter.backends.executorch.graph import Value
from exporter.bundle import Bundle, KVType
from exporter.codec.native_encoder import encode_raw
from exporter.codec.native_tensor import NativeTensor
from exporter.errors import BundleError, CodecError, ContextError, MissingComponentError
from exporter.models.config import ModelConfig, rope_frequencies
from runtime_ref import parity, residency
from runtime_ref.answers import Answer, load_reference
from runtime_ref.executorch import kernels
from runtime_ref.executorch.runner import ExecuTorchRunner
from runtime_ref.parity import (
    TOLERANCES,
    ParityReport,
    check_parity,
    feeding,
    work_tokens,
)
from runtime_ref.residency import Residency
from tests.support.bundles import (
    CONTEXT,
    SHIPPED,
    TERNARY,
    Parts,
    copy,
    edit_manifest,
    encode,
    export,
    patch,
    place,
    read,
    reseal,
    tensor,
    with_artifact,
)

EMBEDDING = "model.embed_tokens.weight"
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def streamed() -> None:
    """Weights are coded when they are multiplied, whatever tests before set in this process."""
    residency.apply(kernels.load(), Residency("stream"))


def judge(bundle: Bundle) -> ParityReport:
    """As `tinyqmoe parity`."""
    bundle.verify()
    return check_parity(bundle, ExecuTorchRunner(bundle), lambda n: None)


def failed(report: ParityReport) -> set[str]:
    return {check.verdict for check in report.checks if not check.passed}


# ---- right packages


@pytest.fixture(scope="module", params=["bundle", "other_bundle"])
def right(request: pytest.FixtureRequest) -> tuple[Bundle, ParityReport]:
    bundle = request.getfixturevalue(request.param)
    return bundle, judge(bundle)


def test_a_right_package_passes(right: tuple[Bundle, ParityReport]) -> None:
    bundle, report = right
    assert report.passed, [check for check in report.checks if not check.passed]
    verdicts = {"levels", "scales", "logits", "greedy", "context"}
    exact = bundle.artifact("pte").exact
    assert {check.verdict for check in report.checks} == verdicts | ({"bits"} if exact else set())


def test_every_way_of_feeding_is_judged(right: tuple[Bundle, ParityReport]) -> None:
    bundle, report = right
    whats = [check.what for check in report.checks if check.verdict == "logits"]
    for how in ("prefill", "split prefill", "step by step"):
        assert any(what.endswith(f", {how}") for what in whats)
    assert f"{bundle.manifest.interface.context} tokens: the whole context" in whats
    bits = [check.what for check in report.checks if check.verdict == "bits"]
    assert bits == (whats if bundle.artifact("pte").exact else [])
    lengths = {int(what.split()[0]) for what in whats}
    assert len(lengths) >= 4
    assert report.activations == bundle.artifact("pte").activations


def test_prompts_cross_the_border_of_a_call(other_bundle: Bundle) -> None:
    prefill = other_bundle.artifact("pte").prefill_tokens
    assert prefill == 5
    answers = load_reference(other_bundle, other_bundle.artifact("pte"))
    assert sum(len(answer.prompt) > 2 * prefill for answer in answers) >= 2


def test_parity_is_far_inside_its_gate(right: tuple[Bundle, ParityReport]) -> None:
    """So that the gates can be strict: a right program differs by rounding alone."""
    _, report = right
    worst = [c.sqnr_db_worst for c in report.checks if c.sqnr_db_worst is not None]
    assert min(worst) > report.tolerance.worst_sqnr_db + 6


def test_every_arithmetic_of_an_export_has_a_gate() -> None:
    asked = set(itertools.product(bundles.ACTIVATIONS, bundles.KV_TYPES))
    assert set(TOLERANCES) == asked | {(bundles.HALF, "float16")}


@pytest.mark.parametrize("kv_type", ["float32", "int8"])
def test_a_package_with_another_cache_passes_and_fails(
    checkpoint: Path, tmp_path: Path, kv_type: KVType
) -> None:
    """The gate of its own lets the right package pass, and not one with two matrices exchanged."""
    made = export(checkpoint, tmp_path / "out", TERNARY, context=CONTEXT, kv_cache=kv_type)
    report = judge(made)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.tolerance == TOLERANCES["int16", kv_type]
    names = [f"model.layers.1.mlp.{what}_proj.weight" for what in ("gate", "up")]
    assert "logits" in failed(judge(swap(made, *names)))


def test_progress_is_told_all_the_work(bundle: Bundle) -> None:
    steps: list[int] = []
    check_parity(bundle, ExecuTorchRunner(bundle), steps.append)
    assert sum(steps) == work_tokens(bundle, bundle.artifact("pte"))


def test_the_report_is_json(right: tuple[Bundle, ParityReport]) -> None:
    _, report = right
    data = json.loads(json.dumps(report.to_dict()))
    assert data["passed"] is True
    assert len(data["checks"]) == len(report.checks)


def test_the_table_names_every_check_and_the_verdict(right: tuple[Bundle, ParityReport]) -> None:
    from rich.console import Console

    from runtime_ref.reports.parity_tables import parity_table

    _, report = right
    for shown, word in ((report, "PASS"), (dataclasses.replace(report, checks=[]), "FAIL")):
        console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(parity_table(shown))
        text = console.export_text()
        assert word in text
        assert all(check.what in text for check in shown.checks)


def test_a_report_without_checks_does_not_pass() -> None:
    gate = TOLERANCES["int16", "float16"]
    assert not ParityReport("executorch", "int16", "float16", gate, []).passed


# ---- wrong weights: bytes of the program changed, and everything sealed again


def flip_level(bundle: Bundle, name: str) -> None:
    """Changes one level inside a raw blob, and its two CRCs."""
    entry, at = tensor(bundle, name), place(bundle, name)
    blob = np.frombuffer(read(bundle, at.offset, at.n_bytes), np.uint8)
    with NativeTensor(blob) as coded:
        info, levels = coded.info, coded.decode_rows()
    levels[entry.rows // 2, entry.cols // 3] += (
        -1 if levels[entry.rows // 2, entry.cols // 3] > 0 else 1
    )
    payload = encode_raw(levels, info.level_min, info.n_levels, info.code_bits).tobytes()
    seal_blob(bundle, name, payload)


def seal_blob(bundle: Bundle, name: str, payload: bytes) -> None:
    """Puts another payload into a blob, with CRCs that fit it (FORMAT.md section 2)."""
    lies = place(bundle, name)
    blob = bytearray(read(bundle, lies.offset, lies.n_bytes))
    at = int.from_bytes(blob[32:40], "little")
    assert at + len(payload) <= len(blob)
    blob[at : at + len(payload)] = payload
    blob[52:56] = zlib.crc32(payload).to_bytes(4, "little")
    blob[60:64] = zlib.crc32(blob[:60]).to_bytes(4, "little")
    patch(bundle, lies.offset, bytes(blob))


def test_one_level_of_a_raw_matrix(copied: Bundle) -> None:
    assert tensor(copied, EMBEDDING).codec == "raw"
    flip_level(copied, EMBEDDING)
    report = judge(reseal(copied))
    assert "levels" in failed(report)
    assert f"{EMBEDDING}: levels differ" in report.checks[0].detail


def test_one_codeword_of_a_coded_matrix(other_bundle: Bundle, tmp_path: Path) -> None:
    """A bit turned over, so that the row still decodes, to other levels."""
    wrong = copy(other_bundle, tmp_path / "wrong")
    entry = tensor(wrong, Q0)
    assert entry.codec == "lzw"
    blob = read(wrong, place(wrong, Q0).offset, entry.blob_bytes)
    at, n = int.from_bytes(blob[32:40], "little"), int.from_bytes(blob[40:48], "little")
    with NativeTensor(blob) as coded:
        levels = coded.decode_rows()
    for bit in range(8 * n):
        other = np.frombuffer(blob, np.uint8).copy()
        other[at + bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(CodecError), NativeTensor(other) as coded:
            if not np.array_equal(coded.decode_rows(), levels):
                break
    else:
        pytest.fail("no bit can be turned over")
    seal_blob(wrong, Q0, other[at : at + n].tobytes())
    report = judge(reseal(wrong))
    assert f"{Q0}: levels differ" in report.checks[0].detail
    assert "levels" in failed(report)


def test_a_byte_of_a_payload_without_its_crc(copied: Bundle) -> None:
    offset = place(copied, Q0).offset + 64
    patch(copied, offset, bytes([read(copied, offset, 1)[0] ^ 1]))
    report = judge(reseal(copied))
    assert f"{Q0}: BAD_PAYLOAD_CRC" in report.checks[0].detail
    assert not report.passed


def moved(bundle: Bundle, offset: int) -> Bundle:
    """The manifest says that one matrix lies elsewhere."""
    there = dataclasses.replace(place(bundle, Q0), offset=offset)
    return reseal(
        bundle, artifacts=with_artifact(bundle, places=bundle.artifact("pte").places | {Q0: there})
    )


def test_a_matrix_that_is_elsewhere_than_the_manifest_says(copied: Bundle) -> None:
    report = judge(moved(copied, place(copied, Q0).offset + 64))
    assert failed(report) == {"levels"}
    assert f"{Q0}: BAD_MAGIC" in report.checks[0].detail


@pytest.mark.parametrize("offset", [-1, 10**12])
def test_a_matrix_outside_the_file(copied: Bundle, offset: int) -> None:
    report = judge(moved(copied, offset))
    assert failed(report) == {"levels"}


def test_a_manifest_without_matrices_does_not_pass(copied: Bundle) -> None:
    assert failed(judge(reseal(copied, tensors=[]))) == {"levels", "scales"}


def swap(bundle: Bundle, first: str, second: str) -> Bundle:
    """Two matrices change places with their scales, and the manifest with them: the levels verdict
    sees nothing."""
    a, b = place(bundle, first), place(bundle, second)
    for at, other, n_bytes in (
        (a.offset, b.offset, a.n_bytes),
        (a.scales_offset, b.scales_offset, a.scales_bytes),
    ):
        held = [read(bundle, offset, n_bytes) for offset in (at, other)]
        patch(bundle, at, held[1])
        patch(bundle, other, held[0])
    places = bundle.artifact("pte").places | {first: b, second: a}
    return reseal(bundle, artifacts=with_artifact(bundle, places=places))


def test_two_layers_in_the_wrong_order(copied: Bundle) -> None:
    for entry in list(copied.manifest.tensors):
        if entry.name.startswith("model.layers.0."):
            copied = swap(copied, entry.name, entry.name.replace(".0.", ".1."))
    report = judge(copied)
    assert "logits" in failed(report)
    assert report.checks[0].passed


def test_two_matrices_of_a_layer_in_the_wrong_order(copied: Bundle) -> None:
    names = [f"model.layers.1.mlp.{what}_proj.weight" for what in ("gate", "up")]
    report = judge(swap(copied, *names))
    assert "logits" in failed(report)
    assert report.checks[0].passed


@pytest.mark.parametrize(("steps", "verdict"), [(1, "bits"), (50, "bits"), (3 << 10, "logits")])
def test_one_wrong_scale(copied: Bundle, steps: int, verdict: str) -> None:
    """Of one row of one matrix: what a gate with a tolerance may not see, the exact logits tell.

    A code more is at most 0.1 % more; 1,024 codes double a scale.
    """
    at = place(copied, "model.layers.1.mlp.down_proj.weight").scales_offset
    code = np.frombuffer(read(copied, at, 2), "<u2")
    patch(copied, at, (code + np.uint16(steps)).astype("<u2").tobytes())
    report = judge(reseal(copied))
    assert {"scales", verdict} <= failed(report)
    assert report.checks[0].passed


def test_a_row_of_the_head_that_is_far_too_large(copied: Bundle) -> None:
    """One logit of every position is the largest, or the smallest; tied weights put the row into
    the embedding too."""
    entry = tensor(copied, EMBEDDING)
    prompt_tokens = set(
        itertools.chain(
            *(a.prompt + a.tokens for a in load_reference(copied, copied.artifact("pte")))
        )
    )
    unused = next(i for i in range(entry.rows) if i not in prompt_tokens)
    at = place(copied, EMBEDDING).scales_offset
    patch(copied, at + 2 * unused, b"\xff\xff")  # the largest scale there is
    report = judge(reseal(copied))
    assert {"logits", "greedy"} <= failed(report)
    logits = [c for c in report.checks if c.verdict == "logits"]
    assert not any(c.passed for c in logits)


# ---- wrong programs: the rope table, and programs lowered wrongly


def test_permuted_rope_frequencies(copied: Bundle, parts: Parts) -> None:
    frequencies = rope_frequencies(parts.checkpoint.config).numpy().astype("<f4")
    program = (copied.path / bundles.PROGRAM).read_bytes()
    assert program.count(frequencies.tobytes()) == 1
    patch(copied, program.index(frequencies.tobytes()), frequencies[::-1].tobytes())
    report = judge(reseal(copied))
    assert "logits" in failed(report)
    assert report.checks[0].passed


def lower_again(bundle: Bundle, parts: Parts) -> Bundle:
    """Puts a newly lowered program into `bundle`, with a manifest that fits it."""
    entry, context = bundle.artifact("pte"), bundle.manifest.interface.context
    emitted = parts.emit(bundle.path / entry.path, context, entry.arithmetic)
    places = {
        name: dataclasses.replace(
            at, offset=emitted.blob_offsets[name], scales_offset=emitted.scales_offsets[name]
        )
        for name, at in entry.places.items()
    }
    operators = dict(sorted(emitted.operators.items()))
    return reseal(bundle, artifacts=with_artifact(bundle, places=places, operators=operators))


def zero(layers: lowering.ProgramLayers, like: Value) -> Value:
    """Zeros of the sizes of a value: a norm of it with weights of zero."""
    weight = layers.graph.vector(torch.zeros(like.sizes[-1]))
    return layers.graph.call("rms_norm", like, weight, 1e-5, sizes=like.sizes, dynamic=like.dynamic)


class SkipsFirstLayer(lowering.ProgramLayers):
    """The keys of the first layer never enter the cache."""

    def attention(self, config: ModelConfig, context: int) -> nn.Module:
        real = super().attention(config, context)
        if len(self.graph.planned) > 1:  # the cache of the first layer is planned alone
            return real
        return lowering.Recorded(lambda q, k, *rest: real(q, zero(self, k), *rest))


def test_a_layer_whose_keys_never_enter_the_cache(
    copied: Bundle, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "ProgramLayers", SkipsFirstLayer)
    report = judge(lower_again(copied, parts))
    assert {"logits"} <= failed(report)
    assert report.checks[0].passed


@pytest.fixture(scope="module")
def other_parts(tmp_path_factory: pytest.TempPathFactory, other_checkpoint: Path) -> Parts:
    from tests.support.bundles import SPARSE

    return encode(other_checkpoint, tmp_path_factory.mktemp("other-parts"), SPARSE, "lzw")


def test_a_position_that_never_enters_the_cache(
    other_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What belongs into the slot before the last is lost: only a run that fills the context can see
    it."""
    runner, context = ExecuTorchRunner(other_bundle), other_bundle.manifest.interface.context
    real = runner.forward

    def forward(tokens: list[int], position: int) -> np.ndarray:
        logits = real(tokens, position)
        if position + len(tokens) == context - 1:
            real([0], position + len(tokens) - 1)
        return logits

    monkeypatch.setattr(runner, "forward", forward)
    report = check_parity(other_bundle, runner, lambda n: None)
    wrong = [check for check in report.checks if not check.passed]
    assert {check.what for check in wrong} == {"48 tokens: the whole context"}


# ---- errors, never a pass


def test_a_tampered_file_is_an_error(copied: Bundle) -> None:
    patch(copied, place(copied, Q0).offset + 64, b"\xff")
    with pytest.raises(BundleError, match=r"model\.pte has been changed"):
        judge(copied)


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_truncated_program_is_an_error(copied: Bundle, size: int) -> None:
    with (copied.path / bundles.PROGRAM).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(BundleError, match=r"model\.pte"):
        judge(reseal(copied))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "context": ({"context": 47}, "get_max_context_len is 48, the manifest says 47"),
    "prefill": ({"prefill_tokens": 16}, "get_max_seq_len is 48, the manifest says 16"),
    "eos": ({"eos_token_ids": [1, 2]}, "get_eos_ids"),
    "bos": ({"bos_token_id": 3}, "get_bos_id is 0, the manifest says 3"),
    "no bos": ({"bos_token_id": None}, "the manifest says there is no BOS token"),
    "activations": (
        {"activations": "float32"},
        "get_int16_activations is True, the manifest says False",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_manifest_that_is_not_the_programs_is_an_error(copied: Bundle, what: str) -> None:
    changes, named = WRONG[what]
    own = {
        name: value for name, value in changes.items() if name in ("prefill_tokens", "activations")
    }
    common = {name: value for name, value in changes.items() if name not in own}
    interface = dataclasses.replace(copied.manifest.interface, **common)
    sealed = reseal(copied, interface=interface, artifacts=with_artifact(copied, **own))
    with pytest.raises(BundleError, match="not the program the manifest describes") as caught:
        judge(sealed)
    assert any(named in problem for problem in caught.value.problems)


def test_a_wrong_vocabulary_is_an_error(copied: Bundle) -> None:
    sealed = reseal(
        copied, interface=dataclasses.replace(copied.manifest.interface, vocab_size=100)
    )
    with pytest.raises(BundleError, match=r"reference\.safetensors is not a reference"):
        judge(sealed)


def test_an_operator_the_runtime_lacks_is_an_error(copied: Bundle) -> None:
    operators = copied.artifact("pte").operators | {"tinyqmoe::of_tomorrow.out": 1}
    sealed = reseal(copied, artifacts=with_artifact(copied, operators=operators))
    with pytest.raises(MissingComponentError, match=r"tinyqmoe::of_tomorrow\.out"):
        judge(sealed)


NO_KERNELS = """
import ctypes, pathlib, sys
from exporter.bundle import Bundle, KVType
from exporter.errors import BundleError, MissingComponentError
from runtime_ref.executorch import kernels, runner

kernels.load = lambda: ctypes.CDLL(None)
for path, error in zip(sys.argv[1:], (MissingComponentError, BundleError), strict=True):
    try:
        runner.ExecuTorchRunner(Bundle.open(pathlib.Path(path)))
    except error as caught:
        print("refused:", caught.what)
"""


def test_a_runtime_without_the_kernels_is_an_error(bundle: Bundle, copied: Bundle) -> None:
    """In a process of its own: also where the manifest hides which operators the program needs."""
    reseal(copied, artifacts=with_artifact(copied, operators={}))
    command = [sys.executable, "-c", NO_KERNELS, str(bundle.path), str(copied.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    assert len(lines) == 2, done.stderr
    assert "tinyqmoe::lzw_linear.out" in lines[0]


def test_kernels_that_do_not_build_are_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MissingComponentError("no C++ compiler")

    monkeypatch.setattr(kernels, "load", fail)
    with pytest.raises(MissingComponentError):
        judge(bundle)


def rewrite_reference(bundle: Bundle, change: Callable[[dict[str, np.ndarray]], object]) -> Bundle:
    from safetensors.numpy import load_file, save

    tensors = load_file(bundle.path / bundles.REFERENCE)
    change(tensors)
    (bundle.path / bundles.REFERENCE).write_bytes(save(tensors))
    return reseal(bundle)


OURS = SHIPPED.name


def tokens_of_others(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{OURS}.0.tokens"] = (tensors[f"{OURS}.0.tokens"] + 1) % 100


def nan_logits(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{OURS}.1.logits"] = tensors[f"{OURS}.1.logits"] * np.float32("nan")


def no_answers(tensors: dict[str, np.ndarray]) -> None:
    for name in [n for n in tensors if n.startswith(OURS)]:
        del tensors[name]


def no_full_context(tensors: dict[str, np.ndarray]) -> None:
    last = max(int(n.split(".")[1]) for n in tensors if n.startswith("prompt."))
    for name in [n for n in tensors if f".{last}." in f"{n}."]:
        del tensors[name]


@pytest.mark.parametrize(
    "change", [tokens_of_others, nan_logits, no_answers, no_full_context, dict.clear]
)
def test_a_reference_that_is_not_whole_is_an_error(
    copied: Bundle, change: Callable[..., object]
) -> None:
    with pytest.raises(BundleError, match=r"reference\.safetensors"):
        judge(rewrite_reference(copied, change))


def test_a_reference_that_is_no_safetensors_is_an_error(copied: Bundle) -> None:
    (copied.path / bundles.REFERENCE).write_bytes(b"not safetensors")
    with pytest.raises(BundleError, match="cannot be read"):
        judge(reseal(copied))


def test_answers_of_another_model_fail(copied: Bundle) -> None:
    """The other way round: a right program against wrong answers that are consistent in
    themselves."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [n for n in tensors if n.endswith(".logits")]:
            tensors[name] = np.roll(tensors[name], 1, axis=-1)
            tensors[name.replace("logits", "tokens")] = tensors[name].argmax(-1)

    assert {"logits", "greedy"} <= failed(judge(rewrite_reference(copied, change)))


def test_a_program_that_runs_past_its_context_fails(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ExecuTorchRunner(bundle)
    real = runner.forward

    def forward(tokens: list[int], position: int) -> np.ndarray:
        try:
            return real(tokens, position)
        except ContextError:
            return np.zeros(bundle.manifest.interface.vocab_size, np.float32)

    monkeypatch.setattr(runner, "forward", forward)
    assert failed(check_parity(bundle, runner, lambda n: None)) == {"context"}


# ---- the parts


def answer(n_prompt: int) -> Answer:
    return Answer(list(range(n_prompt)), np.zeros((1, 4), np.float32), [0], False, None)


def test_feeding_covers_the_prompt_in_every_way() -> None:
    for n in range(1, 30):
        ways = feeding(answer(n))
        assert all(sum(pieces) == n and min(pieces) > 0 for pieces in ways.values())
        assert len(ways) == (1 if n == 1 else 2 if n == 2 else 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_infinitely_far(bad: float) -> None:
    reference = np.arange(5, dtype=np.float32)
    got = reference.copy()
    got[2] = bad
    row = parity.compare(reference, got, TOLERANCES["int16", "float16"])
    assert (row.kl, row.sqnr_db, row.same) == (math.inf, -math.inf, False)


def test_logits_of_another_size_are_infinitely_far() -> None:
    gate = TOLERANCES["int16", "float16"]
    row = parity.compare(np.ones(5, np.float32), np.ones(4, np.float32), gate)
    assert row.kl == math.inf


def test_figures_of_a_known_difference() -> None:
    reference, got = np.array([0.0, 1.0, 2.0], np.float32), np.array([0.0, 1.0, 2.1], np.float32)
    row = parity.compare(reference, got, TOLERANCES["float32", "float32"])
    p, q = np.exp(reference) / np.exp(reference).sum(), np.exp(got) / np.exp(got).sum()
    assert row.kl == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)
    assert row.sqnr_db == pytest.approx(10 * math.log10(2 / 0.01), abs=1e-3)
    assert row.delta == pytest.approx(0.1, abs=1e-6)
    assert row.same


def test_a_constant_added_to_all_logits_is_a_difference() -> None:
    reference = np.array([0.0, 1.0, 2.0], np.float32)
    gate = TOLERANCES["float32", "float32"]
    assert parity.compare(reference, reference + 1, gate).sqnr_db < 10


def test_equal_rows_are_equal_even_when_flat() -> None:
    flat = np.zeros(4, np.float32)
    row = parity.compare(flat, flat, TOLERANCES["float32", "float32"])
    assert (row.kl, row.sqnr_db, row.same) == (0.0, math.inf, True)


def test_a_near_tie_is_the_margin_the_noise_can_close() -> None:
    gate = TOLERANCES["float32", "float32"]
    reference = np.array([0.0, 1.0, 1.0 - 1e-5], np.float32)
    swapped = reference[[0, 2, 1]]
    assert parity.compare(reference, swapped, gate).same
    apart = np.array([0.0, 1.0, 0.9], np.float32)
    assert not parity.compare(apart, apart[[0, 2, 1]], gate).same


def test_the_manifest_decides_nothing_about_the_gates(copied: Bundle) -> None:
    """An unknown arithmetic in the manifest is an error, not a missing gate."""
    edit_manifest(copied.path, lambda m: m["artifacts"][0].update(activations="int4"))
    with pytest.raises(BundleError):
        judge(Bundle.open(copied.path))

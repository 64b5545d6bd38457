"""The native runner on exported bundles: its answers, its packages, and what it refuses."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import tinyqmoe
from exporter.bundle import NATIVE, Bundle
from exporter.codec import native
from exporter.errors import BundleError, ContextError, MissingComponentError, UsageError
from exporter.quant.config import QuantConfig
from runtime_ref import residency, runners
from runtime_ref.answers import load_reference
from runtime_ref.native.package import native_package
from runtime_ref.native.runner import NativeRunner
from runtime_ref.residency import Residency
from tests.support.bundles import (
    copy,
    edit_manifest,
    export,
    no_progress,
    patch,
    reseal,
    small_manifest,
    sqnr_db,
)
from tests.support.checkpoints import write_llama
from tinyqmoe.evaluating import open_model


def open_native(bundle: Bundle, threads: int | None = None) -> NativeRunner:
    return NativeRunner(bundle, native_package(bundle.manifest), threads)


@pytest.fixture
def core() -> Iterator[ctypes.CDLL]:
    """Handle of the core, whose residency is as it was afterwards."""
    yield native.library()
    residency.apply(native.library(), Residency())


# Answers


def test_answers_are_those_of_the_reference(bundle: Bundle) -> None:
    runner = open_native(bundle)
    answers = load_reference(bundle, bundle.artifact("pte"))
    assert len(answers) > 2
    for answer in answers:
        rows = [runner.forward(answer.prompt, 0)]
        for step, token in enumerate(answer.tokens[:-1]):
            rows.append(runner.forward([token], len(answer.prompt) + step))
        for expected, got in zip(answer.logits, rows, strict=True):
            assert sqnr_db(expected, got) > 45
            assert got.argmax() == expected.argmax()


def test_weights_are_expanded_when_a_session_opens(bundle: Bundle, core: ctypes.CDLL) -> None:
    package = native_package(bundle.manifest)
    before = residency.stats(core)
    runner = runners.open_runner(bundle, package, Residency("expand"), no_progress, 3)
    opened = residency.stats(core)
    coded = [t for t in residency.coded_tensors(bundle, package) if t.gain > 0]
    assert opened.expansions - before.expansions == len(coded) > 0
    assert opened.dirty_bytes == sum(t.form_bytes for t in coded)
    runner.forward([1, 2, 3], 0)
    assert residency.stats(core).products_from_codes == before.products_from_codes
    assert residency.stats(core).expansions == opened.expansions


def test_a_budget_is_planned_for_all_weights(bundle: Bundle, core: ctypes.CDLL) -> None:
    """Which copies a small budget holds does not depend on the threads that make them."""
    package = native_package(bundle.manifest)
    tensors = residency.coded_tensors(bundle, package)
    budget = sum(t.form_bytes for t in tensors if t.gain > 0) // 2
    planned = residency.plan(tensors, budget)
    before = residency.stats(core).expansions
    placed = Residency("auto", budget_bytes=budget)
    runner = runners.open_runner(bundle, package, placed, no_progress, 3)
    now = residency.stats(core)
    assert runner.context > 0  # open until here, and its copies with it
    assert now.expansions - before == len(planned) > 0
    assert now.dirty_bytes == sum(t.form_bytes for t in tensors if t.name in planned)


def test_weights_are_expanded_by_default_where_there_is_room(
    bundle: Bundle, core: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = tinyqmoe.open_runner(bundle)
    held = tinyqmoe.expanded_bytes(roomy)
    assert held == residency.stats(core).dirty_bytes > 0
    expected = roomy.forward([1, 2, 3], 0).tobytes()
    del roomy
    monkeypatch.setattr(residency, "available_bytes", lambda: 0)
    short = tinyqmoe.open_runner(bundle)
    assert tinyqmoe.expanded_bytes(short) == 0
    assert short.forward([1, 2, 3], 0).tobytes() == expected


def test_an_evaluation_expands_weights_as_a_run_does(bundle: Bundle, core: ctypes.CDLL) -> None:
    before = residency.stats(core).expansions
    with open_model(bundle):
        assert residency.stats(core).expansions > before


def test_threads_pieces_and_residency_make_no_difference_in_bits(
    bundle: Bundle, tmp_path: Path
) -> None:
    tokens = [3 + i % 90 for i in range(40)]
    expected = open_native(bundle, 1).forward(tokens, 0).tobytes()
    for threads in (1, 2, 3):
        runner = open_native(bundle, threads)
        for begin, end in ((0, 13), (13, 14), (14, 40)):
            logits = runner.forward(tokens[begin:end], begin)
        assert logits.tobytes() == expected
    package = native_package(bundle.manifest)
    for wanted in (Residency("expand"), Residency("file", cache_dir=tmp_path), Residency()):
        placed = runners.open_runner(bundle, package, wanted, no_progress)
        assert placed.forward(tokens, 0).tobytes() == expected


def test_attention_in_steps_makes_no_difference_in_bits(tmp_path: Path) -> None:
    """One head of the cache is divided by positions among two threads and more."""
    checkpoint = write_llama(
        tmp_path / "m", num_key_value_heads=1, max_position_embeddings=640, num_hidden_layers=1
    )
    long = export(checkpoint, tmp_path / "b", QuantConfig("int8"), context=640)
    tokens = [3 + i * i % 90 for i in range(600)]
    runner = open_native(long, 1)
    runner.forward(tokens, 0)
    expected = [runner.forward([5 + i], 600 + i).tobytes() for i in range(3)]
    executorch = runners.open_runner(long, long.artifact("pte"), Residency(), no_progress)
    for other in (open_native(long, 2), open_native(long, 3), executorch):
        other.forward(tokens, 0)
        assert [other.forward([5 + i], 600 + i).tobytes() for i in range(3)] == expected


def test_a_bundle_has_a_folder_of_its_own_for_expanded_weights(
    bundle: Bundle, tmp_path: Path
) -> None:
    """What another maker made with the same checksums does not come into it."""
    wanted = Residency("file", cache_dir=tmp_path / "cache")
    other = copy(bundle, tmp_path / "other")
    edit_manifest(other.path, lambda raw: raw.update(prompts=["another"]))
    for each in (bundle, Bundle.open(other.path), bundle):
        runners.open_runner(each, native_package(each.manifest), wanted, no_progress)
    folders = [wanted.of(each).folder for each in (bundle, Bundle.open(other.path))]
    assert sorted((tmp_path / "cache").iterdir()) == sorted(folders)  # type: ignore[type-var]
    names = [sorted(file.name for file in folder.iterdir()) for folder in folders if folder]
    assert names[0] == names[1] != []
    runners.open_runner(bundle, native_package(bundle.manifest), Residency(), no_progress)


def test_a_position_may_be_said_again(bundle: Bundle) -> None:
    runner = open_native(bundle)
    first = runner.forward([5, 6, 7], 0)
    runner.forward([8, 9], 3)
    assert runner.forward([6, 7], 1).tobytes() == first.tobytes()


# Which package is run


def test_native_is_the_default_where_it_computes_the_same(
    bundle: Bundle, other_bundle: Bundle
) -> None:
    """`other_bundle` has float activations, which a session does not compute."""
    assert tinyqmoe.open_runner(bundle).name == "native"
    assert tinyqmoe.open_runner(bundle, backend="executorch").name == "executorch"
    assert tinyqmoe.open_runner(other_bundle).name == "executorch"


def test_the_package_is_the_pte_without_its_program(bundle: Bundle) -> None:
    package, pte = native_package(bundle.manifest), bundle.artifact("pte")
    assert (package.format, package.backend) == ("native", "native")
    assert (package.places, package.vectors, package.files) == (pte.places, pte.vectors, pte.files)
    assert package.operators == package.details == {}


def test_the_predicted_cache_and_buffers_are_those_of_a_session(bundle: Bundle) -> None:
    runner = open_native(bundle, 1)
    package = native_package(bundle.manifest)
    runner.forward([1] * bundle.manifest.interface.context, 0)
    state = runner._session.state()
    assert state.kv_cache_bytes == package.kv_cache_bytes
    placed = tinyqmoe.fit(bundle, devices="iphone-13", backends=NATIVE)[0].plan.prediction
    held = {h.what: h.dirty_bytes for h in placed.peak.holders}
    assert held["KV cache"] == state.kv_cache_bytes
    buffers = held["activations"] + held["logits"]
    assert 0.5 * state.buffer_bytes < buffers < 1.5 * state.buffer_bytes


# What is refused


def test_a_bundle_without_a_pte_is_refused() -> None:
    manifest = small_manifest()
    other = replace(manifest, artifacts=[replace(manifest.artifacts[0], format="mlprogram")])
    with pytest.raises(UsageError, match=r"needs a pte .* the bundle has mlprogram") as caught:
        native_package(other)
    assert "--target android" in caught.value.hint


def test_float_activations_are_refused(other_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"the bundle has pte \(float32\)"):
        tinyqmoe.open_runner(other_bundle, backend="native")


def test_a_context_that_is_full_is_refused(bundle: Bundle) -> None:
    runner, context = open_native(bundle), bundle.manifest.interface.context
    with pytest.raises(ContextError, match=f"{context + 1} tokens do not fit"):
        runner.forward([1] * (context + 1), 0)
    runner.forward([1] * context, 0)
    with pytest.raises(ContextError):
        runner.forward([1], context)


def test_a_token_outside_the_vocabulary_is_refused(bundle: Bundle) -> None:
    vocab = bundle.manifest.interface.vocab_size
    with pytest.raises(UsageError, match=f"token {vocab} is outside the vocabulary"):
        open_native(bundle).forward([vocab], 0)


def test_a_missing_file_of_weights_is_refused(copied: Bundle) -> None:
    (copied.path / "model.pte").unlink()
    with pytest.raises(BundleError, match=r"model\.pte is missing"):
        tinyqmoe.open_runner(copied.path, backend="native")
    with pytest.raises(BundleError, match=r"lacks model\.pte"):
        tinyqmoe.open_runner(copied, backend="native")


def test_a_manifest_without_vectors_is_refused(copied: Bundle) -> None:
    edit_manifest(copied.path, lambda raw: raw["artifacts"][0].update(vectors={}))
    with pytest.raises(BundleError, match="no artifact has both places and vectors") as caught:
        tinyqmoe.open_runner(copied.path, backend="native")
    assert "export again" in caught.value.hint


def test_a_bundle_whose_network_does_not_fit_is_refused(copied: Bundle) -> None:
    three = replace(copied.manifest.network, layers=3)
    with pytest.raises(BundleError, match=r"model\.layers\.2"):
        tinyqmoe.open_runner(reseal(copied, network=three), backend="native")


def test_a_missing_core_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    monkeypatch.setattr(native, "library_file", lambda: None)
    with pytest.raises(MissingComponentError, match="the compiled codec is not in"):
        tinyqmoe.open_runner(bundle, backend="native")


@pytest.mark.parametrize("backend", ["executorch", "custom-op", "mlprogram"])
def test_threads_are_for_sessions(backend: str, bundle: Bundle) -> None:
    artifacts = [*bundle.manifest.artifacts]
    artifacts += [replace(artifacts[0], format=name) for name in ("custom-op", "mlprogram")]
    with pytest.raises(UsageError, match="takes no number of threads"):
        tinyqmoe.open_runner(
            Bundle(bundle.path, replace(bundle.manifest, artifacts=artifacts)),
            backend=backend,
            threads=2,
        )


def test_less_than_one_thread_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="threads must be a positive number, got 0"):
        tinyqmoe.open_runner(bundle, threads=0)


# Verification


def test_damage_of_the_weights_is_seen_before_they_are_read(copied: Bundle) -> None:
    patch(copied, copied.artifact("pte").places["model.embed_tokens.weight"].offset + 200, b"\x55")
    with pytest.raises(BundleError, match=r"model\.pte has been changed"):
        tinyqmoe.generate(copied.path, "the cat")


def test_files_that_are_not_used_are_hashed_by_open_bundle_only(copied: Bundle) -> None:
    reference = copied.path / "reference.safetensors"
    data = bytearray(reference.read_bytes())
    data[-1] ^= 1
    reference.write_bytes(data)
    assert "".join(tinyqmoe.generate(copied.path, "the cat", max_new_tokens=2))
    with pytest.raises(BundleError, match=r"reference\.safetensors has been changed"):
        tinyqmoe.open_bundle(copied.path)
    reference.write_bytes(data + b"\0")
    with pytest.raises(BundleError, match=r"reference\.safetensors has .* bytes"):
        tinyqmoe.generate(copied.path, "the cat")


def test_a_changed_tokenizer_is_seen(copied: Bundle) -> None:
    file = copied.path / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"cat", b"cut"))
    with pytest.raises(BundleError, match=r"tokenizer\.json has been changed"):
        tinyqmoe.generate(copied.path, "the cat")

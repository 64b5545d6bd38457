"""The main path: limits, options, the same bytes twice, and nothing left of an export that
failed."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from exporter import config as configs
from exporter import manifest, pipeline
from exporter.backends.executorch import lowering
from exporter.bundle import MANIFEST, PROGRAM, Bundle, LedgerRow, Origin
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import BundleError, CheckpointError, ExportError, OutOfSpaceError, UsageError
from exporter.reference import prompts
from exporter.reference.loss_text import LOSS_POSITIONS
from tests.support import bundles as shared
from tests.support.bundles import CONTEXT, SPARSE, TERNARY, VOCAB, export_other, with_artifact
from tests.support.checkpoints import copy, edit_config, write_llama, write_tokenizer


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


# ---- what is refused before long work


@pytest.fixture
def no_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("the program was lowered")

    monkeypatch.setattr(lowering, "emit", fail)


@pytest.mark.parametrize("context", [0, -1, 7, 513])
@pytest.mark.usefixtures("no_lowering")
def test_a_context_the_model_cannot_have_is_refused(
    checkpoint: Path, tmp_path: Path, context: int
) -> None:
    with pytest.raises(UsageError, match=f"--context must be from 8 to 512.*got {context}"):
        shared.export(checkpoint, tmp_path / "out", TERNARY, context=context)
    assert names(tmp_path) == []


def test_the_context_is_at_most_the_models_own(checkpoint: Path, tmp_path: Path) -> None:
    def context_of(wanted: int | None, directory: Path) -> int:
        return configs.context_of(
            configs.ExportConfig(TERNARY, context=wanted), Checkpoint.open(directory)
        )

    assert context_of(None, checkpoint) == 512
    assert context_of(8, checkpoint) == 8
    assert context_of(512, checkpoint) == 512
    long = copy(checkpoint, tmp_path / "long")
    edit_config(long, max_position_embeddings=131072)
    assert context_of(None, long) == configs.DEFAULT_CONTEXT


@pytest.mark.usefixtures("no_lowering")
def test_an_out_that_exists_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(UsageError, match="already exists"):
        shared.export(checkpoint, tmp_path / "out", TERNARY, context=CONTEXT)


@pytest.mark.usefixtures("no_lowering")
def test_a_disk_that_is_too_small_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage(free=1000))
    with pytest.raises(OutOfSpaceError, match=r"may need .* are free"):
        shared.export(checkpoint, tmp_path / "out", TERNARY, context=CONTEXT)
    assert names(tmp_path) == []


@pytest.mark.usefixtures("no_lowering")
def test_a_damaged_checkpoint_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    broken = copy(checkpoint, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(CheckpointError):
        shared.export(broken, tmp_path / "out", TERNARY, context=CONTEXT)
    assert names(tmp_path) == ["broken"]


@pytest.mark.parametrize(
    ("error", "raised", "left"),
    [
        (OSError(errno.ENOSPC, "full"), OutOfSpaceError, [".out.partial"]),
        (KeyboardInterrupt(), KeyboardInterrupt, [".out.partial"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError, [".out.partial"]),
        (RuntimeError("another"), RuntimeError, []),
        (ExportError("wrong"), ExportError, []),
    ],
)
def test_no_half_bundle_is_left_when_lowering_fails(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: Any,
    left: list[str],
) -> None:
    """What the user can mend leaves the coded matrices, anything else leaves nothing."""

    def fail(*args: Any) -> None:
        args[-1].write_bytes(b"half a program")
        raise error

    monkeypatch.setattr(lowering, "emit", fail)
    with pytest.raises(raised) as caught:
        shared.export(checkpoint, tmp_path / "new" / "out", TERNARY, context=CONTEXT)
    assert names(tmp_path / "new") == left
    assert any("--resume" in note for note in getattr(caught.value, "__notes__", [])) == bool(left)
    assert not list((tmp_path / "new").rglob("*.pte"))


# ---- what comes out


def test_two_exports_differ_in_the_time_alone(
    other_bundle: Bundle, other_checkpoint: Path, tmp_path: Path
) -> None:
    again = export_other(other_checkpoint, tmp_path / "again")
    assert again.manifest.files == other_bundle.manifest.files  # sizes and SHA-256 of every file
    assert (
        dataclasses.replace(again.manifest, created=other_bundle.manifest.created)
        == other_bundle.manifest
    )
    assert names(tmp_path) == ["again"]


def test_the_manifest_says_what_was_asked_for(bundle: Bundle, other_bundle: Bundle) -> None:
    for made, quantization, activations, prefill in (
        (bundle, TERNARY, "int16", CONTEXT),
        (other_bundle, SPARSE, "float32", 5),
    ):
        program = made.artifact("pte")
        embedding = "int8" if quantization.embedding == "auto" else quantization.embedding
        asked = quantization.to_dict() | {"embedding": embedding}
        assert made.manifest.quantization == asked
        assert made.manifest.interface.context == CONTEXT
        assert (program.prefill_tokens, program.activations) == (prefill, activations)
    assert bundle.manifest.interface.vocab_size == VOCAB
    assert bundle.manifest.interface.eos_token_ids == [1]
    assert other_bundle.manifest.interface.eos_token_ids == []
    rules = [
        (b.manifest.interface.bos_rule, b.manifest.interface.bos_token_id)
        for b in (bundle, other_bundle)
    ]
    assert rules == [("tokenizer", 0), ("unknown", None)]
    told = [[w.split(":")[0] for w in b.manifest.warnings] for b in (bundle, other_bundle)]
    lost = "the loss by quantization is large"  # the weights are random
    assert told == [[lost], ["there is no tokenizer", "there is no end token", lost]]
    assert {t.codec for t in other_bundle.manifest.tensors} == {"lzw"}
    assert {t.scheme for t in bundle.manifest.tensors} == {"int8", "ternary"}


def test_the_manifest_counts_the_model(bundle: Bundle, checkpoint: Path) -> None:
    model = bundle.manifest.model
    weights = sum(t.rows * t.cols for t in bundle.manifest.tensors)
    assert model.parameters == weights + 5 * 48  # the norms
    assert model.origin == Origin(None, None, None, None, {"F32": 20})
    weights_file = (checkpoint / "model.safetensors").read_bytes()
    assert model.source_sha256 == {"model.safetensors": hashlib.sha256(weights_file).hexdigest()}
    assert model.source_bytes == pytest.approx(4 * model.parameters, rel=0.01)
    assert model.config == json.loads((checkpoint / "config.json").read_text())


def test_the_cost_of_quantization_is_reported(bundle: Bundle) -> None:
    loss = bundle.manifest.quantization_loss
    assert loss.text == "the built-in text"
    assert loss.positions >= LOSS_POSITIONS
    assert 0 < loss.kl_standard_error < loss.kl_mean
    assert 0 <= loss.top1_agreement <= 1
    assert loss.perplexity_original > 1


def test_the_tokenizer_is_the_checkpoints(bundle: Bundle, checkpoint: Path) -> None:
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        assert (bundle.path / name).read_bytes() == (checkpoint / name).read_bytes()
    assert bundle.manifest.prompts == list(prompts.TEXTS)


def test_the_native_sources_are_there_if_asked_for(bundle: Bundle, other_bundle: Bundle) -> None:
    assert not (bundle.path / "native").exists()
    native = other_bundle.path / "native"
    assert (native / "include" / "tinyqmoe" / "tinyqmoe.h").is_file()
    assert (native / "executorch" / "products.cpp").is_file()
    assert "Apache License" in (native / "LICENSE").read_text()
    assert list((native / "core").glob("*.cc"))
    assert list((native / "llm").glob("*.cc"))
    assert (native / "include" / "tinyqmoe" / "session.h").is_file()
    assert not [f for f in native.rglob("*") if f.suffix in (".so", ".o", ".pyc", ".py")]


def test_progress_names_every_stage_and_ends_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to lowering; what follows is seen in the demo."""

    class LoweringBeginsError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise LoweringBeginsError

    monkeypatch.setattr(lowering, "emit", stop)
    seen: dict[str, tuple[int, int]] = {}
    config = configs.ExportConfig(TERNARY, context=CONTEXT, calibration="none")
    with pytest.raises(LoweringBeginsError):
        pipeline.export(
            checkpoint,
            tmp_path / "out",
            config,
            lambda stage, done, total: seen.update({stage: (done, total)}),
        )
    assert list(seen)[-3:] == ["check weights", "quantize and code", "lower to ExecuTorch"]
    for stage in ("check weights", "quantize and code"):
        done, total = seen[stage]
        assert done == total > 0


# ---- tokenizers


def test_a_checkpoint_without_a_tokenizer_exports_and_says_so_when_run(
    other_bundle: Bundle,
) -> None:
    from runtime_ref import generate
    from runtime_ref.executorch.runner import ExecuTorchRunner
    from runtime_ref.prompts import PromptEncoder

    assert not (other_bundle.path / "tokenizer.json").exists()
    assert other_bundle.manifest.prompts == ["random ids: the checkpoint has no tokenizer"]
    with pytest.raises(BundleError, match=r"no tokenizer\.json") as caught:
        PromptEncoder(other_bundle).text("hi")
    assert "tokenizer.json" in caught.value.hint
    tokens = list(
        generate.generate(ExecuTorchRunner(other_bundle), [3, 4], 4, generate.Sampling(), ())
    )
    assert len(tokens) == 4  # ids go in and come out all the same


def test_a_tokenizer_that_gives_ids_the_model_lacks_is_not_used(tmp_path: Path) -> None:
    checkpoint = write_llama(tmp_path / "small-vocab", num_hidden_layers=1, vocab_size=30)
    write_tokenizer(checkpoint)  # 258 ids
    texts, sequences = prompts.token_sequences(
        prompts.read_tokenizer(checkpoint), 30, prompts.TEXTS
    )
    assert "ids the model does not have" in texts[0]
    assert max(map(max, sequences)) < 30


def test_texts_begin_with_bos_once(checkpoint: Path) -> None:
    _, sequences = prompts.token_sequences(prompts.read_tokenizer(checkpoint), VOCAB, prompts.TEXTS)
    assert len(sequences) == len(prompts.TEXTS)
    for sequence in sequences:
        assert sequence[0] == 0
        assert sequence.count(0) == 1


# ---- the ledger


def broken_ledger(bundle: Bundle, **changes: Any) -> ExportError:
    with pytest.raises(ExportError) as caught:
        manifest.check_relations(dataclasses.replace(bundle.manifest, **changes))
    return caught.value


def test_a_ledger_that_is_right_passes(bundle: Bundle) -> None:
    manifest.check_relations(bundle.manifest)


def test_a_ledger_that_does_not_sum_up_fails_the_export(bundle: Bundle) -> None:
    error = broken_ledger(bundle, ledger=bundle.manifest.ledger[1:])
    assert error.problems[0].startswith("model.pte: the ledger has")
    more = [*bundle.manifest.ledger, LedgerRow(PROGRAM, "a", -5), LedgerRow(PROGRAM, "b", 5)]
    assert "a has -5 bytes" in broken_ledger(bundle, ledger=more).problems[0]


def test_matrices_that_overlap_fail_the_export(bundle: Bundle) -> None:
    first, second, *_ = bundle.manifest.tensors
    places = bundle.artifact("pte").places
    there = dataclasses.replace(places[second.name], offset=places[first.name].offset)
    error = broken_ledger(
        bundle, artifacts=with_artifact(bundle, places=places | {second.name: there})
    )
    assert any(first.name in p and second.name in p and "overlap" in p for p in error.problems)
    beyond = dataclasses.replace(places[second.name], offset=10**9)
    error = broken_ledger(
        bundle, artifacts=with_artifact(bundle, places=places | {second.name: beyond})
    )
    assert any(second.name in p and "past the end" in p for p in error.problems)


def test_a_vector_that_overlaps_fails_the_export(bundle: Bundle) -> None:
    vectors = bundle.artifact("pte").vectors
    first, second, *_ = vectors
    there = dataclasses.replace(vectors[second], offset=vectors[first].offset + 4)
    changed = with_artifact(bundle, vectors=vectors | {second: there})
    problems = broken_ledger(bundle, artifacts=changed).problems
    assert any(first in p and second in p and "overlap" in p for p in problems)
    beyond = dataclasses.replace(vectors[second], n=10**6)
    changed = with_artifact(bundle, vectors=vectors | {second: beyond})
    problems = broken_ledger(bundle, artifacts=changed).problems
    assert any(second in p and "past the end" in p for p in problems)


def test_every_part_of_the_program_has_a_row(bundle: Bundle) -> None:
    rows = [row for row in bundle.ledger if row.file == PROGRAM]
    assert len({row.what for row in rows}) == len(rows)
    for word in ("embedding and head: int8", "layers: ternary", "scales", "graph"):
        assert sum(row.what.startswith(word) for row in rows) == 1, word
    assert bundle.ledger[-1].file == MANIFEST


def test_an_existing_out_is_refused_before_the_model_is_looked_for(tmp_path: Path) -> None:
    config = configs.ExportConfig(TERNARY, calibration="none")
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UsageError, match="already exists"):
        pipeline.export(tmp_path / "no-such-model", tmp_path, config, lambda *_: None)

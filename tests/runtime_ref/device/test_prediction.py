"""Predicted memory: its parts by hand, its verdicts, and against what real runs took."""

from __future__ import annotations

import dataclasses
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import Artifact, Bundle, FileEntry, Location, Manifest, TensorEntry
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.config import ExportConfig
from exporter.demo import model_path
from exporter.errors import UsageError
from exporter.estimate.bundle import estimate_bundle
from exporter.quant.config import QuantConfig
from runtime_ref.device import prediction as predictions
from runtime_ref.device import run, sandbox, sandbox_tasks
from runtime_ref.device.profile import DeviceProfile, Figure, MemoryBudget, memory_budget
from runtime_ref.reports import tables
from runtime_ref.residency import Residency
from runtime_ref.runners import open_runner, package
from tests.support import bundles as shared
from tests.support.bundles import TERNARY
from tests.support.checkpoints import write_llama
from tests.support.reports import device_plan, device_run

MB = 10**6
CONTEXT, TOKENS = 512, 128
HIDDEN, INTERMEDIATE, LAYERS, VOCAB = 1024, 4096, 3, 2000


def entry(name: str, rows: int, cols: int, scheme: str = "ternary") -> TensorEntry:
    """Ternary matrices are coded, others are not."""
    coded = scheme == "ternary"
    bits = 2 if coded else 8
    return TensorEntry(
        name=name,
        rows=rows,
        cols=cols,
        scheme=scheme,
        n_levels=3 if coded else 255,
        group_size=cols,
        scale_type="float32",
        codec="lzw" if coded else "raw",
        code_bits=12 if coded else 8,
        cap=14 if coded else 0,
        bits_per_weight=bits,
        entropy_bits=bits,
        zeros=0.5,
        levels_crc32=0,
        blob_bytes=rows * cols * bits // 8,
        scales_bytes=4 * rows,
        sizes_bytes={},
        own_levels=False,
    )


def model() -> tuple[Manifest, Artifact]:
    """A `.pte` of three layers whose only matrices are gates, with a tied head."""
    tensors = [entry("model.embed_tokens.weight", VOCAB, HIDDEN, "int8")]
    tensors += [
        entry(f"model.layers.{i}.mlp.gate_proj.weight", INTERMEDIATE, HIDDEN) for i in range(LAYERS)
    ]
    small = shared.small_manifest()
    artifact = replace(
        small.artifacts[0],
        prefill_tokens=TOKENS,
        kv_cache_bytes=20 * MB,
        operators={"x": 100},
        places={t.name: Location("model.pte", "tqlz", 0, t.blob_bytes) for t in tensors},
        details={"arena_bytes": 25 * MB},
    )
    described = replace(
        small,
        artifacts=[artifact],
        tensors=tensors,
        interface=replace(small.interface, context=CONTEXT),
        network=replace(small.network, hidden=HIDDEN, inner=INTERMEDIATE, heads=16),
        files=[FileEntry("model.pte", 7 * MB, ""), FileEntry("tokenizer.json", 2 * MB, "")],
    )
    return described, artifact


def held(prediction: predictions.MemoryPrediction) -> dict[str, tuple[int, int]]:
    return {h.what: (h.dirty_bytes, h.clean_bytes) for h in prediction.phases[-1].holders}


def test_holders_by_hand() -> None:
    prediction = predictions.predict(*model(), Residency())
    holders = held(prediction)
    assert holders["tokenizer"] == (5_800_000, 0)
    assert holders["KV cache"] == (20 * MB, 0)
    assert holders["activations, as planned"] == (5 * MB, 0)
    assert holders["package, as it lies in its files"] == (0, 7 * MB)
    assert holders["dictionaries"] == (LAYERS * 4096 * 18, 0)
    assert "expanded weights" not in holders
    assert [p.name for p in prediction.phases] == ["load", "prefill", "decode"]
    assert prediction.dirty_bytes == sum(dirty for dirty, _ in holders.values())
    assert prediction.clean_bytes == 7 * MB
    assert prediction.mapped_bytes > prediction.dirty_bytes + prediction.clean_bytes


def test_expanded_weights_are_dirty_in_memory_and_clean_in_files() -> None:
    form = 64 + INTERMEDIATE * HIDDEN // 4 + 64  # header, levels of two bits, tail; to 64 bytes
    pages = -(-form // 4096) * 4096
    assert held(predictions.predict(*model(), Residency("expand")))["expanded weights"] == (
        LAYERS * pages,
        0,
    )
    assert held(predictions.predict(*model(), Residency("file")))["expanded weights, in files"] == (
        0,
        LAYERS * (form + 64),
    )
    some = predictions.predict(*model(), Residency("auto", budget_bytes=2 * pages))
    assert held(some)["expanded weights"] == (2 * pages, 0)
    streamed = predictions.predict(*model(), Residency("auto", budget_bytes=0))
    assert streamed.dirty_bytes == predictions.predict(*model(), Residency()).dirty_bytes


def test_reading_a_large_tokenizer_can_be_the_peak() -> None:
    manifest, artifact = model()
    files = [
        replace(f, n_bytes=20 * MB) if f.path == "tokenizer.json" else f for f in manifest.files
    ]
    prediction = predictions.predict(replace(manifest, files=files), artifact, Residency())
    assert prediction.peak.name == "load"
    assert prediction.peak.largest()[0].what == "reading the tokenizer"
    assert prediction.dirty_bytes == 232 * MB


def test_the_largest_holders_come_first() -> None:
    largest = predictions.predict(*model(), Residency()).peak.largest(3)
    assert [h.what for h in largest] == [
        "KV cache",
        "tokenizer",
        "activations, as planned",
    ]


def test_an_expanded_ml_program_is_what_is_mapped() -> None:
    manifest, artifact = model()
    program = replace(
        artifact, format="mlprogram", path="model.mlpackage", files=["model.weights.tqlz"]
    )
    expanded = [
        FileEntry("model.mlpackage/Data/weight.bin", 9 * MB, ""),
        FileEntry("other/weight.bin", MB, ""),
    ]
    assert predictions.package_bytes(replace(manifest, expanded=expanded), program) == 9 * MB
    assert predictions.package_bytes(manifest, artifact) == 7 * MB


# ---- on a device


def phone(
    limit_mb: float, with_entitlement_mb: float | None = None, mapped_gb: float | None = None
) -> DeviceProfile:
    def figure(value: float | None) -> Any:
        return None if value is None else Figure(value, "a test", "low")

    return DeviceProfile(
        name="phone",
        title="Phone",
        platform="ios",
        ram_gb=figure(4),
        dram_gb_per_s=figure(20),
        page_kib=figure(16),
        limit_mb=figure(limit_mb),
        limit_with_entitlement_mb=figure(with_entitlement_mb),
        mapped_gb=figure(mapped_gb),
    )


def budget(profile: DeviceProfile) -> MemoryBudget:
    return memory_budget(profile, entitlement=False)


def test_verdicts_name_what_is_over_which_limit() -> None:
    prediction = predictions.predict(*model(), Residency())
    assert predictions.problems(prediction, budget(phone(100))) == []
    (dirty,) = predictions.problems(prediction, budget(phone(10)))
    assert dirty.startswith(f"prefill: {prediction.dirty_bytes / MB:,.0f} MB dirty, 10 MB allowed")
    (mapped,) = predictions.problems(prediction, budget(phone(100, mapped_gb=0.05)))
    assert mapped.endswith("MB of address space, 50 MB allowed")


def plan_for(limit_mb: float, mode: Any = None, **options: Any) -> run.DevicePlan:
    return run.plan_run(*model(), phone(limit_mb, **options), entitlement=False, mode=mode)


def test_auto_fills_what_the_limit_leaves() -> None:
    streamed = predictions.predict(*model(), Residency()).dirty_bytes
    for limit_mb in (40, 48, 49, 60):
        plan = plan_for(limit_mb)
        assert plan.residency.mode == "auto"
        assert plan.prediction.dirty_bytes <= max(streamed, limit_mb * MB)
    assert plan_for(40).prediction.dirty_bytes == streamed
    assert (
        plan_for(60).prediction.dirty_bytes
        == predictions.predict(*model(), Residency("expand")).dirty_bytes
    )


def test_files_that_do_not_fit_beside_it_are_pinned_in_part() -> None:
    assert plan_for(100).residency.clean_budget_bytes is None
    dirty = predictions.predict(*model(), Residency()).dirty_bytes
    pinned = plan_for(dirty / MB + 14, "stream").residency.clean_budget_bytes
    assert pinned is not None
    assert 0 < pinned < 7 * MB
    assert plan_for(dirty / MB - 2, "stream").residency.clean_budget_bytes == 0, "nothing fits"


def test_files_that_find_no_room_are_told() -> None:
    dirty = predictions.predict(*model(), Residency()).dirty_bytes
    assert plan_for(100).shortfall_bytes == 0
    short = plan_for((dirty + 4 * MB) / MB, "stream")
    assert short.problems == []
    assert short.shortfall_bytes == pytest.approx(3 * MB, abs=1)
    assert tables.fit_verdict(short) == "slow"
    shown = "".join(str(part) for part in tables.fit_view(short, []).renderables)  # type: ignore[attr-defined]
    assert "slow: 3.0 MB of files find no room" in shown
    assert (
        plan_for((dirty + 4 * MB) / MB, "stream").to_dict()["shortfall_bytes"]
        == short.shortfall_bytes
    )


def test_an_ml_program_has_no_residency() -> None:
    manifest, artifact = model()
    program = replace(artifact, format="mlprogram")
    with pytest.raises(UsageError, match="no coded weights"):
        run.plan_run(manifest, program, phone(100), entitlement=False, mode="expand")


def test_advice_says_what_would_do() -> None:
    manifest, _ = model()
    over = plan_for(32, "expand", with_entitlement_mb=60)
    assert over.problems
    stream, context, entitlement = run.advice(manifest, over)
    streamed = predictions.predict(*model(), Residency()).dirty_bytes
    assert stream == f"--residency stream: {streamed / MB:,.0f} MB of 32 MB, would not do alone"
    assert context.startswith("export with --context 256: ")
    assert entitlement.endswith("of 60 MB, fits")
    shorter = plan_for(30, "stream")
    (context,) = run.advice(manifest, shorter)
    assert context.startswith("export with --context 256: ")
    assert context.endswith("of 30 MB, fits")


# ---- before an export


@pytest.mark.parametrize(
    "quantization", [TERNARY, QuantConfig("int8"), QuantConfig("ternary", 16, 0.7)]
)
def test_an_estimate_predicts_what_the_export_does(
    checkpoint: Path, tmp_path: Path, quantization: QuantConfig
) -> None:
    """All but the codes, which are chosen by exact size: in a model this small seldom as in a large
    one."""
    formats = ("pte", "mlprogram", "custom-op")
    before = estimate_bundle(Checkpoint.open(checkpoint), ExportConfig(quantization, formats), 48)
    after = shared.export(
        checkpoint, tmp_path / "out", quantization, formats=formats, context=48
    ).manifest
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    for planned, made in zip(before.tensors, after.tensors, strict=True):
        assert (
            planned.rows,
            planned.cols,
            planned.scheme,
            planned.n_levels,
            planned.group_size,
        ) == (made.rows, made.cols, made.scheme, made.n_levels, made.group_size)
        assert planned.scales_bytes == made.scales_bytes
    for planned, made in zip(before.artifacts, after.artifacts, strict=True):
        assert planned.kv_cache_bytes == made.kv_cache_bytes
        assert sum(planned.operators.values()) == sum(made.operators.values()), made.format
        estimate, holders = (
            held(predictions.predict(*of, Residency())) for of in ((before, planned), (after, made))
        )
        of_codes = {"package, as it lies in its files", "dictionaries", "activations, as planned"}
        assert estimate.keys() - of_codes == holders.keys() - of_codes
        for what in holders.keys() - of_codes:
            assert estimate[what] == holders[what], what
    arenas = (m.artifacts[0].details["arena_bytes"] for m in (before, after))
    assert next(arenas) == pytest.approx(next(arenas), abs=40_000)


def test_an_estimate_of_every_format(checkpoint: Path) -> None:
    config = ExportConfig(TERNARY, ("pte", "mlprogram", "custom-op"))
    manifest = estimate_bundle(Checkpoint.open(checkpoint), config, 48)
    pte, program, custom = manifest.artifacts
    assert program.kv_cache_bytes * 2 == custom.kv_cache_bytes
    # In half precision as the program, with heads padded to 16 values.
    assert program.kv_cache_bytes <= pte.kv_cache_bytes < custom.kv_cache_bytes
    for artifact in manifest.artifacts:
        prediction = predictions.predict(manifest, artifact, Residency())
        assert prediction.dirty_bytes > 0
        assert prediction.clean_bytes > sum(t.scales_bytes for t in manifest.tensors)


def test_a_prediction_is_plain_values() -> None:
    plain = predictions.predict(*model(), Residency()).to_dict()
    assert plain["dirty_bytes"] == max(p["dirty_bytes"] for p in plain["phases"])
    assert dataclasses.asdict(plan_for(100).budget)["dirty_bytes"] == 100 * MB
    assert plan_for(100).to_dict()["prediction"]["format"] == "pte"


def test_bundles_are_predicted_as_their_manifests(bundle: Bundle) -> None:
    """A real bundle, of which nothing but the manifest is read."""
    prediction = predictions.predict(bundle.manifest, bundle.artifact("pte"), Residency())
    assert prediction.clean_bytes == bundle.file("model.pte").stat().st_size


SCORES = {"num_attention_heads": 8, "head_dim": 16, "intermediate_size": 128}
ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64, "hidden_size": 256}
MLP = {"intermediate_size": 6000, "hidden_size": 64}


@pytest.mark.parametrize(("shape", "context"), [(SCORES, 512), (ONE_HEAD, 256), (MLP, 160)])
def test_values_of_a_network_take_what_is_predicted(
    tmp_path: Path, shape: dict[str, int], context: int
) -> None:
    """By what NumPy allocates in a call of the longest kind, which does not depend on when one
    looks."""
    checkpoint = write_llama(tmp_path / "checkpoint", num_hidden_layers=3, **shape)
    formats = ("custom-op",)
    made = shared.export(checkpoint, tmp_path / "out", TERNARY, formats=formats, context=context)
    artifact = made.artifact("custom-op")
    runner = open_runner(made, artifact, Residency(), lambda *_: None)
    runner.forward([3], 0)
    tracemalloc.start()
    runner.forward(
        [3 + i % 90 for i in range(artifact.prefill_tokens)], context - artifact.prefill_tokens
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    holders = held(predictions.predict(made.manifest, artifact, Residency()))
    predicted = sum(holders[what][0] for what in ("activations", "new rows of the KV cache"))
    assert predicted == pytest.approx(peak, rel=0.1)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="NOT TESTED: memory is measured on Linux only"
)
@pytest.mark.parametrize("mode", ["stream", "expand"])
@pytest.mark.parametrize("form", ["pte", "native"])
def test_a_prediction_is_near_what_a_run_takes(demo: Bundle, form: str, mode: Any) -> None:
    """The demo model with its whole context filled. Larger models are nearer:
    benchmarks/memory_prediction.py."""
    artifact, residency = package(demo.manifest, form), Residency(mode)
    arguments = {
        "bundle": str(demo.path),
        "format": form,
        "residency": sandbox_tasks.plain(residency),
        "sampling": {},
        "prompt": [3 + i for i in range(128)],
        "limits": {"max_new_tokens": 128},
    }
    report = sandbox.run(
        "runtime_ref.device.sandbox_tasks:generate", arguments, 1 << 30, [], lambda *_: None
    )
    assert report.outcome == "ok", report.detail
    prediction = predictions.predict(demo.manifest, artifact, residency)
    assert prediction.dirty_bytes == pytest.approx(report.peak_dirty_bytes, rel=0.15)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The model that ships, ternary, for ExecuTorch."""
    return shared.export(
        model_path(), tmp_path_factory.mktemp("demo") / "ternary", TERNARY, context=256
    )


# ---- runs that several devices share


@pytest.mark.parametrize(
    ("seen", "n_runs"),
    [
        ({}, 1),
        ({"peak_group_bytes": 990 * MB}, 2),  # it was full: pages may have been evicted
        ({"outcome": "killed", "result": None}, 2),
        ({"peak_dirty_bytes": 1500 * MB}, 2),
    ],
)
def test_a_run_that_stayed_clear_of_its_limit_is_that_of_larger_devices(
    monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], n_runs: int
) -> None:
    small, large = device_plan(), device_plan(entitlement=True)
    ran: list[run.DevicePlan] = []

    def made_up(bundle: Any, plan: run.DevicePlan, *_: Any) -> run.DeviceRun:
        ran.append(plan)
        return device_run(plan, **seen)

    monkeypatch.setattr(run, "run", made_up)
    bundle: Any = None
    runs = run.run_each(bundle, [large, small, small], "parity", lambda *_: None)
    assert [r.plan for r in runs] == [large, small, small], "in their order"
    assert ran[0] is small, "the tightest comes first"
    assert len(ran) == n_runs

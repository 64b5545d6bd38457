"""Exports at a rate: the size that is met, the same bytes again, parity, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

import tinyqmoe
from exporter import allocation, encoded, pipeline, staging
from exporter.bundle import EMBEDDING, Bundle
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.config import ExportConfig, at_size
from exporter.errors import CheckpointError, UsageError
from exporter.estimate.bundle import estimate_bundle
from exporter.quant import calibration_passes, rate
from exporter.quant.config import QuantConfig
from exporter.quant.rules import read
from tests.support.bundles import TEXT, export, no_progress, write_text_model
from tests.support.checkpoints import write_llama

FORMATS = ("pte", "mlprogram", "custom-op")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("rate") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3)
    return path


def at_rate(model: Path, out: Path, bits: float, text: object = "none", **options: Any) -> Bundle:
    quantization = QuantConfig(bits_per_weight=bits)
    return export(model, out, quantization, calibration=str(text), context=24, **options)


def coded_bits(bundle: Bundle, names: list[str] | None = None) -> float:
    """Bits per weight by the files that ship."""
    tensors = [t for t in bundle.manifest.tensors if names is None or t.name in names]
    size = sum(t.blob_bytes + t.scales_bytes for t in tensors)
    return 8 * size / sum(t.rows * t.cols for t in tensors)


@pytest.mark.parametrize("bits", [2.5, 4, 6])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_rate_is_met(
    model: Path, text: Path, tmp_path: Path, bits: float, calibrated: bool
) -> None:
    source = text if calibrated else "none"
    made = at_rate(model, tmp_path / "out", bits, source, formats=("custom-op",))
    assert coded_bits(made) == pytest.approx(bits, rel=0.005)
    reached = made.manifest.rate
    assert reached is not None
    assert (reached.bits_asked, reached.bits_per_weight) == (bits, pytest.approx(coded_bits(made)))
    assert made.manifest.quantization["bits_per_weight"] == bits
    if calibrated:
        assert reached.text == "text.txt"
        assert reached.text_sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
        assert reached.tokens % 48 == 0 < reached.tokens
    else:
        assert (reached.text, reached.text_sha256, reached.tokens) == (None, None, 0)
    assert {t.codec for t in made.manifest.tensors} <= {"lzw", "raw"}


def test_matrices_share_the_bits_by_what_they_are_worth(
    model: Path, text: Path, tmp_path: Path
) -> None:
    made = at_rate(model, tmp_path / "out", 4, text, formats=("custom-op",))
    bits = [t.entropy_bits for t in made.manifest.tensors]
    assert max(bits) > min(bits) + 0.5


def test_all_packages_at_a_rate_pass_parity(model: Path, text: Path, tmp_path: Path) -> None:
    made = at_rate(model, tmp_path / "out", 4, text, formats=FORMATS)
    assert tinyqmoe.check_parity(made).passed


def test_scales_at_a_rate_are_trained(model: Path, text: Path, tmp_path: Path) -> None:
    """The levels stay, and so the size; a saved plan trains again, to the same bytes."""
    before = at_rate(model, tmp_path / "before", 2, text, formats=("custom-op",))
    plan_file, quantization = tmp_path / "plan.json", QuantConfig(bits_per_weight=2, recover=20)
    options: dict[str, Any] = {"calibration": str(text), "context": 24, "formats": ("custom-op",)}
    made = export(model, tmp_path / "made", quantization, **options, save_plan=plan_file)
    assert coded_bits(made) == coded_bits(before)
    assert tinyqmoe.check_parity(made).passed
    losses = [b.manifest.quantization_loss.kl_mean for b in (before, made)]
    assert losses[1] < losses[0]
    plan = QuantConfig("mixed", rules=read(plan_file))
    again = export(model, tmp_path / "again", plan, **options)
    bundles = (before, made, again)
    assert len({tuple(t.levels_crc32 for t in b.manifest.tensors) for b in bundles}) == 1
    files = [[f for f in b.manifest.files if "mlpackage" in f.path] for b in (made, again)]
    assert files[0] == files[1] != []


def test_the_demo_model_keeps_to_a_rate(tmp_path: Path) -> None:
    made = export(
        tinyqmoe.demo_model(),
        tmp_path / "out",
        QuantConfig(bits_per_weight=4),
        context=64,
        formats=("custom-op",),
    )
    assert coded_bits(made) == pytest.approx(4, rel=0.005)
    assert made.manifest.quantization_loss.kl_mean < 0.2


def test_a_size_is_a_rate(model: Path, tmp_path: Path) -> None:
    size = int(3.5 * Checkpoint.open(model).parameters / 8)
    config = ExportConfig(QuantConfig(), ("custom-op",), 24, size_bytes=size, calibration="none")
    made = pipeline.export(model, tmp_path / "out", config, no_progress)
    stored = sum(t.blob_bytes + t.scales_bytes for t in made.manifest.tensors)
    assert stored == pytest.approx(size, rel=0.005)
    assert made.manifest.quantization["bits_per_weight"] == pytest.approx(3.5, rel=0.02)


def test_an_embedding_of_another_scheme_has_no_rate(model: Path, tmp_path: Path) -> None:
    quantization = QuantConfig(bits_per_weight=3, embedding="ternary")
    made = export(model, tmp_path / "out", quantization, calibration="none", formats=("custom-op",))
    layers = [t.name for t in made.manifest.tensors if t.name != EMBEDDING]
    assert coded_bits(made, layers) == pytest.approx(3, rel=0.005)
    (embedding,) = (t for t in made.manifest.tensors if t.name == EMBEDDING)
    assert embedding.scheme == "ternary"


# ---- the same bytes again


def same(first: Bundle, second: Bundle) -> None:
    manifests = [dataclasses.replace(b.manifest, created="") for b in (first, second)]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("at", ["calibration", "search", "coding"])
def test_an_export_that_was_cut_off_gives_the_same_bytes(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    options: dict[str, Any] = {"formats": ("custom-op",)}
    whole = at_rate(model, tmp_path / "whole", 4, text, **options)
    where: tuple[Any, str] = {
        "calibration": (calibration_passes.Passes, "_head"),
        "search": (allocation.Search, "_size"),
        "coding": (encoded, "_write_record"),
    }[at]
    real, calls = getattr(*where), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if at != "coding" or calls == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(*where, interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            at_rate(model, out, 4, text, **options)
    kept = "3 coded matrices are kept" if at == "coding" else "what was measured is kept"
    assert [note.startswith(kept) for note in caught.value.__notes__] == [True]
    config = ExportConfig(QuantConfig(bits_per_weight=4), ("custom-op",), 24, calibration=str(text))
    same(pipeline.export(model, out, config, no_progress, resume=True), whole)
    assert not staging.staging_directory_of(out).root.exists()


def test_another_text_is_refused_and_named(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(allocation.Search, "_size", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            at_rate(model, out, 4, text)
    config = ExportConfig(QuantConfig(bits_per_weight=4), context=24, calibration="none")
    with pytest.raises(UsageError, match="cannot go on") as caught:
        pipeline.export(model, out, config, no_progress, resume=True)
    assert [p.split(":")[0] for p in caught.value.problems] == ["calibration"]


# ---- what is refused


@pytest.mark.parametrize("bits", [1.4, 8.1, 0, -1, True, "4"])
def test_a_rate_out_of_range_is_refused(bits: Any) -> None:
    with pytest.raises(UsageError) as caught:
        QuantConfig(bits_per_weight=bits)
    assert caught.value.problems == [
        f"bits_per_weight must be a number from 1.5 to 8.0; got {bits!r}"
    ]


def test_a_rate_finer_than_int8_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "LARGEST", 30)  # small matrices have tables of many bits a weight
    with pytest.raises(UsageError, match=r"8.00 bits per weight cannot be met: .* come to 6"):
        at_rate(model, tmp_path / "out", 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scheme": "ternary"}, "is an option of scheme int8, the scheme is ternary"),
        ({"group_size": 32}, "bits_per_weight is for one scale a row"),
    ],
)
def test_what_has_no_rate_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        QuantConfig(bits_per_weight=4, **options)
    assert [problem in p for p in caught.value.problems] == [True]


def test_options_that_contradict_each_other_are_refused() -> None:
    at_four = QuantConfig(bits_per_weight=4)
    for config, options, problem in (
        (at_four, {"size_bytes": 10**6}, "size_bytes excludes bits_per_weight and a plan"),
        (at_four, {"codec": "raw"}, "raw codes have no rate: leave codec away"),
        (QuantConfig(), {"size_bytes": 0}, "size_bytes must be a positive number, got 0"),
        (
            QuantConfig(),
            {"calibration": "none"},
            "calibration is for a rate, and for ternary without a sparsity: give one of them",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            ExportConfig(config, **options)
        assert caught.value.problems == [problem]


def test_a_size_that_is_no_rate_is_refused(model: Path) -> None:
    config = ExportConfig(QuantConfig(), size_bytes=1000)
    with pytest.raises(UsageError, match=r"0.0 MB for the weights is 0.\d+ bits for each"):
        at_size(config, Checkpoint.open(model))


def test_a_model_without_a_tokenizer_is_refused_before_work(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    with pytest.raises(CheckpointError, match="needs a tokenizer"):
        export(model, tmp_path / "new" / "out", QuantConfig(bits_per_weight=4))
    assert not (tmp_path / "new").exists()


def test_a_rate_is_known_before_the_export(model: Path) -> None:
    checkpoint, quantization = Checkpoint.open(model), QuantConfig(bits_per_weight=3)
    planned = estimate_bundle(checkpoint, ExportConfig(quantization), 24)
    assert coded_bits(Bundle(model, planned)) == pytest.approx(3, rel=0.3)
    fine = estimate_bundle(checkpoint, ExportConfig(QuantConfig(bits_per_weight=6)), 24)
    assert coded_bits(Bundle(model, fine)) > 1.5 * coded_bits(Bundle(model, planned))

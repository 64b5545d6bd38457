"""Parity of the ML Program: a right package passes far inside the gates, and every kind of wrong
package is caught."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.backends.coreml import mlpackage, mlprogram, mlprogram_graph
from exporter.bundle import Bundle
from exporter.errors import BundleError, ContextError, UsageError
from exporter.models import llama
from exporter.quant.config import QuantConfig
from runtime_ref.coreml import expansion
from runtime_ref.coreml.mlprogram_runner import MLProgramRunner
from runtime_ref.parity import TOLERANCES, ParityReport, check_parity
from tests.support import bundles as shared
from tests.support.bundles import CONTEXT, TERNARY, copy, reseal, sqnr_db, with_artifact
from tests.support.checkpoints import LLAMA3_ROPE, write_llama

Q1 = "model.layers.1.self_attn.q_proj.weight"
PACKAGE_MODEL = f"{mlprogram.TEMPLATE}/{mlpackage.MODEL_FILE}"


def no_progress(done: int, total: int) -> None:
    pass


def runner(bundle: Bundle) -> MLProgramRunner:
    return MLProgramRunner(bundle, bundle.artifact("mlprogram"), no_progress)


def judge(bundle: Bundle) -> ParityReport:
    bundle.verify()
    return check_parity(bundle, runner(bundle), lambda n: None)


def failed(report: ParityReport) -> set[str]:
    return {check.verdict for check in report.checks if not check.passed}


def export(
    checkpoint: Path, out: Path, quantization: QuantConfig = TERNARY, **options: Any
) -> Bundle:
    """With prefills of at most 16 tokens, so that prompts take several calls and paddings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlprogram_graph, "PREFILL_TOKENS", 16)
        return shared.export(
            checkpoint,
            out,
            quantization,
            **{"formats": ("mlprogram",), "context": CONTEXT} | options,
        )


@pytest.fixture(scope="module")
def ios(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(checkpoint, tmp_path_factory.mktemp("ios") / "bundle")


@pytest.fixture
def copied(ios: Bundle, tmp_path: Path) -> Bundle:
    return copy(ios, tmp_path / "copied")


# ---- right packages


@pytest.fixture(scope="module")
def report(ios: Bundle) -> ParityReport:
    return judge(ios)


def test_a_right_package_passes(report: ParityReport) -> None:
    assert report.passed, [check for check in report.checks if not check.passed]
    assert {check.verdict for check in report.checks} == {
        "levels",
        "scales",
        "logits",
        "greedy",
        "context",
    }
    assert report.activations == "float16"


def test_half_precision_is_no_float32(report: ParityReport) -> None:
    """It is computed with rounding, and that rounding is what its gate was set for."""
    worst = [c.sqnr_db_worst for c in report.checks if c.verdict == "logits"]
    assert all(35 < w < 80 for w in worst if w is not None)


SHAPES: dict[str, tuple[QuantConfig, dict[str, Any]]] = {
    "int8, untied, llama3 rope": (
        QuantConfig(scheme="int8"),
        {
            "tie_word_embeddings": False,
            "num_key_value_heads": 4,
            "rope_scaling": LLAMA3_ROPE,
            "rope_theta": 500000.0,
        },
    ),
    "grouped ternary, one kv head": (
        QuantConfig(scheme="ternary", group_size=16, embedding="ternary"),
        {"num_key_value_heads": 1, "num_hidden_layers": 3},
    ),
    "odd sizes": (
        QuantConfig(scheme="ternary", sparsity=0.6),
        {"hidden_size": 36, "intermediate_size": 43, "num_attention_heads": 2, "head_dim": 22},
    ),
    "large vocabulary": (
        QuantConfig(scheme="int8"),
        {"vocab_size": 128256, "hidden_size": 16, "num_hidden_layers": 1},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_models_of_other_shapes_pass(shape: str, tmp_path: Path) -> None:
    quantization, changes = SHAPES[shape]
    report = judge(
        export(write_llama(tmp_path / "model", **changes), tmp_path / "out", quantization)
    )
    assert report.passed, [check for check in report.checks if not check.passed]


def test_weights_in_several_files_pass(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "out", chunk_bytes=9000)
    recipe = expansion.load_recipe(bundle, bundle.artifact("mlprogram"))
    assert len(recipe.weight_files) >= 2
    assert judge(bundle).passed


def test_the_expanded_package_inside_the_bundle_is_used(copied: Bundle) -> None:
    recipe = expansion.load_recipe(copied, copied.artifact("mlprogram"))
    package = copied.path / recipe.package
    expansion.expand(copied, recipe, package, no_progress)
    assert judge(copied).passed
    assert runner(copied).file(recipe.package) == package
    weights = package / recipe.weight_files[0].path
    with weights.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    with pytest.raises(BundleError, match=r"weight\.bin has been changed"):
        judge(copied)


def test_an_expansion_inside_the_bundle_that_was_interrupted_goes_on(copied: Bundle) -> None:
    """What it left does no harm to the bundle, and only that is overlooked."""
    recipe = expansion.load_recipe(copied, copied.artifact("mlprogram"))
    package, weights = copied.path / recipe.package, recipe.weight_files[0]

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expansion.expand(copied, recipe, package, interrupt)
    (left,) = copied.path.glob(f".*/**/{Path(weights.path).name}")
    assert 0 < left.stat().st_size < weights.n_bytes
    copied.verify()
    expansion.expand(copied, recipe, package, no_progress)
    copied.verify()
    assert list(copied.path.glob(".*")) == []
    (package / "x").write_text("x")
    with pytest.raises(BundleError, match=r"/x is not in the manifest"):
        copied.verify()


def test_a_prompt_near_the_end_of_the_context_is_decoded(ios: Bundle) -> None:
    """A padded prefill would write past the cache: the same logits with and without one."""
    run = runner(ios)
    tokens = np.random.default_rng(0).integers(0, 100, CONTEXT).tolist()
    at_once = run.forward(tokens, 0)
    run.forward(tokens[: CONTEXT - 5], 0)
    in_two = run.forward(tokens[CONTEXT - 5 :], CONTEXT - 5)
    assert sqnr_db(at_once, in_two) > TOLERANCES["float16", "float16"].worst_sqnr_db
    with pytest.raises(ContextError):
        run.forward([1], CONTEXT)


def test_the_temporary_package_goes_with_the_runner(ios: Bundle) -> None:
    run = runner(ios)
    package = run.file(run.artifact.path)
    assert package.is_dir()
    del run
    assert not package.exists()


# ---- wrong packages


def wrong(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **methods: Any
) -> ParityReport:
    """Parity of a package whose builder was changed; levels stay right."""
    for name, method in methods.items():
        monkeypatch.setattr(mlprogram_graph.ProgramBuilder, name, method)
    report = judge(export(checkpoint, out))
    assert report.checks[0].passed
    return report


def test_a_state_read_before_its_update(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What coremltools' merged reads do: the attention of the first layer does not see the new
    keys."""
    real = mlprogram_graph.ProgramBuilder.update

    def stale(self: Any, cache: Any, layer: int, new: Any, position: Any) -> Any:
        before = cache[1]
        state, after = real(self, cache, layer, new, position)
        self.stale = getattr(self, "stale", {}) | ({state.name: before} if layer == 0 else {})
        return state, after

    attention = mlprogram_graph.ProgramBuilder.attention

    def attend(self: Any, q: Any, caches: Any, layer: int, mask: Any, n_tokens: int) -> Any:
        return attention(
            self, q, list(self.stale.values()) if layer == 0 else caches, layer, mask, n_tokens
        )

    assert "logits" in failed(
        wrong(checkpoint, tmp_path / "out", monkeypatch, update=stale, attention=attend)
    )


def test_a_stale_position(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call writes into the first slots of the second layer."""
    real = mlprogram_graph.ProgramBuilder.update

    def update(self: Any, cache: Any, layer: int, new: Any, position: Any) -> Any:
        return real(self, cache, layer, new, self.mb.mul(x=position, y=np.int32(layer == 0)))

    assert "logits" in failed(wrong(checkpoint, tmp_path / "out", monkeypatch, update=update))


def test_a_swapped_transpose(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heads(self: Any, h: Any, name: str, n_tokens: int) -> Any:
        y = self.linear(h, name)
        dim = self.model.head_dim
        y = self.mb.reshape(x=y, shape=[1, n_tokens, dim, y.shape[-1] // dim])
        return self.mb.transpose(x=y, perm=[0, 3, 1, 2])

    assert "logits" in failed(wrong(checkpoint, tmp_path / "out", monkeypatch, heads=heads))


def test_a_mask_that_shows_the_future(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mlprogram_graph.ProgramBuilder.mask

    def mask(self: Any, positions: Any, n_tokens: int) -> Any:
        return real(self, self.mb.add(x=positions, y=np.int32(1)), n_tokens)

    assert "logits" in failed(wrong(checkpoint, tmp_path / "out", monkeypatch, mask=mask))


def test_a_wrong_rope_base(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mlpackage.rope_tables
    monkeypatch.setattr(
        mlpackage, "rope_tables", lambda m, c: real(dataclasses.replace(m, rope_theta=20000.0), c)
    )
    report = judge(export(checkpoint, tmp_path / "out"))
    assert "logits" in failed(report)
    assert report.checks[0].passed
    assert (
        llama.read_config(json.loads((checkpoint / "config.json").read_text())).rope_theta
        == 10000.0
    )


def patch_weights(bundle: Bundle, change: Any) -> Bundle:
    """Lets `change` edit the coded weights, and writes recipe and manifest anew for what they then
    expand to."""
    from exporter.codec import weight_file

    recipe = expansion.load_recipe(bundle, bundle.artifact("mlprogram"))
    path = bundle.path / recipe.coded_file
    data = bytearray(path.read_bytes())
    change(data, recipe)
    path.write_bytes(data)
    coded = np.frombuffer(bytes(data), np.uint8)
    files = [
        dataclasses.replace(f, sha256=weight_file.sha256_of(coded, f.pieces, lambda n: None))
        for f in recipe.weight_files
    ]
    (bundle.path / "expand.json").write_text(
        dataclasses.replace(recipe, weight_files=files).to_json()
    )
    digests = {f"{recipe.package}/{f.path}": f.sha256 for f in files}
    expanded = [
        dataclasses.replace(e, sha256=digests.get(e.path, e.sha256))
        for e in bundle.manifest.expanded
    ]
    return reseal(bundle, expanded=expanded)


@pytest.mark.parametrize("factor", [1.001, 1.125, -1.0])
def test_one_wrong_scale(copied: Bundle, factor: float) -> None:
    """In the look-up table of one row: too little for logits in half precision to tell."""

    def change(data: bytearray, recipe: Any) -> None:
        parts = shared.tensor(copied, Q1)
        assert parts.scheme == "ternary"
        table = next(i for i in range(0, len(data) - 8, 64) if is_table(bytes(data[i : i + 8])))
        values = np.frombuffer(bytes(data[table : table + 8]), np.float16) * np.float16(factor)
        data[table : table + 8] = values.astype(np.float16).tobytes()

    report = judge(patch_weights(copied, change))
    assert "scales" in failed(report)
    assert report.checks[0].passed


def is_table(data: bytes) -> bool:
    """The look-up table of a row: -scale, 0, scale, 0."""
    low, zero, high, zero_too = np.frombuffer(data, np.float16).tolist()
    return zero == zero_too == 0 and low == -high and 0.01 < high < 10


def test_levels_of_another_matrix(copied: Bundle) -> None:
    """Two matrices of one shape change places in the recipe, and everything is sealed again."""

    def change(data: bytearray, recipe: Any) -> None:
        pieces = recipe.weight_files[0].pieces
        coded = [i for i, p in enumerate(pieces) if p.form == "uint2"]
        first, second = next(
            (i, j) for i in coded for j in coded if i < j and pieces[i].n_bytes == pieces[j].n_bytes
        )
        pieces[first], pieces[second] = pieces[second], pieces[first]

    report = judge(patch_weights(copied, change))
    assert {"levels", "logits"} <= failed(report)


# ---- errors, never a pass


@pytest.mark.parametrize("name", ["model.weights.tqlz", "expand.json", PACKAGE_MODEL])
def test_a_tampered_file_is_an_error(copied: Bundle, name: str) -> None:
    with (copied.path / name).open("r+b") as file:
        file.seek(30)
        file.write(b"\x00\xff")
    with pytest.raises(BundleError, match="has been changed"):
        judge(copied)


def test_a_truncated_weight_file_is_an_error(copied: Bundle) -> None:
    """Of the package, expanded by somebody else and not by its hash."""
    recipe = expansion.load_recipe(copied, copied.artifact("mlprogram"))
    package = copied.path / recipe.package
    expansion.expand(copied, recipe, package, no_progress)
    with (package / recipe.weight_files[0].path).open("r+b") as file:
        file.truncate(recipe.weight_files[0].n_bytes // 2)
    with pytest.raises(BundleError, match=r"weight\.bin"):
        runner(copied)  # not verified first: the interpreter itself must see it


def test_a_truncated_template_is_an_error(copied: Bundle) -> None:
    with (copied.path / PACKAGE_MODEL).open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(BundleError):
        runner(copied)


def test_an_operation_the_interpreter_does_not_know_is_an_error(copied: Bundle) -> None:
    path = copied.path / PACKAGE_MODEL
    data = path.read_bytes()
    assert data.count(b"\x04silu") > 0
    path.write_bytes(data.replace(b"\x04silu", b"\x04sulu"))
    with pytest.raises(BundleError, match="sulu"):
        runner(reseal(copied))


@pytest.mark.parametrize(
    ("changes", "named"), [({"context": 47}, "states of"), ({"vocab_size": 149}, "logits")]
)
def test_a_manifest_that_is_not_the_packages_is_an_error(
    copied: Bundle, changes: dict[str, int], named: str
) -> None:
    sealed = reseal(copied, interface=dataclasses.replace(copied.manifest.interface, **changes))
    with pytest.raises(BundleError, match="not the package the manifest describes") as caught:
        runner(sealed)
    assert any(named in problem for problem in caught.value.problems)


def test_a_wrong_length_of_prefill_is_an_error(copied: Bundle) -> None:
    sealed = reseal(copied, artifacts=with_artifact(copied, "mlprogram", prefill_tokens=8))
    with pytest.raises(BundleError, match="not the package the manifest describes"):
        runner(sealed)


def test_a_bundle_without_the_package_is_told(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"has no package for coreml: it has pte \(executorch\)"):
        bundle.artifact("coreml")


def test_a_missing_recipe_is_an_error(copied: Bundle) -> None:
    shutil.move(copied.path / "expand.json", copied.path / "elsewhere.json")
    with pytest.raises(BundleError, match="damaged"):
        judge(copied)

"""Parity of the network with custom layers: a right package passes far inside the gates, every
wrong one is caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.backends.coreml import custom_op, custom_op_graph, mlpackage
from exporter.bundle import Bundle, Location
from exporter.codec import encoder
from exporter.codec.native_tensor import NativeTensor
from exporter.errors import BundleError
from exporter.quant.config import QuantConfig
from runtime_ref.coreml.custom_op_runner import CustomOpRunner
from runtime_ref.generate import check_room
from runtime_ref.parity import ParityReport, check_parity
from tests.support import bundles as shared
from tests.support.bundles import CONTEXT, TERNARY, copy, place, reseal, tensor, with_artifact
from tests.support.checkpoints import LLAMA3_ROPE, write_llama

FORMAT = "custom-op"
GATE, UP = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
MODEL = f"{custom_op.PACKAGE}/{mlpackage.MODEL_FILE}"
SIDE = "model-custom-op.weights"
Layer = Callable[..., str]


def export(
    checkpoint: Path, out: Path, quantization: QuantConfig = TERNARY, **options: Any
) -> Bundle:
    """With calls of at most 16 tokens, so that prompts take several; codes of equal shapes have
    equal sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(custom_op, "MAX_TOKENS", 16)
        defaults = {"formats": (FORMAT,), "context": CONTEXT, "codec": "raw"}
        return shared.export(checkpoint, out, quantization, **defaults | options)


def runner(bundle: Bundle) -> CustomOpRunner:
    return CustomOpRunner(bundle, bundle.artifact(FORMAT))


def judge(bundle: Bundle, run: CustomOpRunner | None = None) -> ParityReport:
    bundle.verify()
    return check_parity(bundle, run or runner(bundle), lambda n: None)


def failed(report: ParityReport) -> set[str]:
    return {check.verdict for check in report.checks if not check.passed}


@pytest.fixture(scope="module")
def ios(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(checkpoint, tmp_path_factory.mktemp("ios") / "bundle")


@pytest.fixture
def copied(ios: Bundle, tmp_path: Path) -> Bundle:
    return copy(ios, tmp_path / "copied")


# Right packages


def assert_right(bundle: Bundle) -> ParityReport:
    """It passes, with much room."""
    report = judge(bundle)
    assert report.passed, [check for check in report.checks if not check.passed]
    worst = [c.sqnr_db_worst for c in report.checks if c.sqnr_db_worst is not None]
    assert min(worst) > report.tolerance.worst_sqnr_db + 6
    return report


def test_a_right_package_passes(ios: Bundle) -> None:
    report = assert_right(ios)
    assert {check.verdict for check in report.checks} == {
        "levels",
        "scales",
        "logits",
        "greedy",
        "context",
    }
    assert (report.activations, report.kv_type) == ("int16", "float32")


def test_lzw_coded_weights_pass(checkpoint: Path, tmp_path: Path) -> None:
    assert_right(export(checkpoint, tmp_path / "out", codec="lzw"))


def test_another_shape_and_float_activations_pass(tmp_path: Path) -> None:
    checkpoint = write_llama(
        tmp_path / "model",
        hidden_size=36,
        intermediate_size=43,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        num_hidden_layers=3,
        tie_word_embeddings=False,
        rope_scaling=LLAMA3_ROPE,
        rope_theta=5e5,
    )
    scheme = QuantConfig(scheme="ternary", group_size=20, sparsity=0.5, embedding="ternary")
    assert_right(export(checkpoint, tmp_path / "out", scheme, activations="float32", codec="auto"))


def test_the_context_may_be_shorter_than_a_call(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "out", context=12)
    assert bundle.artifact(FORMAT).prefill_tokens == 12
    assert_right(bundle)


# Wrong codes and scales, everything sealed again


def patched(bundle: Bundle, file: str, offset: int, data: bytes, **changes: Any) -> Bundle:
    with (bundle.path / file).open("r+b") as out:
        out.seek(offset)
        out.write(data)
    return reseal(bundle, **changes)


def stored(bundle: Bundle, name: str) -> tuple[Location, bytes]:
    """Where a matrix lies, and its blob."""
    at = place(bundle, name, FORMAT)
    return at, (bundle.path / at.file).read_bytes()[at.offset : at.offset + at.n_bytes]


def with_flipped_levels(bundle: Bundle, name: str) -> encoder.EncodedTensor:
    """A matrix with the sign of each row's largest level changed, all its checksums right."""
    at, blob = stored(bundle, name)
    with NativeTensor(np.frombuffer(blob, np.uint8)) as opened:
        levels, low, n = opened.decode_rows(), opened.info.level_min, opened.info.n_levels
    rows, cols = np.arange(len(levels)), np.abs(levels.astype(np.int32)).argmax(1)
    levels[rows, cols] *= -1
    changed = encoder.encode(levels, low, n, "raw")
    assert changed.blob.size == at.n_bytes
    assert changed.blob.tobytes() != blob
    return changed


def test_flipped_levels(copied: Bundle) -> None:
    at = place(copied, GATE, FORMAT)
    report = judge(
        patched(copied, at.file, at.offset, with_flipped_levels(copied, GATE).blob.tobytes())
    )
    assert {"levels", "logits"} <= failed(report)
    assert report.checks[0].detail == f"{GATE}: levels differ"


def test_flipped_levels_that_the_manifest_agrees_with(copied: Bundle) -> None:
    """As if the quantizer had given it: only the logits can tell."""
    at, changed = place(copied, GATE, FORMAT), with_flipped_levels(copied, GATE)
    wrong_entry = dataclasses.replace(tensor(copied, GATE), levels_crc32=changed.levels_crc32)
    entries = [wrong_entry if t.name == GATE else t for t in copied.manifest.tensors]
    report = judge(patched(copied, at.file, at.offset, changed.blob.tobytes(), tensors=entries))
    assert report.checks[0].passed
    assert "logits" in failed(report)


def test_a_flipped_bit_of_a_blob_is_an_error(copied: Bundle) -> None:
    at, blob = stored(copied, GATE)
    sealed = patched(
        copied, at.file, at.offset + at.n_bytes // 2, bytes([blob[at.n_bytes // 2] ^ 4])
    )
    with pytest.raises(BundleError, match=GATE.replace(".", r"\.")):
        runner(sealed)


def test_swapped_weights(copied: Bundle) -> None:
    """Of two layers whose matrices have one shape; each keeps its scales."""
    (first, gate), (second, up) = stored(copied, GATE), stored(copied, UP)
    assert first.n_bytes == second.n_bytes
    patched(copied, first.file, first.offset, up)
    sealed = patched(copied, second.file, second.offset, gate)
    report = judge(sealed)
    assert {"levels", "logits"} <= failed(report)
    assert report.checks[0].detail == f"{GATE}: levels differ; {UP}: levels differ"
    places = sealed.artifact(FORMAT).places | {
        GATE: place(sealed, UP, FORMAT),
        UP: place(sealed, GATE, FORMAT),
    }
    agreed = judge(reseal(sealed, artifacts=with_artifact(sealed, FORMAT, places=places)))
    assert agreed.checks[0].passed
    assert "logits" in failed(agreed)


def test_one_wrong_scale(copied: Bundle) -> None:
    """12 to 25 % more or less, in one group of one row."""
    at = place(copied, GATE, FORMAT)
    n_groups = -(-tensor(copied, GATE).cols // tensor(copied, GATE).group_size)
    offset = at.scales_offset + 2 * 3 * n_groups
    code = np.frombuffer((copied.path / at.file).read_bytes()[offset : offset + 2], "<u2")
    report = judge(patched(copied, at.file, offset, (code ^ np.uint16(1 << 8)).tobytes()))
    assert report.checks[0].passed
    assert {"scales", "logits"} <= failed(report)


# Wrong graphs: the levels stay right, only the logits can tell


def wrong(checkpoint: Path, out: Path, owner: Any, name: str, changed: Any) -> set[str]:
    """What fails in a package that was made with one function changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, changed)
        bundle = export(checkpoint, out)
    report = judge(bundle)
    assert report.checks[0].passed
    return failed(report)


def test_a_wrong_rope_base(checkpoint: Path, tmp_path: Path) -> None:
    real = mlpackage.rope_tables

    def changed(model: Any, context: int) -> Any:
        return real(dataclasses.replace(model, rope_theta=20000.0), context)

    assert "logits" in wrong(checkpoint, tmp_path / "out", mlpackage, "rope_tables", changed)


def test_swapped_rope_tables(checkpoint: Path, tmp_path: Path) -> None:
    real = mlpackage.rope_tables
    assert "logits" in wrong(
        checkpoint, tmp_path / "out", mlpackage, "rope_tables", lambda m, c: real(m, c)[::-1]
    )


def test_one_wrong_row_of_a_rope_table(checkpoint: Path, tmp_path: Path) -> None:
    """The last position has the angles of the one before: only the prompt that fills the context
    gets there."""
    real = mlpackage.rope_tables

    def changed(model: Any, context: int) -> Any:
        return tuple(torch.cat([table[:-1], table[-2:-1]]) for table in real(model, context))

    assert "logits" in wrong(checkpoint, tmp_path / "out", mlpackage, "rope_tables", changed)


def with_layer(change: Callable[[Layer, Any, str, Sequence[str], dict[str, Any]], str]) -> Layer:
    """`NetworkBuilder.layer` that asks `change` first."""
    real = custom_op_graph.NetworkBuilder.layer

    def layer(self: Any, kind: str, *inputs: str, name: str = "", **params: Any) -> str:
        def plain(kind: str, *inputs: str, **params: Any) -> str:
            return real(self, kind, *inputs, name=name, **params)

        return change(plain, self, kind, inputs, params)

    return layer


def permuted_heads(
    plain: Layer, builder: Any, kind: str, inputs: Sequence[str], params: dict[str, Any]
) -> str:
    """Outputs of heads by their place in the group first: [KV, G, S, D] -> [S, G, KV, D]."""
    if params.get("axes") == [2, 0, 1, 3]:
        return plain(kind, *inputs, axes=[2, 1, 0, 3])
    return plain(kind, *inputs, **params)


def transposed_heads(
    plain: Layer, builder: Any, kind: str, inputs: Sequence[str], params: dict[str, Any]
) -> str:
    """Queries read as [S, KV, D, G], as if the heads of a group were interleaved."""
    if kind == "reshapeDynamic" and inputs[1] == builder.query_shape:
        m = builder.model
        groups = m.num_attention_heads // m.num_key_value_heads
        read = plain(
            kind, inputs[0], builder._with_tokens(m.num_key_value_heads, m.head_dim, groups)
        )
        return builder.layer("transpose", read, axes=[0, 1, 3, 2])
    return plain(kind, *inputs, **params)


def shown_future(
    plain: Layer, builder: Any, kind: str, inputs: Sequence[str], params: dict[str, Any]
) -> str:
    """Each token sees the one after it."""
    if kind == "greaterThan":
        inputs = (inputs[0], builder.add(inputs[1], builder.scalar(1.0)))
    return plain(kind, *inputs, **params)


def unhidden_slots(
    plain: Layer, builder: Any, kind: str, inputs: Sequence[str], params: dict[str, Any]
) -> str:
    """The slot that the first new token will get counts as used."""
    return plain("greaterThan" if kind == "greaterEqual" else kind, *inputs, **params)


def no_root(
    plain: Layer, builder: Any, kind: str, inputs: Sequence[str], params: dict[str, Any]
) -> str:
    """Norms divide by the mean of squares, not by its root."""
    return plain(
        kind, *inputs, **params | ({"type": "ABS"} if params.get("type") == "SQRT" else {})
    )


GRAPHS = [permuted_heads, transposed_heads, shown_future, unhidden_slots, no_root]


@pytest.mark.parametrize("change", GRAPHS, ids=lambda change: change.__name__)
def test_a_wrong_graph(checkpoint: Path, tmp_path: Path, change: Any) -> None:
    builder = custom_op_graph.NetworkBuilder
    assert "logits" in wrong(checkpoint, tmp_path / "out", builder, "layer", with_layer(change))


def test_keys_read_as_values(checkpoint: Path, tmp_path: Path) -> None:
    """Right within a call, wrong across calls."""
    builder = custom_op_graph.NetworkBuilder
    real = builder._cached
    changed = wrong(
        checkpoint,
        tmp_path / "out",
        builder,
        "_cached",
        lambda self, i, which: real(self, i, 1 - which),
    )
    assert "logits" in changed


# Wrong runners: an app that does not keep the cache as the contract says


class StaleRunner(CustomOpRunner):
    """Puts what is new in the cache `off` slots from where it belongs."""

    off = 0

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        check_room(tokens, position, self.context)
        for at, token in enumerate(tokens, position):
            one = {"input_ids": np.array([token], np.int32), "positions": np.array([at], np.int32)}
            outputs = self._network.predict(one | {"kv_cache": self._cache})
            self._cache[(at + self.off) % self.context] = outputs["kv_new"][0]
        return outputs["logits"]


@pytest.mark.parametrize("off", [0, -1, 1])
def test_a_cache_written_one_slot_off(ios: Bundle, off: int) -> None:
    run = StaleRunner(ios, ios.artifact(FORMAT))
    run.off = off
    verdicts = failed(judge(ios, run))
    assert "logits" in verdicts if off else not verdicts


class ForgetfulRunner(CustomOpRunner):
    """Never writes into the cache."""

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        logits = super().forward(tokens, position)
        self._cache[:] = 0
        return logits


class EndlessRunner(CustomOpRunner):
    """Goes on past the context, in the last slot."""

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        return super().forward(tokens, min(position, self.context - len(tokens)))


@pytest.mark.parametrize(
    ("kind", "verdict"), [(ForgetfulRunner, "logits"), (EndlessRunner, "context")]
)
def test_a_wrong_runner(ios: Bundle, kind: type[CustomOpRunner], verdict: str) -> None:
    assert verdict in failed(judge(ios, kind(ios, ios.artifact(FORMAT))))


# Errors, never a pass


@pytest.mark.parametrize("n_bytes", [0, 1, 1000, -1])
def test_a_truncated_model_is_an_error(copied: Bundle, n_bytes: int) -> None:
    path = copied.path / MODEL
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(BundleError, match=r"model\.mlmodel"):
        judge(copied)
    with pytest.raises(BundleError, match="not a Core ML model"):
        runner(reseal(copied))  # and the interpreter sees it by itself


def test_a_tampered_model_is_an_error(copied: Bundle) -> None:
    at, _ = stored(copied, GATE)
    with (copied.path / at.file).open("r+b") as file:
        file.seek(at.offset + 100)
        file.write(b"\x55\xaa")
    with pytest.raises(BundleError, match="has been changed"):
        judge(copied)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"context": 47}, "kv_cache has first size"), ({"vocab_size": 149}, "logits has first size")],
)
def test_a_manifest_that_is_not_the_packages_is_an_error(
    copied: Bundle, changes: dict[str, int], named: str
) -> None:
    sealed = reseal(copied, interface=dataclasses.replace(copied.manifest.interface, **changes))
    with pytest.raises(BundleError, match="not the package the manifest describes") as caught:
        runner(sealed)
    assert any(named in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"prefill_tokens": 8}, "input_ids"), ({"activations": "float32"}, "int16 activations: True")],
)
def test_an_artifact_that_is_not_the_package_is_an_error(
    copied: Bundle, changes: dict[str, Any], named: str
) -> None:
    sealed = reseal(copied, artifacts=with_artifact(copied, FORMAT, **changes))
    with pytest.raises(BundleError, match="not the package the manifest describes") as caught:
        runner(sealed)
    assert any(named in problem for problem in caught.value.problems)


# Weights in a file beside the package


@pytest.fixture(scope="module")
def beside(ios: Bundle, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same export, as if its weights were too large for a protobuf."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(custom_op, "PROTOBUF_LIMIT_BYTES", (ios.path / MODEL).stat().st_size - 1)
        return export(checkpoint, tmp_path_factory.mktemp("beside") / "bundle")


@pytest.fixture
def copied_beside(beside: Bundle, tmp_path: Path) -> Bundle:
    return copy(beside, tmp_path / "copied")


def test_weights_beside_the_package_pass(beside: Bundle) -> None:
    assert_right(beside)


def test_weights_beside_the_package_are_in_manifest_and_ledger(ios: Bundle, beside: Bundle) -> None:
    artifact = beside.artifact(FORMAT)
    assert SIDE in artifact.files
    assert SIDE not in ios.artifact(FORMAT).files
    assert {p.file for p in artifact.places.values()} == {SIDE}
    assert SIDE in {entry.path for entry in beside.manifest.files}
    n_bytes = (beside.path / SIDE).stat().st_size
    rows = {row.what: row.n_bytes for row in beside.ledger if row.file == SIDE}
    assert sum(rows.values()) == n_bytes
    coded = sum(t.blob_bytes + t.scales_bytes for t in beside.manifest.tensors)
    assert 0 <= n_bytes - coded == rows["alignment"] < 64 * 2 * len(beside.manifest.tensors)
    assert beside.shipped_bytes(artifact) - ios.shipped_bytes(ios.artifact(FORMAT)) < 8192
    assert (beside.path / MODEL).stat().st_size < (ios.path / MODEL).stat().st_size - coded + 8192


def test_codes_beside_the_package_are_the_same_bit_for_bit(ios: Bundle, beside: Bundle) -> None:
    assert beside.artifact(FORMAT).places.keys() == {t.name for t in beside.manifest.tensors}
    for entry in beside.manifest.tensors:
        assert stored(beside, entry.name)[1] == stored(ios, entry.name)[1]
        scales = []
        for bundle in (beside, ios):
            at = place(bundle, entry.name, FORMAT)
            data = (bundle.path / at.file).read_bytes()
            scales.append(data[at.scales_offset : at.scales_offset + entry.scales_bytes])
        assert scales[0] == scales[1]


def test_flipped_levels_beside_the_package(copied_beside: Bundle) -> None:
    at = place(copied_beside, GATE, FORMAT)
    report = judge(
        patched(
            copied_beside, SIDE, at.offset, with_flipped_levels(copied_beside, GATE).blob.tobytes()
        )
    )
    assert {"levels", "logits"} <= failed(report)


@pytest.mark.parametrize("n_bytes", [0, 1000, None])
def test_cut_or_absent_weights_beside_the_package_are_an_error(
    copied_beside: Bundle, n_bytes: int | None
) -> None:
    path = copied_beside.path / SIDE
    data = path.read_bytes()
    path.unlink()
    if n_bytes is not None:
        path.write_bytes(data[:n_bytes])
    with pytest.raises(BundleError, match=r"model-custom-op\.weights"):
        judge(copied_beside)
    with pytest.raises(BundleError, match=r"model-custom-op\.weights"):
        runner(copied_beside)  # and the interpreter sees it by itself

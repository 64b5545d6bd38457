"""Which matrices take the levels of their checkpoint, and the packages that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tinyqmoe
from exporter import encoded
from exporter.backends import registry
from exporter.bundle import EMBEDDING, Bundle
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.config import ExportConfig
from exporter.errors import UsageError
from exporter.estimate.bundle import estimate_bundle
from exporter.quant import int8, plan, ternary
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from runtime_ref.parity import check_parity
from runtime_ref.residency import Residency
from runtime_ref.runners import open_runner
from tests.support import bundles as shared
from tests.support import ternary_models as made
from tests.support.checkpoints import write_llama
from tests.support.command_line import tinyqmoe as command
from tests.support.kinds import write_plain

FORMATS = ("pte", "mlprogram", "custom-op")
UP = "model.layers.1.mlp.up_proj.weight"
MIXED: dict[str, Any] = {"outside": False, "group_size": 64}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ternary layers by 64, and an embedding of floats."""
    folder = tmp_path_factory.mktemp("mixed") / "model"
    return made.write_floats(folder, made.ternary_family(**MIXED), torch.float16)


OWN = ("ternary", ternary.Config(64), True)


@pytest.mark.parametrize(
    ("config", "layers", "embedding"),
    [
        (QuantConfig(), OWN, ("int8", int8.Config(), False)),
        (QuantConfig("ternary"), OWN, ("int8", int8.Config(), False)),
        (QuantConfig(group_size=32), OWN, ("int8", int8.Config(32), False)),
        (QuantConfig(embedding="ternary"), OWN, ("ternary", ternary.Config(), False)),
        (QuantConfig("int8"), ("int8", int8.Config(), False), ("int8", int8.Config(), False)),
        (
            QuantConfig("ternary", group_size=64),
            ("ternary", ternary.Config(64), False),
            ("int8", int8.Config(), False),
        ),
        (
            QuantConfig("ternary", sparsity=0.5),
            ("ternary", ternary.Config(None, 0.5), False),
            ("int8", int8.Config(), False),
        ),
    ],
    ids=repr,
)
def test_own_levels_are_taken_unless_something_else_is_asked_for(
    config: QuantConfig, layers: tuple[Any, ...], embedding: tuple[Any, ...], mixed: Path
) -> None:
    checkpoint = Checkpoint.open(mixed)
    for name, expected in ((UP, layers), (EMBEDDING, embedding)):
        assert plan.plan_matrix(config, checkpoint, name) == plan.MatrixPlan(*expected)
    assert plan.plan_matrix(config, checkpoint, "model.norm.weight") is None
    told = "\n".join(plan.warnings(config, checkpoint))
    assert ("quantized again: 14 matrices, such as" in told) == (not layers[2])
    assert ("--group-size changes nothing for 14" in told) == (config.group_size == 32)


def test_a_checkpoint_of_floats_is_as_before(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_llama(tmp_path))
    assert plan.warnings(QuantConfig(group_size=16), checkpoint) == []
    before = QuantConfig("int8", None, None, "int8").to_dict()
    assert plan.summary(QuantConfig(), checkpoint) == before
    assert {t.scheme for t in quantize(checkpoint, QuantConfig())} == {"int8"}


def all_pass(bundle: Bundle) -> None:
    for artifact in bundle.manifest.artifacts:
        runner = open_runner(bundle, artifact, Residency("stream"), shared.no_progress)
        report = check_parity(bundle, runner, lambda n: None)
        assert report.passed, (artifact.format, [c for c in report.checks if not c.passed])


def greedy(model: Any, ids: list[int], n: int) -> list[int]:
    """The tokens that transformers goes on with."""
    with torch.inference_mode():
        for _ in range(n):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-n:]


LONG_SCALES = "floats, F32, float32 scales"
EXPORTED = (
    *("floats, Qwen3, tied", "bitnet, autobitlinear", "MLX", "GGUF Q1_0", "GGUF TQ2_0"),
    LONG_SCALES,
)


@pytest.mark.parametrize("kind", EXPORTED)
def test_all_packages_hold_the_levels_and_say_the_same_tokens(kind: str, tmp_path: Path) -> None:
    """Parity judges each package; the tokens are compared with transformers on the weights that
    were stored."""
    options, write, group_size = made.STORED[kind]
    model = made.ternary_family(**options | {"num_hidden_layers": 1, "eos_token_id": 259})
    path = write(tmp_path / "model", model)
    config = ExportConfig(QuantConfig(), FORMATS, context=32)
    planned = estimate_bundle(Checkpoint.open(path), config, 32)
    bundle = tinyqmoe.export(path, tmp_path / "out", config=config)
    outside = options.get("outside", True)
    tensors = bundle.manifest.tensors
    assert [(t.scheme, t.group_size, t.own_levels) for t in tensors] == [
        ("ternary", group_size or t.cols, True)
        if outside or t.name != EMBEDDING
        else ("int8", t.cols, False)
        for t in tensors
    ]
    # A plan reads no weights, so it does not know of scales that need 32 bits.
    beyond = {t.name for t in tensors if t.scale_type == "float32"}
    assert bool(beyond) == (kind == LONG_SCALES)
    for before, after in zip(planned.tensors, tensors, strict=True):
        scales_bytes = before.scales_bytes * (2 if after.name in beyond else 1)
        assert (before.scheme, before.group_size, before.own_levels, scales_bytes) == (
            after.scheme, after.group_size, after.own_levels, after.scales_bytes)  # fmt: skip
    said = "ternary" if outside else "int8"
    expected = {
        "scheme": "ternary",
        "group_size": None,
        "sparsity": None,
        "bits_per_weight": None,
        "recover": None,
        "embedding": said,
        "rules": [],
    }
    assert bundle.manifest.quantization == planned.quantization == expected
    if outside:
        assert bundle.manifest.quantization_loss.kl_mean < 1e-6
    rounded = [w for w in bundle.manifest.warnings if "half precision does not hold" in w]
    assert len(rounded) == (kind == LONG_SCALES), rounded
    all_pass(bundle)
    for backend in ("native", "executorch"):
        got = tinyqmoe.generate(bundle, "A kite", backend=backend, max_new_tokens=12).result
        if outside:
            assert got.tokens == greedy(model, got.prompt_tokens, 12)


def test_a_record_of_a_finished_matrix_knows_its_levels(mixed: Path, tmp_path: Path) -> None:
    tensors = list(quantize(Checkpoint.open(mixed), QuantConfig()))[:2]
    encoded.encode_matrices(tensors, tmp_path, "auto")
    finished = encoded.finished(tmp_path)
    assert {n: m.own_levels for n, m in finished.items()} == {t.name: t.own_levels for t in tensors}
    assert sorted(m.own_levels for m in finished.values()) == [False, True]


def test_an_ml_program_refuses_groups_that_do_not_divide(tmp_path: Path) -> None:
    model = made.ternary_family(group_size=64, hidden_size=96, intermediate_size=160)
    checkpoint = Checkpoint.open(made.write_floats(tmp_path, model, torch.float16))
    config = ExportConfig(QuantConfig(), ("mlprogram",), context=16)
    with pytest.raises(UsageError, match="columns are no multiple of 64") as caught:
        registry.check(config, checkpoint)
    assert len(caught.value.problems) == 15
    assert "--coreml-format custom-op" in caught.value.hint
    registry.check(ExportConfig(QuantConfig(), ("pte", "custom-op"), context=16), checkpoint)


def test_an_export_says_whose_levels_they_are(mixed: Path, tmp_path: Path) -> None:
    options = ("--context", "16", "--allow-loss")
    done = command("export", mixed, tmp_path / "own", *options)
    assert done.exit_code == 0, done.output
    assert "the checkpoint's own, exactly, in 14 of 15 matrices" in done.stdout
    assert "quantized again" not in done.stderr
    done = command("export", mixed, tmp_path / "other", *options, "--scheme", "int8")
    assert done.exit_code == 0, done.output
    assert "the checkpoint's own" not in done.stdout
    assert "warning: ternary in the checkpoint, and quantized again: 14 matrices" in done.stderr
    plain = command("export", write_plain(tmp_path / "plain"), tmp_path / "p", *options)
    assert plain.exit_code == 0, plain.output
    assert "the checkpoint's own" not in plain.stdout

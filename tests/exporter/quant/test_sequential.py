"""Layers that are fitted one after the other, against hooks in transformers' dense models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError
from exporter.quant import plan
from exporter.quant.calibration import Calibration
from exporter.quant.config import QuantConfig
from exporter.quant.rate import inverse_factor
from exporter.quant.sequential import FACTOR, SequentialQuantizer
from exporter.quant.tensor import dequantize
from tests.support.bundles import no_progress
from tests.support.checkpoints import write_family
from tests.support.cut_passes import cut_off

WINDOWS, TOKENS = 3, 20
ALL = QuantConfig("ternary", group_size=16, embedding="ternary")
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": False, "num_hidden_layers": 3, "attention_bias": True}),
    ("qwen3", {"num_key_value_heads": 4, "intermediate_size": 33}),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}-{len(shape[1])}")
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    family, options = request.param
    return write_family(tmp_path / "model", family, **options)


def windows() -> torch.Tensor:
    return torch.randint(100, (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(1))


def quantizer(model: Path, folder: Path, config: QuantConfig = ALL) -> SequentialQuantizer:
    checkpoint = Checkpoint.open(model)
    folder.mkdir(exist_ok=True)
    plans = plan.fitted(config, checkpoint)
    return SequentialQuantizer(checkpoint, plans, windows(), Calibration(folder))


def gram(dense: Any, name: str) -> torch.Tensor:
    """The mean x x^T of the inputs of a matrix, float32 [cols, cols]."""
    found = []
    module = dense.get_submodule(name.removesuffix(".weight"))
    handle = module.register_forward_hook(lambda _, args, __: found.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for window in windows():
            dense(window[None], use_cache=False)
    handle.remove()
    x = torch.cat(found)
    return x.T @ x / len(x)


def quantized(made: SequentialQuantizer, name: str) -> torch.Tensor:
    """The weights of a matrix as they become, float32 [rows, cols]."""
    size = made.plans[name].group_size(made.checkpoint.shape(name)[1])
    return torch.cat([dequantize(levels, scales, size) for _, levels, scales in made.blocks(name)])


@pytest.mark.parametrize("only", [None, "attention"])
def test_inputs_are_those_of_a_model_whose_layers_before_are_fitted(
    model: Path, tmp_path: Path, only: str | None
) -> None:
    made = quantizer(model, tmp_path / "work")
    if only:  # the others stay as they are
        made.plans = {n: p for n, p in made.plans.items() if "self_attn" in n}
    made.calibrate(no_progress)
    dense: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    layers = made.checkpoint.config.num_hidden_layers
    for layer in range(layers):
        names = [n for n in made.checkpoint.names if n.startswith(f"model.layers.{layer}.")]
        names = [n for n in names if len(made.checkpoint.shape(n)) == 2]
        for name in names:
            if not made.calibration.has(f"{name}.{FACTOR}"):
                continue  # another matrix stands for it
            found = made.calibration.read(f"{name}.{FACTOR}")
            expected = inverse_factor(gram(dense, name))
            torch.testing.assert_close(
                found, expected, rtol=5e-3, atol=1e-3 * float(expected.abs().max())
            )
        with torch.no_grad():
            for name in (n for n in names if n in made.plans):
                dense.get_parameter(name).copy_(quantized(made, name))
    if only is None:
        head = EMBEDDING if made.checkpoint.config.tie_word_embeddings else HEAD
        expected = inverse_factor(gram(dense, HEAD))
        found = made.calibration.read(f"{head}.{FACTOR}")
        torch.testing.assert_close(
            found, expected, rtol=5e-3, atol=1e-3 * float(expected.abs().max())
        )


@pytest.mark.parametrize("step", range(3))
def test_a_pass_that_was_cut_off_goes_on(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedding and two layers: cut off in the middle of each."""
    model = write_family(tmp_path / "model", "llama")
    whole = quantizer(model, tmp_path / "whole")
    whole.calibrate(no_progress)
    cut = quantizer(model, tmp_path / "cut")
    cut_off(monkeypatch, step + 1, lambda: cut.calibrate(no_progress))
    seen: list[str] = []
    quantizer(model, tmp_path / "cut").calibrate(lambda what, done, _: seen.append(f"{done}"))
    assert seen == [str(i) for i in range(max(1, step), 4)]
    files = [{f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("whole", "cut")]
    assert files[0] == files[1]


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "llama")
    made = quantizer(model, tmp_path / "work")
    made.calibrate(no_progress)
    state = made.passage.states(2).path
    data = bytearray(state.read_bytes())
    data[100] ^= 1
    state.write_bytes(data)
    (tmp_path / "work" / f"{EMBEDDING}.{FACTOR}").unlink()
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        made.calibrate(no_progress)

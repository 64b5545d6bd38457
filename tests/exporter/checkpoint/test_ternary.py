"""Checkpoints that are ternary by themselves: their levels and scales are taken over exactly, and
what is not ternary is told by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint import gguf_types, tensors
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.checkpoint.ternary import TernaryTensor, find_ternary, ternary_levels
from exporter.errors import CheckpointError
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from tests.support import ternary_models as made
from tests.support.checkpoints import edit_config
from tests.support.ternary_models import STORED, change_config, change_tensor

UP = "model.layers.1.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("kind", STORED)
def test_levels_and_scales_are_those_of_the_checkpoint(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "BLOCK_WEIGHTS", 256 * 37)  # blocks that cut quarters and heads
    options, write, group_size = STORED[kind]
    model = made.ternary_family(**options)
    checkpoint = Checkpoint.open(write(tmp_path / "model", model))
    outside = options.get("outside", True)
    expected = made.matrices_of(model)
    for tensor in quantize(checkpoint, QuantConfig()):
        w = expected.pop(tensor.name)
        if tensor.name in (EMBEDDING, HEAD) and not outside:
            assert (tensor.scheme, tensor.own_levels) == ("int8", False)
            continue
        assert (tensor.scheme, tensor.own_levels) == ("ternary", True)
        assert tensor.group_size == (group_size or w.shape[1])
        np.testing.assert_array_equal(tensor.levels, w.sign().numpy())
        np.testing.assert_array_equal(tensor.scales, made.scales_of(w, tensor.group_size).numpy())
        assert torch.equal(tensor.dequantize(), w)
        assert torch.equal(checkpoint.rows(tensor.name, 0, len(w)), w)
    assert not expected


@dataclass(frozen=True)
class InMemory:
    """A matrix of floats that lies in no file."""

    w: Tensor
    dtype = "F32"
    size_bytes = 0
    files = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.w.shape)

    def rows(self, begin: int, end: int) -> Tensor:
        return self.w[begin:end]


@pytest.mark.parametrize("cols", [20, 96, 100, 576, 1500])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256, 512, None])
def test_the_widest_group_is_found(cols: int, group_size: int | None, tmp_path: Path) -> None:
    """Whatever the columns: the last group of a row may be shorter."""
    generator = torch.Generator().manual_seed(cols)
    w = made.random_ternary((40, cols), group_size, torch.float32, 0.4, generator)
    warnings: list[str] = []
    found = find_ternary({"m": InMemory(w)}, warnings, None)["m"]
    assert isinstance(found, TernaryTensor)
    assert found.group_size == (cols if group_size is None else min(group_size, cols))
    assert warnings == []


def test_every_weight_counts() -> None:
    """A change of any weight by one unit in the last place is seen."""
    w = made.random_ternary((3, 96), 32, torch.float32, 0.3, torch.Generator().manual_seed(0))
    levels, scales = ternary_levels(w, 32) or (None, None)
    assert levels is not None
    assert scales is not None
    assert levels.dtype == torch.int8
    assert torch.equal(levels, w.sign().to(torch.int8))
    for at in np.ndindex(*w.shape):
        other = w.clone()
        other[at] = torch.nextafter(other[at], torch.tensor(9.0))
        assert ternary_levels(other, 32) is None
    assert ternary_levels(torch.full((1, 32), float("nan")), 32) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7.5])
@pytest.mark.parametrize("rest", ["ternary", "zeros"])
def test_an_odd_weight_is_named(value: float, rest: str) -> None:
    w = made.random_ternary((9, 96), 32, torch.float32, 0.3, torch.Generator().manual_seed(0))
    w[5, 64:] *= rest == "ternary"
    w[5, 70] = value
    warnings: list[str] = []
    found = find_ternary({"m": InMemory(w)}, warnings, None)["m"]
    if (value, rest) == (7.5, "zeros"):  # a scale of its own
        assert isinstance(found, TernaryTensor)
        return
    assert isinstance(found, InMemory)
    assert f"taken as floats: m: weight [5, 70] is {value:g}, and others" in warnings[0]


def test_zeros_and_common_floats_are_not_suspected() -> None:
    reads = []

    class Counted(InMemory):
        def rows(self, begin: int, end: int) -> Tensor:
            reads.append(end - begin)
            return super().rows(begin, end)

    zeros, floats = torch.zeros(1000, 64), torch.randn(1000, 64)
    floats[:130] = 0
    for w in (zeros, floats):
        warnings: list[str] = []
        found = find_ternary({"m": Counted(w)}, warnings, None)["m"]
        assert isinstance(found, Counted)
        assert warnings == []
    assert reads == [1] * 16


# ---- against transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("linear_class", [None, "bitlinear", "autobitlinear"])
def test_bitnet_is_the_model_of_transformers(linear_class: str | None, tmp_path: Path) -> None:
    """Our weights, under transformers' rule for activations, compute what its layers do.

    Layer by layer: a rounding of activations to 8 bits makes large differences of the smallest.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations import bitnet, replace_with_bitnet_linear
    from transformers.utils.quantization_config import BitNetQuantConfig

    model = made.ternary_family(**made.BITNET)
    directory = made.write_bitnet(tmp_path / "model", model, linear_class=linear_class)
    checkpoint = Checkpoint.open(directory)
    assert any("activations of 8 bits" in warning for warning in checkpoint.warnings)
    given = BitNetQuantConfig(["lm_head"], linear_class=linear_class or "bitlinear")
    theirs: Any = AutoModelForCausalLM.from_config(model.config)
    theirs = replace_with_bitnet_linear(theirs, ["lm_head"], given).eval()
    state = made.load_file(directory / made.WEIGHTS)
    tokens = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(1))
    compared = []

    def compare(module: Any, args: tuple[Tensor], output: Tensor) -> None:
        name = f"{names[module]}.weight"
        weight = checkpoint.rows(name, 0, checkpoint.shape(name)[0])
        got = bitnet.ActQuant.apply(args[0]) @ weight.T
        torch.testing.assert_close(got, output, rtol=1e-5, atol=1e-5)
        compared.append(name)

    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        if linear_class == "autobitlinear":  # as BitNetDeserialize does while it loads
            packed = {n: t for n, t in state.items() if t.dtype == torch.uint8}
            state |= {n: bitnet.unpack_weights(t, torch.float32) for n, t in packed.items()}
        theirs.load_state_dict(_as_float32(state), strict=False)
        kinds = (bitnet.BitLinear, bitnet.AutoBitLinear)
        names = {module: n for n, module in theirs.named_modules() if isinstance(module, kinds)}
        for module in names:
            module.register_forward_hook(compare)
        theirs(tokens)
    assert sorted(compared) == [n for n in sorted(checkpoint.names) if checkpoint.ternary(n)]
    assert len(compared) == 14


def _as_float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t if t.dtype == torch.uint8 else t.float() for n, t in state.items()}


# ---- what is not ternary -------------------------------------------------------------------------


def test_one_odd_weight_of_floats_makes_it_floats(tmp_path: Path) -> None:
    directory = made.write_floats(tmp_path / "model", made.ternary_family(), torch.float32)

    def change(w: Tensor) -> Tensor:
        w[100, 130] = 0.5
        return w

    change_tensor(directory, UP, change)
    checkpoint = Checkpoint.open(directory)
    (warning,) = checkpoint.warnings
    assert f"{UP}: weight [100, 130] is 0.5, and others of its 32 are 0 or ±0." in warning
    schemes = {t.name: t.scheme for t in quantize(checkpoint, QuantConfig())}
    assert {n for n, scheme in schemes.items() if scheme != "ternary"} == {UP}


def set_code(name: str, row: int, byte: int, value: int) -> Any:
    """Puts a byte into a packed matrix of a folder."""

    def change(packed: Tensor) -> Tensor:
        packed.view(torch.uint8)[row, byte] = value
        return packed

    return lambda directory: change_tensor(directory, name, change)


def damaged(pack: Any, at: int, value: int) -> Any:
    """A packer of GGUF blocks that puts a byte into row 2 of every matrix."""

    def packed(w: Tensor) -> tuple[np.ndarray, int]:
        blocks, number = pack(w)
        blocks[2, at] = value
        return blocks, number

    return packed


@pytest.mark.parametrize(
    ("options", "pack", "told"),
    [
        ({"group_size": 64}, damaged(made.q2_0, 18 + 2 + 1, 0b11100100), "weight [2, 71] is "),
        ({}, damaged(made.q2_0_fork, 2, 0b11100100), "weight [2, 3] is "),
        ({"group_size": 256}, damaged(made.tq2_0, 0, 0b11100100), "weight [2, 96] is "),
    ],
)
def test_a_code_that_is_no_level_is_refused(
    options: dict[str, Any], pack: Any, told: str, tmp_path: Path
) -> None:
    """The code 3 is +2 d."""
    path = made.gguf_by(pack)(tmp_path / "m", made.ternary_family("qwen3", **options))
    with pytest.raises(
        CheckpointError, match="stored in a ternary type, and are not ternary: 15"
    ) as caught:
        Checkpoint.open(path)
    assert any(told in problem for problem in caught.value.problems), caught.value
    assert len(caught.value.problems) == 9
    assert caught.value.problems[-1] == "and 7 more"
    assert "original weights" in caught.value.hint


def bias_off(directory: Path) -> None:
    name = UP.replace("weight", "biases")
    change_tensor(directory, name, lambda b: torch.where(b == b[0, 0], 2 * b, b))


MLX = "model.layers.1.mlp.up_proj"
REFUSED: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "bitnet, the code 3": (
        made.write_bitnet, set_code(UP, 5, 9, 0b01110101), (f"{UP}: weight [261, 9] is ",)),
    "MLX, the code 3": (
        made.write_mlx, set_code(UP, 5, 32 + 1, 0b11100100), (f"{UP}: weight [5, 135] is ",)),
    "MLX, a bias that is not -scale": (
        made.write_mlx, bias_off, (f"{UP}: weight [0, ", "of its 32")),
    "MLX, 4 bits": (
        made.write_mlx, lambda d: change_config(d, "quantization", bits=4),
        ("model.embed_tokens.weight is packed by MLX at 4 bits (affine), supported: 2",)),
    "MLX, 4 bits in one module": (
        made.write_mlx,
        lambda d: change_config(d, "quantization", **{MLX: {"bits": 4, "group_size": 128}}),
        (f"{UP} is packed by MLX at 4 bits",)),
    "MLX, another mode": (
        made.write_mlx, lambda d: change_config(d, "quantization", mode="mxfp4"), ("(mxfp4)",)),
    "MLX, no word of it": (
        made.write_mlx, lambda d: edit_config(d, remove=("quantization", "quantization_config")),
        ("at None bits",)),
    "MLX, a group that does not divide": (
        made.write_mlx, lambda d: change_config(d, "quantization", group_size=96),
        ("group_size 96, the matrix has 256 columns",)),
    "MLX, scales of another group": (
        made.write_mlx, lambda d: change_config(d, "quantization", group_size=64),
        (f"{UP}: its scales have shape [512, 2], expected [512, 4]",)),
    "MLX, scales that are integers": (
        made.write_mlx,
        lambda d: change_tensor(d, f"{MLX}.scales", lambda s: (100 * s).to(torch.uint8)),
        (f"{UP}: its scales are U8, supported: F64",)),
    "bitnet, two scales": (
        made.write_bitnet, lambda d: change_tensor(d, f"{UP}_scale", lambda s: torch.ones(2)),
        (f"{UP}: its scales have shape [2]",)),
    "bitnet, quantized while it runs": (
        made.write_bitnet,
        lambda d: change_config(d, "quantization_config", quantization_mode="online"),
        ("quantized already by bitnet", "original checkpoint")),
    "bitnet, with a norm before each product": (
        made.write_bitnet, lambda d: change_config(d, "quantization_config", use_rms_norm=True),
        ("quantized already by bitnet", "original checkpoint")),
    "bitnet, rows that are no multiple of four": (
        made.write_bitnet, lambda d: change_tensor(d, UP, lambda w: w[:-1]),
        ("quantized already by bitnet",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_packed_otherwise_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    write, change, told = REFUSED[kind]
    model = made.ternary_family(**made.BITNET if write is made.write_bitnet else {})
    change(write(tmp_path / "model", model))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path / "model")
    assert all(part in str(caught.value) for part in told), caught.value
    assert caught.value.hint


def test_q2_0_whose_places_fit_neither_kind_is_refused(tmp_path: Path) -> None:
    def other(w: Tensor) -> tuple[np.ndarray, int]:
        return np.zeros((len(w), w.shape[1] // 32 * 10), np.uint8), 42

    path = made.gguf_by(other)(tmp_path / "model", made.ternary_family())
    with pytest.raises(CheckpointError, match="Q2_0 tensors fit neither of Q2_0 and Q2_0 "):
        Checkpoint.open(path)


def test_q2_0_that_may_be_either_kind_is_refused() -> None:
    """128 weights take 36 or 34 bytes, and both are filled up to 64."""
    with pytest.raises(ValueError, match="fit both of"):
        gguf_types.q2_0_kind([((1, 128), 64)], 32)
    assert gguf_types.q2_0_kind([((1, 128), 64), ((64, 128), 64 * 36)], 32) == gguf_types.Q2_0
    assert gguf_types.q2_0_kind([((1, 64), 32), ((1, 128), 64)], 32) == gguf_types.Q2_0


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    def pack(w: Tensor) -> tuple[np.ndarray, int]:
        return np.zeros((len(w), 66), np.uint8), 35

    path = made.gguf_by(pack)(tmp_path / "m", made.ternary_family(hidden_size=96))
    with pytest.raises(CheckpointError, match="rows of 96 values are no whole blocks of TQ2_0"):
        Checkpoint.open(path)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    directory = made.write_floats(tmp_path / "model", made.ternary_family(), torch.float16)
    checkpoint = Checkpoint.open(directory)
    change_tensor(directory, DOWN, lambda w: w + 1)
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        list(quantize(checkpoint, QuantConfig()))


# ---- what else is done with the weights ----------------------------------------------------------


def test_the_factor_of_yarn_leaves_queries_ternary(tmp_path: Path) -> None:
    directory = made.write_floats(tmp_path / "model", made.ternary_family(), torch.float16)
    plain = Checkpoint.open(directory)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "attention_factor": 1.3}
    edit_config(directory, rope_parameters=yarn | {"original_max_position_embeddings": 64})
    stretched = Checkpoint.open(directory)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert stretched.ternary(name) is not None
    (_, levels, scales), *_ = stretched.ternary(name).level_blocks()  # type: ignore[union-attr]
    (_, same, before), *_ = plain.ternary(name).level_blocks()  # type: ignore[union-attr]
    assert torch.equal(levels, same)
    assert torch.equal(scales, before * 1.3)


def test_an_adapter_makes_floats_of_what_it_changes(tmp_path: Path) -> None:
    from tests.support.kinds import edit_json, put

    model = made.ternary_family("qwen3")
    path = made.gguf_by(made.q2_0_fork)(tmp_path / "model", model)
    name = "model.layers.0.self_attn.o_proj"
    pair = {"lora_A.weight": torch.ones(2, 256), "lora_B.weight": torch.ones(256, 2)}
    (tmp_path / "lora").mkdir()
    put(
        tmp_path / "lora",
        {f"base_model.model.{name}.{part}": w for part, w in pair.items()},
        "adapter_model.safetensors",
    )
    edit_json(tmp_path / "lora" / "adapter_config.json", peft_type="LORA", r=2, lora_alpha=2)
    checkpoint = Checkpoint.open(path, adapter=str(tmp_path / "lora"))
    floats = {n for n in made.matrices_of(model) if checkpoint.ternary(n) is None}
    assert floats == {f"{name}.weight"}
    expected = made.matrices_of(model)[f"{name}.weight"] + 2
    torch.testing.assert_close(checkpoint.rows(f"{name}.weight", 0, 256), expected)

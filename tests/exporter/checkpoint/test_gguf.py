"""GGUF files: every type against transformers' own reader, and the model that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from exporter.checkpoint import tensors
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.checkpoint.gguf_types import FLOAT_TYPES, QUANTIZED_TYPES
from exporter.errors import CheckpointError
from exporter.models.config import rope_frequencies
from exporter.models.layers import DenseLayers
from tests.support.gguf_files import write_gguf

TOKENS = torch.randint(0, 256, (1, 30), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits(checkpoint: Checkpoint) -> torch.Tensor:
    layers = DenseLayers(lambda name: torch.cat([block for _, block in checkpoint.blocks(name)]))
    network = checkpoint.network(TOKENS.shape[1], layers).eval()
    return network.logits(network.hidden(TOKENS, torch.tensor([0])))[0]


def check_logits(path: Path, model: Any) -> Checkpoint:
    checkpoint = Checkpoint.open(path)
    with torch.inference_mode():
        expected = model(TOKENS).logits[0]
    torch.testing.assert_close(logits(checkpoint), expected, rtol=2e-4, atol=2e-4)
    return checkpoint


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
        ("llama", {"num_key_value_heads": 1, "num_attention_heads": 8}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    ],
)
def test_the_model_is_the_one_that_was_written(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "BLOCK_WEIGHTS", 256 * 9)  # blocks that cut heads
    path = tmp_path / "model-F32.gguf"
    checkpoint = check_logits(path, write_gguf(path, family, **options))
    assert checkpoint.warnings == ()
    assert (checkpoint.bos_token_id, checkpoint.eos_token_ids) == (256, (257,))


@pytest.mark.parametrize("name", [*FLOAT_TYPES, *QUANTIZED_TYPES])
def test_weights_are_those_of_transformers_reader(name: str, tmp_path: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = tmp_path / "model.gguf"
    model = write_gguf(path, kind=Type[name])
    checkpoint = Checkpoint.open(path)
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    for tensor in checkpoint.names:
        got = torch.cat([block for _, block in checkpoint.blocks(tensor)])
        expected = torch.as_tensor(np.asarray(theirs[tensor])).float()
        is_float = name in FLOAT_TYPES or expected.ndim == 1
        assert torch.equal(got, expected if is_float else expected.half().float()), tensor
    vectors = sum(1 for n in checkpoint.names if len(checkpoint.shape(n)) == 1)
    matrices = len(checkpoint.names) - vectors
    counts = {"F32": vectors + matrices} if name == "F32" else {"F32": vectors, name: matrices}
    assert checkpoint.origin.stored_as == dict(sorted(counts.items()))


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model-F32.gguf")
    assert Checkpoint.open(tmp_path).path == tmp_path / "model-F32.gguf"
    write_gguf(tmp_path / "model-F16.gguf", kind=Type.F16)
    with pytest.raises(CheckpointError, match=r"2 GGUF models: model-F16\.gguf, model-F32\.gguf"):
        Checkpoint.open(tmp_path)


def test_factors_of_the_rope_frequencies(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    write_gguf(tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors})
    plain = 1 / 10000 ** (torch.arange(0, 64, 2).float() / 64)
    got = rope_frequencies(Checkpoint.open(tmp_path / "model.gguf").config)
    torch.testing.assert_close(got, plain / torch.from_numpy(factors))


def test_linear_and_yarn_rope(tmp_path: Path) -> None:
    for kind, fields in {
        "linear": {},
        "yarn": {"rope.scaling.original_context_length": 64},
    }.items():
        path = tmp_path / f"{kind}.gguf"
        scaling = {"rope_type": kind, "factor": 4.0}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = 64
        model = write_gguf(
            path,
            fields={"rope.scaling.type": kind, "rope.scaling.factor": 4.0, **fields},
            rope_scaling=scaling,
        )
        check_logits(path, model)


def unknown_type(weight: torch.Tensor) -> tuple[np.ndarray, int]:
    """Blocks of a type that no library names, as a fork of llama.cpp may write them."""
    return np.zeros((weight.shape[0], 7), np.uint8), 143


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": {"expert_count": 8}}, "expert_count is 8"),
        ({"fields": {"attention.sliding_window": 16}}, "attention.sliding_window is 16"),
        ({"tensors": {"blk.0.extra.weight": np.ones((2, 2), np.float32)}}, "is not part of this"),
        ({"pack": unknown_type}, "is type 143, supported: "),
    ],
)
def test_what_is_not_computed_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", **options)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path / "model.gguf")
    assert message in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("kept", [3, 100, -5])
def test_a_damaged_file_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="not a GGUF file that can be read"):
        Checkpoint.open(path)


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tokenizer=False)
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read") as caught:
        Checkpoint.open(tmp_path / "model.gguf")
    assert "another GGUF file" in caught.value.hint


def test_an_architecture_that_is_not_read(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="architecture 'mamba'"):
        Checkpoint.open(tmp_path / "model.gguf")

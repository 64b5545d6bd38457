"""Checkpoints as people have them: what transformers reads gives the same logits, and all else is
refused with its cause and a next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.bundle import Bundle
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError, UsageError
from exporter.models.layers import DenseLayers
from tests.support.checkpoints import copy, write_family
from tests.support.command_line import one_error, tinyqmoe
from tests.support.kinds import COMMIT, KINDS, cache_root, config, write_plain

TOKENS = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("plain") / "model")


@torch.inference_mode()
def our_logits(checkpoint: Checkpoint) -> torch.Tensor:
    """Logits over the weights as the exporter reads them, float32 [S, V]."""
    layers = DenseLayers(lambda name: torch.cat([block for _, block in checkpoint.blocks(name)]))
    network = checkpoint.network(TOKENS.shape[1], layers).eval()
    return network.logits(network.hidden(TOKENS, torch.tensor([0])))[0]


@torch.inference_mode()
def their_logits(directory: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    logits: torch.Tensor = model(TOKENS).logits[0]
    return logits


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.refused])
def test_what_is_read_is_the_model_of_transformers(name: str, plain: Path, tmp_path: Path) -> None:
    kind, directory = KINDS[name], copy(plain, tmp_path / "model")
    kind.change(directory)
    checkpoint = Checkpoint.open(directory)
    expected = their_logits(directory if kind.by_transformers else plain)
    torch.testing.assert_close(our_logits(checkpoint), expected, rtol=2e-4, atol=2e-4)
    told = "\n".join(checkpoint.warnings)
    assert len(checkpoint.warnings) == len(kind.told)
    assert all(part in told for part in kind.told), told


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.refused])
def test_what_is_refused_is_told_in_one_line(name: str, plain: Path, tmp_path: Path) -> None:
    kind, directory = KINDS[name], copy(plain, tmp_path / "model")
    kind.change(directory)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert all(part in str(caught.value) for part in kind.told), caught.value
    assert len(caught.value.problems) <= 1
    assert caught.value.hint


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_the_attention_factor_of_yarn_reaches_every_family(family: str, tmp_path: Path) -> None:
    options = {"attention_bias": True} if family == "llama" else {}
    write_family(tmp_path, family, vocab_size=260, **options)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "attention_factor": 1.5}
    config(rope_parameters=yarn | {"original_max_position_embeddings": 64})(tmp_path)
    ours = our_logits(Checkpoint.open(tmp_path))
    torch.testing.assert_close(ours, their_logits(tmp_path), rtol=2e-4, atol=2e-4)


def test_many_layers_that_lack_the_same_are_one_line(plain: Path, tmp_path: Path) -> None:
    directory = copy(plain, tmp_path / "model")
    config(num_hidden_layers=30)(directory)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert len(caught.value.problems) == 9
    assert "q_proj.weight [48, 48] is missing (in 28 layers)" in str(caught.value)


def test_a_root_of_the_hub_s_cache(plain: Path, tmp_path: Path) -> None:
    directory = copy(plain, tmp_path / "models--owner--name")
    cache_root(directory)
    checkpoint = Checkpoint.open(directory)
    assert (checkpoint.origin.repo_id, checkpoint.origin.revision) == ("owner/name", COMMIT)
    (directory / "refs" / "main").unlink()
    with pytest.raises(CheckpointError, match="with 2 snapshots") as caught:
        Checkpoint.open(directory)
    assert "give the directory of one" in caught.value.hint


def test_a_revision_of_a_local_model_is_refused(plain: Path) -> None:
    with pytest.raises(UsageError, match="on this machine"):
        Checkpoint.open(plain, revision="main")


# ---- through the command line --------------------------------------------------------------------


def test_an_export_ends_with_its_warnings(plain: Path, tmp_path: Path) -> None:
    directory = copy(plain, tmp_path / "model")
    for name in ("no end token", "code of its own"):
        KINDS[name].change(directory)
    out = tmp_path / "out"
    out.mkdir()  # an empty directory is as good as none
    options = ("--scheme", "int8", "--context", "32")
    done = tinyqmoe("export", directory, out, *options)
    assert done.exit_code == 0, done.output
    warnings = Bundle.open(out).manifest.warnings
    assert len(warnings) == 2
    last = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert last == [f"warning: {warning}" for warning in warnings]


def test_a_refusal_comes_before_any_work(plain: Path, tmp_path: Path) -> None:
    directory = copy(plain, tmp_path / "model")
    KINDS["a template that raises TypeError"].change(directory)
    message = one_error(tinyqmoe("export", directory, tmp_path / "out"), 3)
    assert "does not render: TypeError" in message
    assert not list(tmp_path.glob("*out*"))

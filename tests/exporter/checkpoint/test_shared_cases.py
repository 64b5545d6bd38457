"""Checkpoints as people have them, by the scripts that lie beside the development data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError
from tests.support.paths import DATA

CASES = DATA.parent / "cases"
SCRIPTS = sorted(p for p in CASES.glob("*.py") if p.stem != "common")

# What is said of those that are refused; all others open.
REFUSED = {
    "bin_only": "the weights are pickled PyTorch files",
    "gguf_only": "is of the architecture None, which is not supported",
    "lfs_pointer_tokenizer": "only a git-lfs pointer is there",
    "lora_adapter_only": "is a LoRA adapter, not a model",
    "lora_beside_full": "has full weights and a LoRA adapter beside them",
    "meta_names": "Meta's original names",
    "quant_bnb4": "the weights are quantized already by bitsandbytes",
    "template_type_error": "the chat template does not render: TypeError",
}
# What is warned of at the end of an export; of the others nothing.
WARNED = {
    "quant_bitnet_packed": "trained with activations of 8 bits",
    "quant_config_left": "config.json says that the weights are quantized",
    "template_raises": "the chat template needs a system message",
    "tokenizer_grown_pad": "tokens of the tokenizer that the model lacks: 1",
    "type_qwen2": "tokens of the tokenizer that the model lacks: 1",
}


def made(script: Path, folder: Path) -> Path:
    """The checkpoint that a script makes."""
    if "smol" in script.read_text(encoding="utf-8") and "SMOL_DIR" not in os.environ:
        pytest.skip("NOT TESTED: SMOL_DIR names no folder of SmolLM2, of whose tokenizer this is")
    result = subprocess.run(
        [sys.executable, script, folder], cwd=CASES, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.skipif(not SCRIPTS, reason=f"NOT TESTED: {CASES} has no scripts")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_checkpoint_as_people_have_them(script: Path, tmp_path: Path) -> None:
    folder = made(script, tmp_path / script.stem)
    if refused := REFUSED.get(script.stem):
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(folder)
        assert refused in "\n".join([caught.value.what, *caught.value.problems])
        assert caught.value.hint
        return
    warnings = Checkpoint.open(folder).warnings
    expected = WARNED.get(script.stem)
    assert [expected in warning for warning in warnings] == ([True] if expected else [])


def test_every_case_that_is_named_is_there() -> None:
    if not SCRIPTS:
        pytest.skip(f"NOT TESTED: {CASES} has no scripts")
    assert {*REFUSED, *WARNED} <= {script.stem for script in SCRIPTS}

"""The memory of an export: streamed coding, the estimate, and `--max-ram`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from exporter import memory, pipeline
from exporter.bundle import Bundle
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.cli import app
from exporter.codec import encoder
from exporter.config import ExportConfig
from exporter.errors import OutOfSpaceError, UsageError
from exporter.estimate import export_memory
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from exporter.reference.loss import head_positions
from tests.support.bundles import TERNARY, no_progress
from tests.support.checkpoints import write_llama

MB = 10**6


# ---- sizes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("2GB", 2_000_000_000),
        ("900MB", 900_000_000),
        ("1.5 GB", 1_500_000_000),
        ("2GiB", 2 << 30),
        ("512mib", 512 << 20),
        ("123456", 123456),
        ("64 kB", 64_000),
        (" 1TB ", 10**12),
        ("7 B", 7),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert memory.parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GB", "lots", "2GBs", "-1GB", "0", "0.2", "1e9", "1,5GB", "2 G B", "nan", "inf", "٣GB"],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size such as 2GB"):
        memory.parse_size(text)


def test_a_wrong_size_is_a_usage_error_of_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app.app, ["export", "model", str(tmp_path / "out"), "--max-ram", "lots"]
    )
    assert result.exit_code == 2
    assert "--max-ram" in result.stderr
    assert "2GB" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_peak_is_at_least_what_is_there_now() -> None:
    assert MB < memory.resident_bytes() <= memory.peak_bytes()  # read in this order


# ---- coding in blocks


@pytest.mark.parametrize("codec", ["auto", "lzw", "raw"])
@pytest.mark.parametrize("scheme", ["ternary", "int8"])
def test_blocks_and_files_change_no_byte(
    tmp_path: Path, codec: encoder.Codec, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    low, n = (-1, 3) if scheme == "ternary" else (-127, 255)
    levels = np.clip(rng.normal(0, n / 6, (333, 257)), low, low + n - 1).astype(np.int8)
    whole = encoder.encode(levels, low, n, codec)
    (tmp_path / "levels").write_bytes(levels.tobytes())
    mapped = np.memmap(tmp_path / "levels", np.int8, "r", shape=levels.shape)
    monkeypatch.setattr(encoder, "BLOCK_BYTES", 1000)
    streamed = encoder.encode(mapped, low, n, codec, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == streamed.blob.tobytes() == whole.blob.tobytes()
    for field in ("header", "codec", "entropy_bits", "zeros", "levels_crc32", "sizes_bytes"):
        assert getattr(streamed, field) == getattr(whole, field)
    assert whole.zeros == np.mean(levels == 0)


def test_levels_lie_in_a_file_without_a_name(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_llama(tmp_path / "model"))
    (tmp_path / "scratch").mkdir()
    for tensor in quantize(checkpoint, QuantConfig("ternary"), scratch=tmp_path / "scratch"):
        assert isinstance(tensor.levels, np.memmap)
        assert list((tmp_path / "scratch").iterdir()) == []


# ---- the bound


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One matrix of 31 million weights, and little else."""
    return write_llama(
        tmp_path_factory.mktemp("large") / "model",
        dtype=torch.bfloat16,
        vocab_size=60_000,
        hidden_size=512,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )


def in_a_process(script: str, *arguments: str | Path, **environment: str) -> Any:
    """What the script prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


CODE = """
import sys
from pathlib import Path
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.codec import encoder
from exporter.encoded import encode_matrices
from exporter.memory import peak_bytes
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from exporter.reference.loss import head_positions
encoder.BLOCK_BYTES = 1 << 20
def code(model):
    tensors = quantize(Checkpoint.open(model), QuantConfig("ternary"), scratch=Path(sys.argv[3]))
    encode_matrices(tensors, Path(sys.argv[3]), "auto")
    return peak_bytes()
before = code(sys.argv[1])
print(code(sys.argv[2]) - before)
"""


# What glibc keeps in holes of its heap differs from run to run by 20 MB; blocks of their own go
# back when freed.
BLOCKS_OF_THEIR_OWN = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def test_coding_holds_neither_levels_nor_blob(large: Path, tmp_path: Path) -> None:
    """30.7 MB each."""
    small = write_llama(tmp_path / "small")
    assert in_a_process(CODE, small, large, tmp_path, **BLOCKS_OF_THEIR_OWN) < 15 * MB


LOSS = """
import sys
from pathlib import Path
import torch
from exporter.bundle import EXACT
from exporter.memory import peak_bytes, release_free_memory, resident_bytes
from exporter.quant.config import QuantConfig
from exporter.reference.loss import quantization_loss
from exporter.reference.loss_text import LossText
from tests.support.bundles import encode
parts = encode(Path(sys.argv[1]), Path(sys.argv[2]), QuantConfig("int8"))
def measure(n):
    text = LossText("ids", [list(range(n))])
    quantization_loss(parts.checkpoint, parts.encoded, EXACT, text, lambda n: None)
measure(32)
release_free_memory()
before = resident_bytes()
measure(512)
print(peak_bytes() - before)
"""


def test_comparing_holds_the_logits_of_some_positions(tmp_path: Path) -> None:
    """Those of all 512 are 537 MB, of two models; and heaps of threads once kept 1.7 GB."""
    model = write_llama(tmp_path / "model", vocab_size=1 << 17, hidden_size=32, num_hidden_layers=1)
    growth = in_a_process(LOSS, model, tmp_path / "work")
    logits = 2 * 4 * (1 << 17) * head_positions(1 << 17)
    assert logits < growth < 2.5 * logits


HASH = """
import sys
import numpy as np
from exporter.codec import weight_file
from exporter.memory import peak_bytes
weight_file.BLOCK_WEIGHTS = 1 << 20
def hash_blob(path, rows):
    coded = np.memmap(path, np.uint8, "r")
    pieces = [weight_file.Piece("int8", rows * 1000, 0, coded.size)]
    weight_file.sha256_of(coded, pieces, lambda n: None)
    return peak_bytes()
before = hash_blob(sys.argv[1], 10)
print(hash_blob(sys.argv[2], 30_000) - before)
"""


def test_expanding_holds_no_coded_file(tmp_path: Path) -> None:
    for name, rows in (("small", 10), ("large", 30_000)):
        levels = np.random.default_rng(0).integers(-127, 128, (rows, 1000)).astype(np.int8)
        encoder.encode(levels, -127, 255, "raw", tmp_path / name)
    assert (tmp_path / "large").stat().st_size > 30 * MB
    assert (
        in_a_process(HASH, tmp_path / "small", tmp_path / "large", **BLOCKS_OF_THEIR_OWN) < 15 * MB
    )


EXPORT = """
import json
import sys
from pathlib import Path
from exporter import pipeline
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import OutOfSpaceError
from exporter.memory import peak_bytes
from exporter.quant.config import QuantConfig
model, out, format_name, quantization = sys.argv[1:]
quantization = QuantConfig.from_dict(json.loads(quantization))
calibration = None if quantization.at_rate else "none"
config = pipeline.ExportConfig(quantization, formats=(format_name,), calibration=calibration)
def export(name, bound):
    pipeline.export(model, Path(out) / name, config, lambda *_: None, max_ram=bound)
try:
    export("refused", 1)
except OutOfSpaceError as error:
    smallest = int(error.hint.split()[2].removesuffix("MB")) * 10**6
    bound = smallest + 10**7  # the process has grown by having been refused
export("bounded", bound)
print(peak := peak_bytes())
export("free", None)
print([bound, peak])
"""


@pytest.mark.parametrize(
    "format_name", ["pte", pytest.param("mlprogram", marks=pytest.mark.long), "custom-op"]
)
def test_an_export_stays_within_the_smallest_bound(
    large: Path, tmp_path: Path, format_name: str
) -> None:
    check_bound(large, tmp_path, format_name, scheme="ternary")


@pytest.mark.long
def test_a_calibrated_export_stays_within_the_smallest_bound(tmp_path: Path) -> None:
    """Most memory is that of factoring the Gram matrix of the widest input."""
    shape = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    model = write_llama(tmp_path / "wide", tokenizer=True, vocab_size=260, **shape, **heads)
    (tmp_path / "out").mkdir()
    check_bound(model, tmp_path / "out", "custom-op", bits_per_weight=4)


def check_bound(model: Path, out: Path, format_name: str, **quantization: Any) -> None:
    """Exports within the smallest bound, and without one: the files are the same."""
    bound, peak = in_a_process(EXPORT, model, out, format_name, json.dumps(quantization))
    assert peak < bound
    assert peak > 0.7 * bound, "the estimate is far above what happens"
    bounded, free = (Bundle.open(out / name) for name in ("bounded", "free"))
    bounded.verify()
    assert bounded.manifest.files == free.manifest.files
    assert sorted(f.name for f in out.iterdir()) == ["bounded", "free"]


def test_a_bound_that_is_too_small_is_refused_before_work(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    config = ExportConfig(TERNARY, calibration="none")
    with pytest.raises(
        OutOfSpaceError, match=r"is too little: .* takes the process up to"
    ) as caught:
        pipeline.export(checkpoint, out, config, no_progress, max_ram=100 * MB)
    assert re.fullmatch(r"give --max-ram \d+MB or more", caught.value.hint)
    assert not out.parent.exists()
    result = CliRunner().invoke(
        app.app, ["export", str(checkpoint), str(out), "--max-ram", "100 MB"]
    )
    assert result.exit_code == 4
    assert "give --max-ram" in result.stderr


def test_the_estimate_follows_model_and_options(
    checkpoint: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for measured in ("resident_bytes", "peak_bytes"):  # else what other tests took decides
        monkeypatch.setattr(export_memory, measured, lambda: 100 * MB)

    def most(path: Path, context: int = 64, **options: Any) -> export_memory.Stage:
        config = ExportConfig(QuantConfig("ternary"), calibration="none", **options)
        return max(
            export_memory.stages(Checkpoint.open(path), config, context),
            key=lambda stage: stage.n_bytes,
        )

    small = most(checkpoint)
    assert most(large).n_bytes > small.n_bytes
    assert most(checkpoint, 500_000).n_bytes > small.n_bytes + 500 * MB  # the cache
    assert (
        most(checkpoint, formats=("pte", "mlprogram")).n_bytes > small.n_bytes + 200 * MB
    )  # more is imported

"""Exports that are cut off: what is left at any moment, what `--resume` goes on from, and what it
refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from exporter import encoded, pipeline, staging
from exporter.backends import registry
from exporter.bundle import Bundle
from exporter.cli import app
from exporter.config import ExportConfig
from exporter.errors import CheckpointError, OutOfSpaceError, UsageError
from exporter.quant.config import QuantConfig
from tests.support.bundles import TERNARY, no_progress, write_small_bundle
from tests.support.checkpoints import copy, write_llama

FORMAT = "custom-op"  # the package that is made fastest
KILL_SECONDS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of the smallest shape: 15 matrices."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    return write_llama(
        directory,
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )


MATRICES = 15


def export(model: Path, out: Path, quantization: QuantConfig = TERNARY, **options: Any) -> Bundle:
    calibration = "none" if quantization.is_fitted else None
    config = ExportConfig(quantization, (FORMAT,), calibration=calibration)
    return pipeline.export(model, out, config, no_progress, **options)


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What an export makes that nothing disturbs."""
    return export(model, tmp_path_factory.mktemp("expected") / "out")


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def check_same(out: Path, expected: Bundle) -> None:
    """Byte for byte, but the time in the manifest; and nothing beside it."""
    made = Bundle.open(out)
    made.verify()
    assert dataclasses.replace(made.manifest, created="") == dataclasses.replace(
        expected.manifest, created=""
    )
    assert names(out.parent) == [out.name]


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> None:
        raise error

    return function


@pytest.fixture
def interrupted(model: Path, tmp_path: Path) -> Path:
    """OUT of an export that was interrupted when all matrices were coded; alone in its
    directory."""
    out = tmp_path / "place" / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "emit", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            export(model, out)
    assert names(out.parent) == [".out.partial"]
    return out


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the matrices that are coded from now on."""
    seen: list[str] = []
    real = encoded.encode_matrix

    def encode_matrix(tensor: Any, *args: Any) -> Any:
        seen.append(tensor.name)
        return real(tensor, *args)

    monkeypatch.setattr(encoded, "encode_matrix", encode_matrix)
    return seen


# ---- going on


def test_what_is_coded_is_not_coded_again(
    model: Path, interrupted: Path, expected: Bundle, coded: list[str]
) -> None:
    export(model, interrupted, resume=True)
    check_same(interrupted, expected)
    assert coded == []


def test_without_resume_an_export_begins_anew(
    model: Path, interrupted: Path, expected: Bundle, coded: list[str]
) -> None:
    export(model, interrupted)
    check_same(interrupted, expected)
    assert len(coded) == MATRICES


def test_an_export_cut_off_in_the_middle_goes_on_there(
    model: Path, tmp_path: Path, expected: Bundle, coded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", encoded._write_record

    def write_record(*args: Any) -> None:
        if len(coded) == 6:
            raise MemoryError
        real(*args)

    monkeypatch.setattr(encoded, "_write_record", write_record)
    with pytest.raises(MemoryError) as caught:
        export(model, out)
    assert caught.value.__notes__ == [
        f"5 coded matrices are kept in {tmp_path / '.out.partial'}: the same command with "
        "--resume goes on from there"
    ]
    monkeypatch.setattr(encoded, "_write_record", real)
    coded.clear()
    export(model, out, resume=True)
    check_same(out, expected)
    assert len(coded) == MATRICES - 5


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, os.unlink])
@pytest.mark.parametrize("suffix", ["tqlz", "scales", "json"])
def test_a_damaged_matrix_is_coded_again(
    model: Path,
    interrupted: Path,
    expected: Bundle,
    coded: list[str],
    suffix: str,
    damage: Callable[[Path], None],
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    damage(staging.staging_directory_of(interrupted).coded / f"{name}.{suffix}")
    export(model, interrupted, resume=True)
    check_same(interrupted, expected)
    assert coded == [name]


def test_no_flipped_bit_changes_what_a_record_says(interrupted: Path) -> None:
    record = (
        staging.staging_directory_of(interrupted).coded / "model.layers.1.mlp.up_proj.weight.json"
    )
    good, said = record.read_bytes(), encoded._read_record(record)
    assert said is not None
    refused = 0
    for at in range(len(good)):
        record.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        found = encoded._read_record(record)
        refused += found is None
        assert found in (None, said)  # the last digit of a fraction may make no difference
    assert refused > len(good) - 10


def test_a_damaged_fingerprint_is_as_none(
    model: Path, interrupted: Path, expected: Bundle, coded: list[str]
) -> None:
    truncate(staging.staging_directory_of(interrupted).root / staging.FINGERPRINT)
    export(model, interrupted, resume=True)
    check_same(interrupted, expected)
    assert len(coded) == MATRICES


def test_other_packages_can_be_made_of_the_same_matrices(
    model: Path, interrupted: Path, coded: list[str]
) -> None:
    config = ExportConfig(TERNARY, ("mlprogram",), context=16, calibration="none")
    made = pipeline.export(model, interrupted, config, no_progress, resume=True)
    made.verify()
    assert [a.format for a in made.manifest.artifacts] == ["mlprogram"]
    assert coded == []


# ---- what cannot be gone on from


def test_another_quantization_is_refused_and_named(model: Path, interrupted: Path) -> None:
    with pytest.raises(UsageError, match="cannot go on") as caught:
        export(model, interrupted, QuantConfig(scheme="int8"), resume=True)
    (problem,) = caught.value.problems
    assert problem.startswith("quantization: ")
    assert '"ternary"' in problem.split(" then, ")[0]
    assert staging.staging_directory_of(interrupted).finished == MATRICES


def test_another_checkpoint_is_refused_and_named(
    model: Path, interrupted: Path, tmp_path: Path
) -> None:
    touched = copy(model, tmp_path / "touched")
    os.utime(touched / "model.safetensors", ns=(0, 0))
    with pytest.raises(UsageError, match="cannot go on") as caught:
        export(touched, interrupted, resume=True)
    assert [p.split(":")[0] for p in caught.value.problems] == ["model.safetensors"]
    assert "--resume" in caught.value.hint
    assert staging.staging_directory_of(interrupted).finished == MATRICES


def test_a_checkpoint_may_be_moved(
    model: Path, interrupted: Path, tmp_path: Path, coded: list[str]
) -> None:
    export(copy(model, tmp_path / "moved" / model.name), interrupted, resume=True)
    assert coded == []


def test_another_version_of_the_tool_is_refused(
    model: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then, now = staging.FORMAT_VERSION, staging.FORMAT_VERSION + 1
    monkeypatch.setattr(staging, "FORMAT_VERSION", now)
    with pytest.raises(UsageError, match=f"format: {then} then, {now} now"):
        export(model, interrupted, resume=True)


@pytest.mark.parametrize(
    "error", [CheckpointError("wrong"), UsageError("wrong"), ValueError("a bug")]
)
def test_after_an_error_that_would_be_met_again_nothing_stays(
    model: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(registry, "emit", raising(error))
    with pytest.raises(type(error)):
        export(model, interrupted, resume=True)
    assert names(interrupted.parent) == []


def test_a_model_that_is_not_there_leaves_the_coded_matrices(interrupted: Path) -> None:
    with pytest.raises(CheckpointError):
        export(interrupted / "nothing", interrupted, resume=True)
    assert staging.staging_directory_of(interrupted).finished == MATRICES


def test_two_exports_to_one_place(model: Path, interrupted: Path) -> None:
    with (
        staging.staging_directory(interrupted.with_name("free"), {}, force=False, resume=False),
        staging.staging_directory(interrupted, {}, force=False, resume=False),
        pytest.raises(UsageError, match=r"another export to .* is under way"),
    ):
        export(model, interrupted, resume=True)


# ---- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skips where it cannot be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("NOT TESTED on a real full disk: mounting needs root")
    yield disk
    subprocess.run(
        ["umount", "--lazy", str(disk)], check=True
    )  # mapped files may wait for the collector


@pytest.mark.parametrize(("free", "is_coded"), [(65_536, False), (200_704, True), (237_568, True)])
def test_a_full_disk_can_be_mended(
    model: Path,
    small_disk: Path,
    expected: Bundle,
    coded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    is_coded: bool,
) -> None:
    """Filled so that coding, the package or the answers do not fit; what was coded is not coded
    again."""
    filler, out = small_disk / "filler", small_disk / "out"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - free))
    monkeypatch.setattr(pipeline, "_check_disk", lambda *_: None)
    with pytest.raises((OutOfSpaceError, OSError)) as caught:
        export(model, out)
    assert not out.exists()
    assert (
        isinstance(caught.value, OutOfSpaceError)
        or getattr(caught.value, "errno", 0) == errno.ENOSPC
    )
    kept = staging.staging_directory_of(out).finished
    assert kept > 0
    assert (kept == MATRICES) == is_coded
    filler.unlink()
    coded.clear()
    export(model, out, resume=True)
    check_same(out, expected)
    assert len(coded) == MATRICES - kept


# ---- replacing a bundle


def test_a_kill_between_two_renames_keeps_the_old_bundle(tmp_path: Path) -> None:
    old = write_small_bundle(tmp_path / "out")
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom exporter import staging\n"
        "real = os.rename\n"
        "def rename(a, b):\n    real(a, b)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "options = {'force': True, 'resume': False}\n"
        "with staging.staging_directory(Path(sys.argv[1]), {}, **options) as place:\n"
        "    (place.bundle / 'manifest.json').write_text('{}')\n    os.rename = rename\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, old.path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".out.partial"]
    with (
        pytest.raises(UsageError, match="already exists"),
        staging.staging_directory(old.path, {}, force=False, resume=False),
    ):
        pytest.fail("the work began")
    assert names(tmp_path) == ["out"]
    Bundle.open(old.path).verify()


# ---- the command line


def tinyqmoe(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app.app, [str(a) for a in arguments])


def command(model: Path, out: Path, *options: str) -> Any:
    given = (
        "--scheme",
        "ternary",
        "--calibration",
        "none",
        "--allow-loss",
        "--target",
        "ios",
        "--coreml-format",
        FORMAT,
    )
    return tinyqmoe("export", model, out, *given, *options)


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (OSError(errno.ENOSPC, "full"), 4)],
)
def test_a_user_is_told_what_is_left(
    model: Path,
    tmp_path: Path,
    expected: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(registry, "emit", raising(error))
        result = command(model, out)
    assert result.exit_code == code
    assert f"{MATRICES} coded matrices are kept in {tmp_path / '.out.partial'}" in result.stderr
    assert "--resume" in result.stderr
    resumed = command(model, out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert f"{MATRICES} matrices of an earlier export" in resumed.stderr
    check_same(out, expected)


def test_nothing_to_resume_is_said(model: Path, tmp_path: Path, expected: Bundle) -> None:
    result = command(model, tmp_path / "out", "--resume")
    assert result.exit_code == 0, result.output
    assert "nothing to resume" in result.stderr
    assert "peak memory" in result.stderr
    check_same(tmp_path / "out", expected)


# ---- kills at any moment

SERVER = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)  # a fork has no threads but its own
from exporter import pipeline
from exporter.quant.config import QuantConfig

def export(model, out, **options):
    config = pipeline.ExportConfig(QuantConfig("ternary"), ("custom-op",), calibration="none")
    pipeline.export(Path(model), Path(out), config, lambda *_: None, **options)

export(sys.argv[1], sys.argv[2])  # imports everything
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        try:
            export(**request)
            os._exit(0)
        finally:
            os._exit(1)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Exporter:
    """A process that forks for each export, so that none waits for imports."""

    process: subprocess.Popen[str]
    # what it has made undisturbed: another number of threads would change the last bits of answers
    first: Path

    def run(self, model: Path, out: Path, kill_after: float | None = None, **options: Any) -> int:
        """The wait status of an export, killed after some seconds or not."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(
            json.dumps({"model": str(model), "out": str(out), **options}) + "\n"
        )
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline())


@pytest.fixture
def exporter(model: Path, tmp_path: Path) -> Iterator[Exporter]:
    first = tmp_path / "first" / "out"
    arguments = [sys.executable, "-c", SERVER, str(model), str(first)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Exporter(process, first)
        assert process.stdin
        process.stdin.close()


def check_whole_or_absent(out: Path) -> None:
    if out.exists():
        Bundle.open(out).verify()
    assert set(names(out.parent)) <= {out.name, f".{out.name}.partial"}


@pytest.mark.long
def test_kills_at_any_moment(model: Path, tmp_path: Path, exporter: Exporter) -> None:
    rng = random.Random(0)
    out = tmp_path / "place" / "out"
    assert exporter.run(model, out) == 0  # waits until everything is imported
    begin = time.monotonic()
    assert exporter.run(model, out, force=True) == 0
    seconds = time.monotonic() - begin
    expected = Bundle.open(exporter.first)
    check_same(out, expected)
    left = {"nothing": 0, "resumable": 0, "complete": 0}
    while time.monotonic() < begin + KILL_SECONDS:
        shutil.rmtree(out.parent)
        out.parent.mkdir()
        old = rng.random() < 0.5
        if old:
            write_small_bundle(out)
        for _ in range(rng.choice([1, 1, 3])):  # a resumed export may be killed too
            exporter.run(model, out, rng.uniform(0, 1.1 * seconds), force=True, resume=True)
            check_whole_or_absent(out)
        there = {".out.partial": "resumable", "out": "complete"}
        left[there[names(out.parent)[0]] if names(out.parent) else "nothing"] += 1
        assert (
            out.exists()
            or not old
            or (staging.staging_directory_of(out).old / "manifest.json").exists()
        )
        assert exporter.run(model, out, force=True, resume=True) == 0
        check_same(out, expected)
    assert left["resumable"] > 0, left

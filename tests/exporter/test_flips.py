"""Flipped bytes of a bundle with all packages: each is found, and none ends in a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter import pipeline
from exporter.bundle import BACKENDS, MANIFEST, Bundle, bundle_files
from exporter.config import ExportConfig
from exporter.errors import BundleError
from exporter.quant.calibration import NONE
from runtime_ref.coreml import expansion
from tests.support import soak
from tests.support.bundles import TERNARY, no_progress
from tests.support.checkpoints import write_llama


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One layer, all packages, the ML Program expanded. Each test leaves it as it was."""
    folder = tmp_path_factory.mktemp("flips")
    model = write_llama(
        folder / "model",
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    config = ExportConfig(TERNARY, formats=tuple(BACKENDS), context=16, calibration=NONE)
    bundle = pipeline.export(model, folder / "out", config, no_progress)
    recipe = expansion.load_recipe(bundle, bundle.artifact("mlprogram"))
    expansion.expand(bundle, recipe, bundle.path / recipe.package, lambda done, total: None)
    bundle.verify()
    return bundle


def flipped(file: Path, step: int) -> Iterator[int]:
    """Flips a bit of every `step`-th byte of a file, one at a time; tells where it is."""
    good = file.read_bytes()
    try:
        for at in range(0, len(good), step):
            with file.open("r+b") as stream:
                stream.seek(at)
                stream.write(bytes([good[at] ^ 1 << at % 8]))
            yield at
            with file.open("r+b") as stream:
                stream.seek(at)
                stream.write(good[at : at + 1])
    finally:
        file.write_bytes(good)


def check_files(bundle: Bundle, step: int) -> int:
    """Number of flips in all files but the manifest, all of which `verify` has found."""
    count = 0
    known = {e.path for e in [*bundle.manifest.files, *bundle.manifest.expanded]}
    assert known == set(bundle_files(bundle.path))
    for name in sorted(known):
        for at in flipped(bundle.file(name), step):
            with pytest.raises(BundleError) as caught:
                bundle.verify({name})
            assert [problem.split()[0] for problem in caught.value.problems] == [name], at
            count += 1
    bundle.verify()
    return count


def check_manifest(bundle: Bundle, step: int) -> int:
    """Number of flips in the manifest: found on opening, or between its parts, without meaning."""
    file, count = bundle.path / MANIFEST, 0
    content = json.loads(file.read_bytes())
    for at in flipped(file, step):
        try:
            Bundle.open(bundle.path)
        except BundleError:
            pass
        else:
            assert json.loads(file.read_bytes()) == content, at
        count += 1
    return count


def test_some_flipped_bytes(whole: Bundle) -> None:
    assert check_files(whole, 997) > 100
    assert check_manifest(whole, 199) > 50


@pytest.mark.long
def test_every_flipped_byte(whole: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    files, manifest = check_files(whole, 1), check_manifest(whole, 1)
    assert files == sum(whole.file(name).stat().st_size for name in bundle_files(whole.path))
    assert manifest == (whole.path / MANIFEST).stat().st_size
    soak.add(capsys, "flipped bytes of packages", files)
    soak.add(capsys, "flipped bytes of a manifest", manifest)

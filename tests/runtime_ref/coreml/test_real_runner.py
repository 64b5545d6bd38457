"""ML Programs in Core ML itself: the way there, with a stand-in for the framework, which Linux
lacks. It has never run in the real one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import pytest

from exporter.bundle import COREML_REAL, Bundle
from exporter.errors import BundleError, MissingComponentError, UsageError
from runtime_ref import runners
from runtime_ref.coreml.mil_program import MLProgram
from runtime_ref.coreml.package import CoreMLPackage
from runtime_ref.generate import Runner
from runtime_ref.parity import check_parity
from runtime_ref.residency import Residency
from tests.support.bundles import CONTEXT, TERNARY, export, no_progress


class StandIn:
    """What this project uses of coremltools.models.MLModel, computed by the interpreter."""

    def __init__(self, path: str, *, function_name: str) -> None:
        self.program = MLProgram(
            CoreMLPackage.open(Path(path)), function_name, "float16", cache_bytes=1 << 24
        )

    def make_state(self) -> Any:
        return self.program.new_state()

    def predict(self, data: dict[str, Any], state: Any) -> dict[str, Any]:
        assert {name: value.shape for name, value in data.items()} == {
            name: tuple(value.shape) for name, value in self.program.inputs.items()
        }
        return self.program.predict(data, state)


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("real") / "bundle"
    return export(checkpoint, out, TERNARY, context=CONTEXT, formats=("mlprogram", "custom-op"))


def opened(bundle: Bundle, backend: str) -> Runner:
    package = runners.package(bundle.manifest, backend)
    return runners.open_runner(bundle, package, Residency(), no_progress)


def test_core_ml_is_fed_as_the_interpreter_is(
    both: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(coremltools.models, "MLModel", StandIn)
    real, interpreted = opened(both, COREML_REAL), opened(both, "mlprogram")
    assert (real.name, real.artifact.backend) == (COREML_REAL, COREML_REAL)
    tokens = np.random.default_rng(0).integers(0, 100, CONTEXT - 3).tolist()
    for position, chunk in ((0, tokens[:20]), (20, tokens[20:21]), (21, tokens[21:])):
        expected = interpreted.forward(chunk, position)
        assert np.array_equal(real.forward(chunk, position), expected)
    report = check_parity(both, real, lambda n: None)
    assert report.passed
    assert report.backend == COREML_REAL


def test_there_is_no_core_ml_on_linux(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(MissingComponentError, match="Core ML is on macOS only") as caught:
        opened(both, COREML_REAL)
    assert "--backend mlprogram" in caught.value.hint


def test_a_bundle_without_an_ml_program_is_told(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="coreml-real needs an mlprogram: the bundle has pte"):
        runners.package(bundle.manifest, COREML_REAL)


@pytest.mark.parametrize("when", ["loads", "predicts"])
def test_what_core_ml_raises_is_one_error(
    both: Bundle, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class Broken(StandIn):
        def __init__(self, path: str, *, function_name: str) -> None:
            if when == "loads":
                raise RuntimeError("Error compiling model")
            super().__init__(path, function_name=function_name)

        def predict(self, data: dict[str, Any], state: Any) -> dict[str, Any]:
            raise RuntimeError("Error computing")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(coremltools.models, "MLModel", Broken)
    named = {"loads": "does not load .*Error compiling", "predicts": "failed on 1 tokens"}[when]
    with pytest.raises(BundleError, match=named):
        opened(both, COREML_REAL).forward([1], 0)

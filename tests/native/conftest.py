"""What the tests of sessions share: bundles of every family, and the digests of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import wasm
from tests.support.families import Model, make_models
from tests.support.layer_tests import CXX, compile_tests, digest, run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """One small model of every family."""
    return make_models(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def digests(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of the parts, and of sessions over every family, each with all instruction sets of this
    machine."""
    if CXX is None:
        pytest.skip("NO C++ COMPILER: the native tests did not run")
    program = compile_tests(CXX, ["-O1"], tmp_path_factory.mktemp("native"))
    return digest(run(program)), digest(run(program, *(m.bundle for m in models.values())))


@pytest.fixture(scope="session")
def wasm_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tinyqmoe.wasm, its JavaScript, and the C++ tests for WebAssembly."""
    folder = tmp_path_factory.mktemp("wasm")
    wasm.build(folder)
    return folder

"""What the tests of sessions share: bundles of every family, and the digests of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import wasm
from tests.support.families import Model, make_models
from tests.support.layer_tests import (
    CXX,
    SANITIZE,
    compile_objects,
    digest,
    link,
    llm_test_sources,
    run,
    sources_of,
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """One small model of every family."""
    return make_models(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def library_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Objects of the core and of sessions, for this machine."""
    if CXX is None:
        pytest.skip("NO C++ COMPILER: the native tests did not run")
    folder = tmp_path_factory.mktemp("library")
    return compile_objects(CXX, ["-O1"], sources_of("core", "llm"), folder)


@pytest.fixture(scope="session")
def digests(
    models: dict[str, Model], library_objects: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Of the parts, and of sessions over every family, each with all instruction sets of this
    machine."""
    assert CXX is not None
    folder = tmp_path_factory.mktemp("native")
    objects = compile_objects(CXX, ["-O1"], llm_test_sources(), folder)
    program = link(CXX, ["-O1"], [*library_objects, *objects], folder / "tests")
    return digest(run(program)), digest(run(program, *(m.bundle for m in models.values())))


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Objects of the core and the encoder under the address and undefined-behaviour sanitizers."""
    if CXX is None:
        pytest.skip("NO C++ COMPILER: the native tests did not run")
    sources = sources_of("core", "encoder")
    return compile_objects(CXX, SANITIZE, sources, tmp_path_factory.mktemp("sanitized"))


@pytest.fixture(scope="session")
def wasm_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tinyqmoe.wasm, its JavaScript, and the C++ tests for WebAssembly."""
    folder = tmp_path_factory.mktemp("wasm")
    wasm.build(folder)
    return folder

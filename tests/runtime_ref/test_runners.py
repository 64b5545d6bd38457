"""One module a package format, and nothing else that knows which formats there are."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from typing import Any

import pytest

from exporter.bundle import BACKENDS, COREML_REAL, NATIVE, Artifact
from exporter.errors import UsageError
from runtime_ref import runners
from runtime_ref.residency import Residency
from runtime_ref.runners import RunnerModule
from tests.support.bundles import small_manifest
from tests.support.paths import ROOT

FUNCTIONS = ("build", "prepare", "core", "open", "memory")


def artifact(form: str) -> Artifact:
    return replace(small_manifest().artifacts[0], format=form)


def test_every_format_of_a_bundle_has_a_runner() -> None:
    assert set(runners.MODULES) == {*BACKENDS, NATIVE, COREML_REAL}


@pytest.mark.parametrize("form", runners.MODULES)
def test_a_runner_module_has_the_interface(form: str) -> None:
    module = runners.module(form)
    for name, kind in inspect.get_annotations(RunnerModule).items():
        assert type(getattr(module, name)).__name__ == kind, name
    for name in FUNCTIONS:
        declared = inspect.signature(getattr(RunnerModule, name))
        expected = declared.replace(parameters=list(declared.parameters.values())[1:])
        assert inspect.signature(getattr(module, name)) == expected, name


@pytest.mark.parametrize("form", runners.MODULES)
def test_only_products_that_read_codes_have_a_residency(form: str) -> None:
    """What says so and what is used must agree; ExecuTorch's library is asked elsewhere."""
    module = runners.module(form)
    if form != "pte":
        assert (module.core() is not None) == module.HAS_RESIDENCY
    if module.HAS_RESIDENCY:
        runners.check_residency(artifact(form), Residency("expand"))
        return
    runners.check_residency(artifact(form), Residency())
    with pytest.raises(UsageError, match="no coded weights"):
        runners.check_residency(artifact(form), Residency("expand"))


def test_no_module_but_the_runners_asks_for_a_format() -> None:
    """No branch on the name of a format, nor on that of a scheme: a runner module has its own."""
    asking = []
    for file in (ROOT / "runtime_ref").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                texts = {
                    part.value
                    for side in (node.left, *node.comparators)
                    for part in ast.walk(side)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
                if texts & {*BACKENDS, NATIVE, "ternary"}:
                    asking.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert asking == []


def test_opening_refuses_a_residency_before_it_reads_anything() -> None:
    none: Any = None
    with pytest.raises(UsageError, match="no residency file"):
        runners.open_runner(none, artifact("mlprogram"), Residency("file"), lambda *_: None)

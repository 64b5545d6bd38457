"""What we work around in coremltools (docs/coreml.md lists it). A test that fails here says that a
new version is better: remove the workaround it names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.quiet import quiet

SHAPE = (1, 4)


@pytest.fixture(scope="module")
def ct() -> Iterator[Any]:
    with quiet():
        import coremltools

        yield coremltools


@pytest.fixture(scope="module")
def mb(ct: Any) -> Any:
    from coremltools.converters.mil import Builder

    return Builder


def operations(model: Any) -> list[str]:
    (function,) = model.get_spec().mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return [op.type for op in block.operations]


def test_two_reads_of_a_state_are_merged_over_a_write(ct: Any, mb: Any) -> None:
    """Workaround: each state is read once and its updates are chained (ProgramBuilder.update);
    and no pass is run."""
    from coremltools.converters.mil.mil import types

    @mb.program(
        input_specs=[
            mb.TensorSpec(SHAPE, dtype=types.fp16),
            mb.StateTensorSpec(SHAPE, dtype=types.fp16),
        ],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any, state: Any) -> Any:
        before = mb.read_state(input=state)
        mb.coreml_update_state(state=state, value=mb.add(x=before, y=x))
        after = mb.read_state(input=state)  # must see the update
        return mb.sub(x=after, y=before)

    with quiet():
        model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    assert operations(model).count("read_state") == 1


def test_operations_are_numbered_over_the_whole_process(ct: Any, mb: Any) -> None:
    """Workaround: ProgramBuilder.program sets the counters back; two equal exports would differ
    otherwise."""

    def names() -> list[str]:
        @mb.program(input_specs=[mb.TensorSpec(SHAPE)], opset_version=ct.target.iOS18)
        def program(x: Any) -> Any:
            return mb.relu(x=x)

        return [op.name for op in program.functions["main"].operations]

    assert names() != names()
    mb.name_count.clear()
    first = names()
    mb.name_count.clear()
    assert names() == first


def converted(ct: Any, mb: Any) -> Any:
    """A model of one operation."""

    @mb.program(input_specs=[mb.TensorSpec(SHAPE)], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return mb.relu(x=x)

    with quiet():
        return ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)


def test_package_items_have_random_identifiers(ct: Any, mb: Any, tmp_path: Path) -> None:
    """Workaround: coreml.write_package_manifest."""
    roots = []
    for name in ("a", "b"):
        converted(ct, mb).save(str(tmp_path / f"{name}.mlpackage"))
        roots.append(
            json.loads((tmp_path / f"{name}.mlpackage" / "Manifest.json").read_text())[
                "rootModelIdentifier"
            ]
        )
    assert roots[0] != roots[1]


def test_select_of_two_scalars_forgets_the_shape_of_its_condition(ct: Any, mb: Any) -> None:
    """Workaround: ProgramBuilder.mask multiplies."""
    shapes = []

    @mb.program(input_specs=[mb.TensorSpec((3, 4))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        chosen = mb.select(cond=mb.greater(x=x, y=0.0), a=np.float32(1), b=np.float32(2))
        shapes.append(tuple(chosen.shape))
        return chosen

    assert shapes == [()]


def test_a_product_without_bias_gets_zeros_in_the_file(ct: Any, mb: Any) -> None:
    """Workaround: ProgramBuilder.linear shares one bias for all products of a size."""
    biases = []

    @mb.program(input_specs=[mb.TensorSpec(SHAPE)], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        y = mb.linear(x=x, weight=np.ones((32, 4), np.float32))
        biases.append(y.op.bias.val)
        return y

    assert np.array_equal(biases[0], np.zeros(32))


def test_no_prediction_outside_of_macos(ct: Any, mb: Any) -> None:
    """Workaround: an interpreter of our own (runtime_ref/coreml/mil_program.py,
    neural_network.py)."""

    with quiet(), pytest.raises(Exception, match="macOS"):
        converted(ct, mb).predict({"x": np.zeros(SHAPE, np.float32)})

"""Small ML Programs, written with coremltools' builder, and damaged copies of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.quiet import quiet
from runtime_ref.coreml.package import CoreMLPackage, load_spec

with quiet():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types

__all__ = ["ct", "mb", "types"]


def save(program: Any, path: Path) -> CoreMLPackage:
    """Writes a builder's program as it is: no pass changes an operation."""
    with quiet():
        model = ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY,
            compute_precision=ct.precision.FLOAT32,
        )
        model.save(str(path))
    return CoreMLPackage.open(path)


def edited(package: CoreMLPackage, path: Path, edit: Callable[[Any], None]) -> CoreMLPackage:
    """A copy of the package with another model: `edit` is given the protobuf."""
    shutil.copytree(package.path, path)
    copy = CoreMLPackage.open(path)
    spec = load_spec(copy.model_file)
    edit(spec)
    copy.model_file.write_bytes(spec.SerializeToString())
    return copy


def operations(spec: Any, function: str = "main") -> Any:
    """The operations of a function, to be edited."""
    body = spec.mlProgram.functions[function]
    return body.block_specializations[body.opset].operations

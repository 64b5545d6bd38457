"""Core ML packages as ML Programs, the format that runs well on iPhones.

An ML Program is stateful, needs iOS 18, and has native 2-bit, int4 and int8 weights. It is written
with coremltools' `mb` builder, one function for a single token and one for a piece of a prompt,
without conversion or passes. The builder sees stand-ins that take no memory; where every constant
lies in the weight files is decided here, and those files are not written: a bundle ships them coded
(exporter.codec.weight_file), and `tinyqmoe expand` rebuilds them.

Letters in shapes: S tokens in a call, H query heads, KV key/value heads, G = H / KV, D head_dim, C
context, L layers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.backends.coreml import mlpackage
from exporter.backends.coreml.mlprogram_check import (
    census,
    check_program,
    check_reload,
    operations,
)
from exporter.backends.coreml.mlprogram_graph import (
    DECODE,
    PREFILL,
    PREFILL_TOKENS,
    MLProgramConfig,
    ProgramBuilder,
    scales_key,
)
from exporter.backends.coreml.mlprogram_weights import (
    ALIGNMENT,
    BlobLayout,
    WeightBlob,
    recipe_files,
    weight_file_name,
    write_coded,
)
from exporter.backends.package import (
    Emitted,
    ExportMemory,
    Growth,
    PackageInput,
    PlannedModel,
    file_rows,
    kv_cache_values,
    matrix_rows,
    metadata,
    rows_of,
)
from exporter.bundle import Artifact, FileEntry, LedgerRow, Location, sha256
from exporter.codec.weight_file import RECIPE_VERSION, Recipe, plain_form
from exporter.encoded import EncodedModel
from exporter.errors import ExportError, UsageError
from exporter.models.config import ModelConfig
from exporter.progress import Progress
from exporter.quant.plan import plan_matrix
from exporter.quiet import quiet

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Program, Var
    from coremltools.proto.MIL_pb2 import Value
    from coremltools.proto.Model_pb2 import Model

    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig

NAME, TOOL = "mlprogram", "coremltools"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # whose networks the graph draws
MEMORY = ExportMemory("making the ML Program", Growth(290, 3), Growth(290, 3))
CALLS_A_LAYER, OTHER_CALLS = 148, 51  # of operations
TEMPLATE, PACKAGE = "model.template.mlpackage", "model.mlpackage"
CODED_FILE, RECIPE_FILE = "model.weights.tqlz", "expand.json"


@dataclass(frozen=True)
class EmittedMLProgram:
    """An ML Program that was written into the bundle.

    Places are in the expanded package.
    """

    recipe: Recipe
    places: dict[str, Location]
    operators: dict[str, int]
    constants_bytes: int  # of norms, rope tables, scales and look-up tables
    specification_version: int


def supports(family: str) -> str | None:
    """The reason why models of a family cannot be packed, or None."""
    if family in FAMILIES:
        return None
    return f"the graph is drawn by hand, and draws only {', '.join(FAMILIES)}"


def check(config: ExportConfig, checkpoint: Checkpoint) -> None:
    """Refuses a group size that the format cannot hold.

    Raises UsageError.
    """
    plans = {n: plan_matrix(config.quantization, checkpoint, n) for n in checkpoint.names}
    _check_groups(
        {
            name: (checkpoint.shape(name)[1], plan.config.group_size)
            for name, plan in plans.items()
            if plan
        }
    )


def _check_groups(groups: dict[str, tuple[int, int | None]]) -> None:
    """Refuses, before any work, matrices whose columns the group size does not divide.

    The blocks of this format are all equal. `groups` maps names to (columns, group size or None for
    a whole row). Raises UsageError naming every one.
    """
    problems = [
        f"{name}: {cols} columns are no multiple of {group}"
        for name, (cols, group) in groups.items()
        if group is not None and cols % min(group, cols)
    ]
    if problems:
        hint = (
            "give --coreml-format custom-op, which takes any; or another --group-size, with a "
            "--scheme where the levels are the checkpoint's own"
        )
        raise UsageError("the group size does not suit an ML Program", problems=problems, hint=hint)


def write(
    encoded: EncodedModel,
    model: ModelConfig,
    config: MLProgramConfig,
    work: Path,
    metadata: dict[str, str],
    progress: Callable[[int, int], None],
) -> EmittedMLProgram:
    """Writes template, coded weights and recipe into `work`, and checks them.

    `progress` is told expanded bytes. Raises ExportError if what was written is not what it should
    be, UsageError if a matrix does not fit a chunk.
    """
    layout = BlobLayout(config.chunk_bytes)
    with quiet():
        program = ProgramBuilder(encoded, model, config).program()
        spec = _translate(program, encoded, layout)
        mlpackage.fill_metadata(spec.description.metadata, metadata)
    template = work / TEMPLATE
    (template / mlpackage.DATA).mkdir(parents=True)
    mlpackage.write_package_manifest(template, weights=True)
    (template / mlpackage.MODEL_FILE).write_bytes(spec.SerializeToString(deterministic=True))
    written = type(spec).FromString((template / mlpackage.MODEL_FILE).read_bytes())
    with quiet():
        check_reload(written)
    check_program(written, layout, encoded, model, config, metadata)
    pieces = write_coded(layout, work / CODED_FILE)
    recipe = Recipe(
        RECIPE_VERSION,
        TEMPLATE,
        PACKAGE,
        CODED_FILE,
        recipe_files(pieces, work / CODED_FILE, progress),
    )
    (work / RECIPE_FILE).write_text(recipe.to_json(), encoding="utf-8")
    return EmittedMLProgram(
        recipe=recipe,
        places={
            name: _place(layout.places[name], layout.places.get(scales_key(name)))
            for name in encoded.matrices
        },
        operators=census(operations(written, DECODE) + operations(written, PREFILL)),
        constants_bytes=sum(
            b.n_bytes for _, b in layout.places.values() if isinstance(b.source, bytes)
        ),
        specification_version=written.specificationVersion,
    )


def _place(levels: tuple[int, WeightBlob], scales: tuple[int, WeightBlob] | None) -> Location:
    """The place of a matrix from those of its two constants, each with the number of its file.

    The few scales of a small matrix lie in the program itself, and have no place.
    """
    number, blob = levels
    file = _weight_file(number)
    if scales is None:
        return Location(file, blob.kind, blob.offset + ALIGNMENT, blob.n_bytes)
    scales_number, scales_blob = scales
    assert isinstance(scales_blob.source, bytes)  # a literal
    return Location(
        file,
        blob.kind,
        blob.offset + ALIGNMENT,
        blob.n_bytes,
        scales_blob.offset + ALIGNMENT,
        scales_blob.n_bytes,
        zlib.crc32(scales_blob.source),
        _weight_file(scales_number),
    )


def _weight_file(number: int) -> str:
    """Path of a weight file of the expanded package in the bundle."""
    return f"{PACKAGE}/{mlpackage.WEIGHTS_DIR}/{weight_file_name(number)}"


def _translate(program: Program, encoded: EncodedModel, layout: BlobLayout) -> Model:
    """The program as protobuf, by coremltools' own exporters, with our places for the constants."""
    from coremltools import _SPECIFICATION_VERSION_IOS_18 as VERSION
    from coremltools.converters.mil.backend.mil import helper
    from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter

    class Exporter(MILProtoExporter):  # type: ignore[misc]  # coremltools has no types
        def create_file_value(self, var: Var) -> Value:
            key = var.op.weight_id
            if key is None:
                raise ExportError(
                    f"nobody asked for the constant {var.name} {var.shape}",
                    hint="report this as a bug",
                )
            matrix = encoded.matrices.get(key)
            source = np.ascontiguousarray(var.val).tobytes() if matrix is None else matrix
            kind = str(var.val.dtype) if matrix is None else plain_form(matrix.n_levels).name
            number, blob = layout.place(key, kind, math.prod(var.shape), source)
            primitive = helper.types_to_proto_primitive(var.sym_type.get_primitive())
            file_name = f"@model_path/weights/{weight_file_name(number)}"
            return helper.create_file_value_tensor(file_name, blob.offset, var.val.shape, primitive)

    mil = Exporter(program, "", VERSION).export()
    return CoreMLProtoExporter(
        program, mil, "", "", None, "mlprogram", "milinternal", VERSION
    ).export(VERSION)


def emit(source: PackageInput, progress: Progress) -> Emitted:
    """Writes the package, coded, into the bundle.

    Raises ExportError if it is not what was asked.
    """
    stage = "write the ML Program"
    progress(stage, 0, 0)
    config = MLProgramConfig(source.context, source.config.chunk_bytes)
    emitted = write(
        source.encoded,
        source.checkpoint.config,
        config,
        source.work,
        metadata(source, NAME),
        lambda done, total: progress(stage, done, total),
    )
    template = source.work / emitted.recipe.template
    coded, recipe = (
        source.work / emitted.recipe.coded_file,
        source.work / RECIPE_FILE,
    )
    rows = file_rows(source.work, template, "ML Program: template of the package")
    rows += rows_of(
        coded, coded.name, matrix_rows(source, scales=False), "float16 scales, norms, rope, layout"
    )
    rows.append(LedgerRow(recipe.name, "how to rebuild the weight file", recipe.stat().st_size))
    artifact = Artifact(
        format=NAME,
        path=emitted.recipe.package,
        files=list(dict.fromkeys(row.file for row in rows)),
        activations="float16",
        kv_type="float16",
        prefill_tokens=config.prefill_tokens,
        kv_cache_bytes=2 * kv_cache_values(source.checkpoint.config, source.context),
        operators=emitted.operators,
        places=emitted.places,
        vectors={},
        details={
            "recipe": recipe.name,
            "specification_version": emitted.specification_version,
            "minimum_deployment_target": "iOS 18",
            "weight_files_bytes": sum(file.n_bytes for file in emitted.recipe.weight_files),
        },
    )
    package = emitted.recipe.package
    expanded = [
        FileEntry(f"{package}/{file.path}", file.n_bytes, file.sha256)
        for file in emitted.recipe.weight_files
    ]
    expanded += [
        FileEntry(f"{package}/{name}", (template / name).stat().st_size, sha256(template / name))
        for name in ("Manifest.json", mlpackage.MODEL_FILE)
    ]
    return Emitted(artifact, rows, expanded)


def estimate(planned: PlannedModel) -> Artifact:
    """The package that an export would write, as far as shapes tell."""
    places = {}
    for t in planned.tensors:
        form = plain_form(t.n_levels)
        places[t.name] = Location(PACKAGE, form.name, 0, form.n_bytes(t.rows * t.cols))
    return Artifact(
        format=NAME,
        path=PACKAGE,
        files=[PACKAGE],
        activations="float16",
        kv_type="float16",
        prefill_tokens=min(planned.context, PREFILL_TOKENS),
        kv_cache_bytes=2 * kv_cache_values(planned.config, planned.context),
        operators={"calls": CALLS_A_LAYER * planned.config.num_hidden_layers + OTHER_CALLS},
        places=places,
        vectors={},
        details={},
    )

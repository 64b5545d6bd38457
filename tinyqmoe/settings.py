"""The settings of an export as keywords: the fields of `QuantConfig` and `ExportConfig` in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.bundle import Activations, KVType
    from exporter.codec.encoder import Codec
    from exporter.config import ExportConfig


class ExportSettings(TypedDict, total=False):
    """The settings of an export: what to make of a model.

    What is left out has the default of the configuration's field.

    scheme: how the matrices of the layers are quantized, "auto" by default: those that are ternary
    in the checkpoint as they are, others as "int8"; "mixed" is by the rules of `plan`, a JSON file.
    save_plan: a file for the plan that was found. group_size: weights that share a scale, a whole
    row by default. sparsity: share of zeros of ternary matrices, from 0 to below 1. recover: steps
    of training of each ternary layer against the model's own, none by default.
    bits_per_weight: size of the coded int8 matrices, from 1.5 to 8, at the least loss. size_bytes:
    that size as a whole, in its place. calibration: text file that the loss of such levels, and of
    ternary ones, is estimated on, by default one that ships, or "none". calibration_cache: a folder
    that keeps what this text shows, for exports at other rates. embedding: the same as scheme, for
    the embedding and the head. formats: names of the packages, ("pte",) by default.
    context: positions of the KV cache, by default 2048 or the model's own limit if that is less.
    codec: "auto", "lzw" or "raw". activations: arithmetic of the products, "int16" or "float32".
    kv_cache: type of the keys and values in the cache of a `.pte`, "float16", "float32" or "int8".
    chunk_bytes: largest weight file of an ML Program, in bytes. with_native: whether the C++
    sources of the operators are put into the bundle. loss_text: a file in UTF-8 that the
    quantization loss is measured on; one ships. revision: branch, tag or commit of a model on the
    hub. adapter: folder or hub id of a LoRA adapter, merged into the weights.
    """

    scheme: str
    plan: str | Path | None
    calibration_cache: str | Path | None
    save_plan: str | Path | None
    group_size: int | None
    sparsity: float | None
    recover: int | None
    bits_per_weight: float | None
    size_bytes: int | None
    calibration: str | None
    embedding: str
    formats: str | Sequence[str]
    context: int | None
    codec: Codec
    activations: Activations
    kv_cache: KVType
    chunk_bytes: int
    with_native: bool
    loss_text: str | Path | None
    revision: str | None
    adapter: str | None


def export_config(
    config: ExportConfig | None = None, **settings: Unpack[ExportSettings]
) -> ExportConfig:
    """The configuration of an export, given whole or as keywords.

    Raises UsageError for wrong values and where both are given, TypeError for a keyword that is
    unknown.
    """
    from dataclasses import fields

    from exporter.config import ExportConfig
    from exporter.quant import rules
    from exporter.quant.config import QuantConfig

    if config is not None:
        if settings:
            what = f"config is given, and {', '.join(settings)} besides"
            raise UsageError(what, hint="give one of them: dataclasses.replace changes a config")
        return config
    given = dict(settings)
    if (plan := given.pop("plan", None)) is not None:
        given["rules"] = rules.read(Path(plan))  # type: ignore[arg-type]
    of_quantization = {field.name for field in fields(QuantConfig)} & given.keys()
    quantization = QuantConfig(**{name: given.pop(name) for name in of_quantization})  # type: ignore[arg-type]
    if "formats" in given:
        given["formats"] = names(given["formats"])  # type: ignore[arg-type]
    for name in ("loss_text", "save_plan", "calibration_cache"):
        if given.get(name) is not None:
            given[name] = Path(given[name])  # type: ignore[arg-type]
    return ExportConfig(quantization, **given)  # type: ignore[arg-type]


def names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Several names as a tuple; a text is one name."""
    return (given,) if isinstance(given, str) else tuple(given)

"""The commands about simulated devices: devices and fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli.console import emit, out_console, progress_bars
from exporter.cli.options import (
    BackendsOption,
    CodecChoice,
    CodecOption,
    ContextOption,
    DeviceFilesOption,
    DevicesOption,
    EmbeddingOption,
    EntitlementOption,
    GroupSizeOption,
    JsonOption,
    ResidencyOption,
    SchemeOption,
    SparsityOption,
)

if TYPE_CHECKING:
    from exporter.bundle import Manifest
from exporter.cli.common import ALL_FORMATS, chosen_artifacts, plan_runs, read_profiles, show_fit


def devices(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show all that is known of this one.")
    ] = None,
    device_file: DeviceFilesOption = None,
    json_file: JsonOption = None,
) -> None:
    """List the phones that packages can be judged on, or show one with the source of each
    figure."""
    from dataclasses import asdict

    from runtime_ref.reports import tables

    names = [name] if name else [] if device_file else ["all"]
    profiles = read_profiles(names, device_file or [])

    def show() -> None:
        out_console.print(
            tables.device_view(profiles[0])
            if len(profiles) == 1
            else tables.devices_table(profiles)
        )

    emit(json_file, lambda: [asdict(p) for p in profiles], show)


def fit(
    given: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_BUNDLE",
            help="A bundle, or a model as for `export`, before any export.",
        ),
    ],
    device: DevicesOption = None,
    device_file: DeviceFilesOption = None,
    entitlement: EntitlementOption = False,
    residency: ResidencyOption = None,
    backend: BackendsOption = ["all"],  # noqa: B006  (typer copies it)
    scheme: SchemeOption = "ternary",
    group_size: GroupSizeOption = None,
    sparsity: SparsityOption = None,
    embedding: EmbeddingOption = "int8",
    context: ContextOption = None,
    codec: CodecOption = CodecChoice.AUTO,
    json_file: JsonOption = None,
) -> None:
    """Say whether a package fits a phone, from its manifest or the shapes of a model; nothing is
    run.

    By default on all devices. Exit code 1 if a package does not fit one. For a MODEL give the
    options of the export.
    """
    profiles = read_profiles(device or ([] if device_file else ["all"]), device_file or [])
    if (Path(target) / "manifest.json").is_file():
        from exporter.bundle import Bundle

        _refuse_export_options(given)
        manifest = Bundle.open(Path(target)).manifest
    else:
        manifest = _outline(target, scheme, group_size, sparsity, embedding, context, codec)
    plans = plan_runs(
        manifest, chosen_artifacts(manifest, backend), profiles, residency, entitlement
    )
    one = len(profiles) == 1
    emit(
        json_file,
        lambda: [p.to_dict() for p in plans],
        lambda: show_fit(manifest, plans, one=one),
    )
    if any(p.problems for p in plans):
        raise typer.Exit(1)


def _refuse_export_options(given: typer.Context) -> None:
    """A bundle is what it is: options of an export would be ignored. Raises UsageError."""
    from exporter.errors import UsageError

    names = ("scheme", "group_size", "sparsity", "embedding", "context", "codec")
    if wrong := [n for n in names if _is_given(given, n)]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise UsageError(
            f"{options} cannot be given for a bundle: it has its own",
            do="leave it away, or give a MODEL",
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _outline(
    model: str,
    scheme: str,
    group_size: int | None,
    sparsity: float | None,
    embedding: str,
    context: int | None,
    codec: CodecChoice,
) -> Manifest:
    """The manifest that an export to all formats would write, without the export."""
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import ExportConfig, context_of
    from exporter.estimate.bundle import estimate_bundle
    from exporter.quant.config import QuantConfig

    quantization = QuantConfig(
        scheme=scheme, group_size=group_size, sparsity=sparsity, embedding=embedding
    )
    config = ExportConfig(quantization, ALL_FORMATS, context=context, codec=codec.value)
    with progress_bars() as progress:
        checkpoint = Checkpoint.open(model, progress=progress)
    return estimate_bundle(checkpoint, config, context_of(config, checkpoint))

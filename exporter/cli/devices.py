"""The commands about simulated devices: devices and fit."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer

import tinyqmoe
from exporter.cli.common import residency_mode, show_fit
from exporter.cli.console import emit, out_console, progress_bars
from exporter.cli.options import (
    BackendsOption,
    BitsOption,
    CodecChoice,
    CodecOption,
    ContextOption,
    DeviceFilesOption,
    DevicesOption,
    EmbeddingOption,
    EntitlementOption,
    GroupSizeOption,
    JsonOption,
    PlanOption,
    ResidencyOption,
    SchemeOption,
    SizeOption,
    SparsityOption,
    one_device_name,
)
from tinyqmoe.devices import is_bundle
from tinyqmoe.hub import bundle_or_model


def devices(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            autocompletion=one_device_name,
            help="Show all that is known of this one.",
        ),
    ] = None,
    device_file: DeviceFilesOption = None,
    json_file: JsonOption = None,
) -> None:
    """List the phones that packages can be judged on, or show one of them.

    One is shown with the source of each figure.
    """
    from dataclasses import asdict

    from runtime_ref.reports import tables

    names = [name] if name else [] if device_file else ["all"]
    profiles = tinyqmoe.find_devices([*names, *(device_file or [])])

    def show() -> None:
        out_console.print(
            tables.device_view(profiles[0])
            if len(profiles) == 1
            else tables.devices_table(profiles)
        )

    emit(json_file, lambda: {"devices": [asdict(p) for p in profiles]}, show)


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
    scheme: SchemeOption = "auto",
    plan: PlanOption = None,
    group_size: GroupSizeOption = None,
    sparsity: SparsityOption = None,
    bits_per_weight: BitsOption = None,
    size: SizeOption = None,
    embedding: EmbeddingOption = "auto",
    context: ContextOption = None,
    codec: CodecOption = CodecChoice.AUTO,
    json_file: JsonOption = None,
) -> None:
    """Say whether a package fits a phone; nothing is run.

    Memory is predicted from a bundle's manifest or the shapes of a model. By default all devices
    are judged. Exit code 1 if a package does not fit one. For a MODEL give the options of the
    export.
    """
    names = device or ([] if device_file else ["all"])
    settings = _export_settings(given)
    profiles = tinyqmoe.find_devices([*names, *(device_file or [])])
    found = bundle_or_model(target)
    if settings and is_bundle(found):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in settings)
        raise tinyqmoe.UsageError(
            f"{options} cannot be given for a bundle: it has its own",
            hint="leave it away, or give a MODEL",
        )
    with progress_bars() as progress:
        verdicts = tinyqmoe.fit(
            found,
            devices=profiles,
            entitlement=entitlement,
            residency=residency_mode(residency),
            backends=[str(b) for b in backend],
            progress=progress,
            **settings,
        )
    one = len(profiles) == 1
    emit(
        json_file,
        lambda: {"packages": [v.to_dict() for v in verdicts]},
        lambda: show_fit(verdicts, one=one),
    )
    if not all(verdict.fits for verdict in verdicts):
        raise typer.Exit(1)


def _export_settings(given: typer.Context) -> dict[str, Any]:
    """The settings of an export that are given on the command line, by name."""
    names = (
        *("scheme", "plan", "group_size", "sparsity", "bits_per_weight", "size", "embedding"),
        *("context", "codec"),
    )
    values = {name: given.params[name] for name in names if _is_given(given, name)}
    if "size" in values:
        values["size_bytes"] = values.pop("size")
    return {n: v.value if isinstance(v, enum.Enum) else v for n, v in values.items()}


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"

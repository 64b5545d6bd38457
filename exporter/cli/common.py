"""Functions that several commands share: checks of options, bundles, and verdicts of `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tinyqmoe
from exporter.cli.console import out_console
from exporter.cli.options import ResidencyMode


def check_device_options(
    profiles: Sequence[tinyqmoe.DeviceProfile],
    entitlement: bool,
    plot: Path | None,
) -> None:
    """Refuses options that mean nothing without a device.

    Raises UsageError.
    """
    hint = "give --device NAME; `tinyqmoe devices` lists them"
    if not profiles and (entitlement or plot):
        raise tinyqmoe.UsageError(
            f"--{'entitlement' if entitlement else 'plot'} needs a device", hint=hint
        )


def one_device(profiles: Sequence[tinyqmoe.DeviceProfile]) -> tinyqmoe.DeviceProfile:
    """The only device of a run.

    Raises UsageError for several.
    """
    if len(profiles) > 1:
        what = "a run is on one device, and --device and --device-file give two"
        raise tinyqmoe.UsageError(what, hint="leave one of them away")
    return profiles[0]


def residency_mode(residency: ResidencyMode | None) -> tinyqmoe.Mode | None:
    """The mode that an option gives, as the library knows it."""
    return None if residency is None else residency.value


def show_fit(verdicts: Sequence[tinyqmoe.FitVerdict], *, one: bool) -> None:
    """Shows the verdicts of `fit`: one device with all holders, several as a table."""
    from runtime_ref.reports import tables

    if one:
        for verdict in verdicts:
            out_console.print(tables.fit_view(verdict.plan, verdict.advice))
    elif verdicts:
        out_console.print(tables.fit_table([verdict.plan for verdict in verdicts]))


def open_verified(path: Path) -> tinyqmoe.Bundle:
    """The bundle at `path`, whose files are as its manifest says."""
    return tinyqmoe.open_bundle(path)

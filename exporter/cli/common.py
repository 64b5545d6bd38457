"""What several commands share: choosing packages and devices, opening bundles and runners."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from exporter.bundle import BACKENDS
from exporter.cli.console import out_console, progress_bars
from exporter.cli.options import (
    ResidencyMode,
)

if TYPE_CHECKING:
    from exporter.bundle import Artifact, Bundle, Manifest
    from runtime_ref.device.profile import DeviceProfile
    from runtime_ref.device.run import DevicePlan
    from runtime_ref.generate import Runner
    from runtime_ref.residency import Mode


ALL_FORMATS = tuple(BACKENDS)


def chosen_artifacts(manifest: Manifest, backends: list[str]) -> list[Artifact]:
    """All packages of these backends or formats. Raises UsageError for one the bundle has none
    of."""
    from exporter.errors import UsageError

    there = [
        a
        for a in manifest.artifacts
        if "all" in backends or a.format in backends or a.backend in backends
    ]
    known = {"all", *(name for a in there for name in (a.format, a.backend))}
    if missing := [name for name in backends if name not in known]:
        formats = ", ".join(f"{a.format} ({a.backend})" for a in manifest.artifacts)
        what = f"there is no package for {', '.join(missing)}: it has {formats}"
        raise UsageError(what, do="export it with --target")
    return there


def read_profiles(names: list[str], files: list[Path]) -> list[DeviceProfile]:
    """The devices asked for, `all` among the names. Raises UsageError, TinyQMoEError."""
    from runtime_ref.device import profile

    every = (
        profile.all_devices()
        if "all" in names
        else [profile.load(name) for name in dict.fromkeys(names)]
    )
    return [*every, *map(profile.load_file, files)]


def check_device_options(
    profiles: list[DeviceProfile],
    residency: ResidencyMode | None,
    entitlement: bool,
    plot: Path | None,
) -> None:
    """Raises UsageError for options that mean nothing without a device, and for two devices where
    one can be."""
    from exporter.errors import UsageError

    do = "give --device NAME; `tinyqmoe devices` lists them"
    if not profiles and residency is ResidencyMode.AUTO:
        raise UsageError("--residency auto fills the limit of a device, and there is none", do=do)
    if not profiles and (entitlement or plot):
        raise UsageError(f"--{'entitlement' if entitlement else 'plot'} needs a device", do=do)


def residency_mode(residency: ResidencyMode | None) -> Mode | None:
    return None if residency is None else cast("Mode", residency.value)


def plan_runs(
    manifest: Manifest,
    artifacts: list[Artifact],
    profiles: list[DeviceProfile],
    residency: ResidencyMode | None,
    entitlement: bool,
) -> list[DevicePlan]:
    """Every package on every device that runs its kind. Of several devices, those that know no
    entitlement are as they are. Raises UsageError where nothing is left.
    """
    from exporter.errors import UsageError
    from runtime_ref.device.run import plan_run

    several = len(profiles) > 1
    plans = [
        plan_run(
            manifest,
            a,
            p,
            entitlement=entitlement and (not several or p.knows_entitlement),
            mode=residency_mode(residency),
        )
        for p in profiles
        for a in artifacts
        if a.backend in p.backends
    ]
    if profiles and not plans:
        raise UsageError(
            "Core ML packages do not run on Android",
            do="choose --backend executorch, or an iOS device",
        )
    return plans


def prepare_kernels(artifact: Artifact) -> None:
    """Compiles the kernels here, where there is a progress bar, and not in the sandbox."""
    from runtime_ref import runners

    with progress_bars() as progress:
        runners.module(artifact.format).build(progress)


def show_fit(manifest: Manifest, plans: list[DevicePlan], *, one: bool) -> None:
    """One device with all holders, several as a table."""
    from runtime_ref.device import run
    from runtime_ref.reports import tables

    if not one:
        if plans:
            out_console.print(tables.fit_table(plans))
        return
    for p in plans:
        out_console.print(tables.fit_view(p, run.advice(manifest, p)))


def open_verified(path: Path) -> Bundle:
    from exporter.bundle import Bundle

    bundle = Bundle.open(path)
    bundle.verify()
    return bundle


def open_runner_of(bundle: Bundle, artifact: Artifact, mode: ResidencyMode | None = None) -> Runner:
    from runtime_ref.residency import Residency
    from runtime_ref.runners import open_runner

    prepare_kernels(artifact)
    with progress_bars() as progress:
        return open_runner(bundle, artifact, Residency(residency_mode(mode) or "stream"), progress)

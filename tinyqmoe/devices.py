"""Devices, and whether a package fits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from exporter.bundle import BACKENDS, MANIFEST, Bundle
from exporter.errors import UsageError
from tinyqmoe.hub import bundle_or_model
from tinyqmoe.packages import ALL, choose_packages
from tinyqmoe.settings import ExportSettings, export_config

if TYPE_CHECKING:
    from exporter.bundle import Artifact, Manifest
    from exporter.config import ExportConfig
    from exporter.progress import Progress
    from runtime_ref.device.profile import DeviceProfile
    from runtime_ref.device.run import DevicePlan
    from runtime_ref.residency import Mode

Devices = str | Path | Sequence["str | Path | DeviceProfile"]
"""One or several devices: names, TOML files, profiles; "all" is every device that ships."""


@dataclass(frozen=True)
class FitVerdict:
    """Whether a package is predicted to fit a device, and what would make it fit if it does not."""

    plan: DevicePlan
    advice: list[str]

    @property
    def fits(self) -> bool:
        """Whether the package is predicted to fit."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """Reasons why the package does not fit; empty if it does."""
        return self.plan.problems

    @property
    def device(self) -> str:
        """The name of the device."""
        return self.plan.profile.name

    @property
    def format(self) -> str:
        """The format of the package."""
        return self.plan.artifact.format

    def to_dict(self) -> dict[str, Any]:
        """The verdict, the budget and the predicted memory as plain values, in bytes."""
        return self.plan.to_dict()


def fit(
    model_or_bundle: Bundle | str | Path,
    *,
    devices: Devices = ALL,
    entitlement: bool = False,
    residency: Mode | None = None,
    backends: str | Sequence[str] = ALL,
    config: ExportConfig | None = None,
    progress: Progress | None = None,
    **settings: Unpack[ExportSettings],
) -> list[FitVerdict]:
    """Verdicts whether packages fit devices, one for each package on each device that can run it.

    Nothing is run: memory is predicted from a bundle's manifest, or from the shapes of a model
    before any export, for all formats unless the settings (as for `export`) say otherwise.
    `backends` are backends or formats. `entitlement` is iOS's increased-memory-limit; `residency`
    None is "auto". Raises TinyQMoEError.
    """
    from runtime_ref.device.run import advice

    profiles = find_devices(devices)
    model_or_bundle = bundle_or_model(model_or_bundle)
    if is_bundle(model_or_bundle):
        if given := [*(["config"] if config else []), *settings]:
            what = f"{', '.join(given)} cannot be given for a bundle: it has its own"
            raise UsageError(what, hint="leave it away, or give a model")
        manifest = _manifest(model_or_bundle)
    else:
        if config is None:
            settings = {"formats": tuple(BACKENDS), **settings}
        manifest = _estimate(model_or_bundle, export_config(config, **settings), progress)
    chosen = choose_packages(manifest, backends)
    plans = plan_packages(manifest, chosen, profiles, residency, entitlement)
    return [FitVerdict(plan, advice(manifest, plan)) for plan in plans]


def is_bundle(model_or_bundle: Bundle | str | Path) -> bool:
    """Whether this is a bundle, or else a model."""
    return isinstance(model_or_bundle, Bundle) or (Path(model_or_bundle) / MANIFEST).is_file()


def find_devices(devices: Devices = ALL) -> list[DeviceProfile]:
    """The profiles of devices, names first, then files and profiles.

    "all" among the names stands for all that ship. Raises UsageError for a name that is not known
    and TinyQMoEError for a file that does not describe a device.
    """
    given = [devices] if isinstance(devices, str | Path) else list(devices)
    if not given:
        return []
    from runtime_ref.device import profile

    wanted = [device for device in given if isinstance(device, str)]
    found = (
        profile.all_devices()
        if ALL in wanted
        else [profile.load(name) for name in dict.fromkeys(wanted)]
    )
    others = (device for device in given if not isinstance(device, str))
    return [*found, *(profile.load_file(d) if isinstance(d, Path) else d for d in others)]


def plan_packages(
    manifest: Manifest,
    artifacts: Sequence[Artifact],
    profiles: Sequence[DeviceProfile],
    residency: Mode | None,
    entitlement: bool,
) -> list[DevicePlan]:
    """Every package on every device that runs its kind, with the memory it is predicted to take.

    Of several devices, those that know no entitlement are as they are. Raises UsageError where
    nothing is left.
    """
    from runtime_ref.device.run import plan_run

    several = len(profiles) > 1
    plans = [
        plan_run(
            manifest,
            a,
            p,
            entitlement=entitlement and (not several or p.knows_entitlement),
            mode=residency,
        )
        for p in profiles
        for a in artifacts
        if a.backend in p.backends
    ]
    if profiles and not plans:
        raise UsageError(
            "Core ML packages do not run on Android",
            hint="choose --backend executorch, or an iOS device",
        )
    return plans


def _manifest(bundle: Bundle | str | Path) -> Manifest:
    return (bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))).manifest


def _estimate(
    model: Bundle | str | Path, config: ExportConfig, progress: Progress | None
) -> Manifest:
    """The manifest that an export would write, without the export."""
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.config import at_size, context_of
    from exporter.estimate.bundle import estimate_bundle
    from exporter.quant import plan

    assert not isinstance(model, Bundle)  # the caller has seen to that
    checkpoint = Checkpoint.open(
        model, revision=config.revision, adapter=config.adapter, progress=progress
    )
    config = at_size(config, checkpoint)
    plan.check(config.quantization, checkpoint)
    return estimate_bundle(checkpoint, config, context_of(config, checkpoint))

"""Packages that are held open for many answers: a conversation, or a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from tinyqmoe.devices import find_devices, plan_packages
from tinyqmoe.generation import Asked, GenerationSettings
from tinyqmoe.packages import PackageInUse, no_progress, prepare

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from exporter.progress import Progress
    from runtime_ref.conversation import Conversation
    from runtime_ref.device.profile import DeviceProfile
    from runtime_ref.device.run import DeviceRun
    from runtime_ref.generate import Runner
    from runtime_ref.residency import Mode


@dataclass(frozen=True)
class HeldPackage:
    """A package that is open. `device_run` is known when it has been closed, on a device."""

    bundle: Bundle
    runner: Runner
    device_run: Future[DeviceRun] | None = None


@contextlib.contextmanager
def hold_package(
    bundle: Bundle | str | Path,
    *,
    backend: str | None = None,
    residency: Mode | None = None,
    threads: int | None = None,
    device: str | Path | DeviceProfile | None = None,
    entitlement: bool = False,
    progress: Progress | None = None,
) -> Iterator[HeldPackage]:
    """Context of an open package, in this process or under the limits of a device.

    The options are as for `open_runner` and `run_on_device`. Raises TinyQMoEError.
    """
    chosen, progress = PackageInUse(bundle, backend), progress or no_progress
    if device is None:
        yield HeldPackage(chosen.bundle, chosen.open(residency, threads, progress))
        return
    from runtime_ref.device.held_runner import held_runner

    manifest, profiles = chosen.bundle.manifest, find_devices([device])
    (plan,) = plan_packages(manifest, [chosen.artifact], profiles, residency, entitlement)
    chosen.wait()
    prepare(chosen.artifact, progress)
    with held_runner(chosen.bundle, plan, progress) as (runner, run):
        yield HeldPackage(chosen.bundle, runner, run)


def converse(held: HeldPackage, **settings: Unpack[GenerationSettings]) -> Conversation:
    """A conversation with an open package, whose `ask` gives an answer piece by piece.

    The settings are those of `GenerationSettings`; a seed is that of every answer. Raises
    TinyQMoEError, also where the bundle has no chat template.
    """
    from runtime_ref.conversation import Conversation

    asked = Asked(**settings)
    encoder = asked.encoder(held.bundle)
    asked.ids(encoder, [{"role": "user", "content": "Hello"}])  # so a template fails at once
    return Conversation(encoder, held.runner, asked.sampling, asked.limits, asked.system)

"""Generating text with a package, in this process or under the limits of a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import UsageError
from tinyqmoe.devices import find_devices, plan_packages
from tinyqmoe.packages import choose_package, no_progress, open_bundle, open_runner, prepare

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from exporter.progress import Progress
    from runtime_ref.device.profile import DeviceProfile
    from runtime_ref.device.projection import Projection
    from runtime_ref.device.run import DeviceRun
    from runtime_ref.generate import Runner, TextStream
    from runtime_ref.residency import Mode, Residency


def generate(
    bundle: Bundle | str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    chat: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    backend: str | None = None,
    residency: Mode | Residency | None = None,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> TextStream:
    """An iterator of the text that follows a prompt, piece by piece as it is decoded.

    Its `result` has the tokens, the whole text, times and the reason of the end. `chat` puts the
    prompt through the model's chat template. Temperature 0 is greedy. The package is loaded before
    this returns: `backend` and `residency` are as for `open_runner`, whose runner may be given in
    their place. Raises TinyQMoEError.
    """
    from runtime_ref import generate as texts

    _check_limit(max_new_tokens)
    sampling = texts.Sampling(temperature, top_p, seed)
    bundle = open_bundle(bundle)
    ids = texts.encode_prompt(bundle, prompt, chat=chat)
    if runner is None:
        runner = open_runner(bundle, backend=backend, residency=residency, progress=progress)
    elif backend is not None or residency is not None:
        raise UsageError(
            "a runner has its backend and its residency", hint="give them to open_runner"
        )
    return texts.TextStream(bundle, runner, ids, max_new_tokens, sampling)


@dataclass(frozen=True)
class DeviceGeneration:
    """A generation under the limits of a device, and the speed projected for the device, if there
    is one to project from."""

    run: DeviceRun
    projection: Projection | None

    @property
    def fits(self) -> bool:
        """Whether the run ended and stayed within the limits."""
        return self.run.fits

    @property
    def text(self) -> str | None:
        """The text that follows the prompt; None for a run that was ended by a limit."""
        result = self.run.report.result
        return None if result is None else str(result["text"])

    def to_dict(self) -> dict[str, Any]:
        """The run and the projection as plain values."""
        projection = self.projection and asdict(self.projection)
        return self.run.to_dict() | {"projection": projection}


def run_on_device(
    bundle: Bundle | str | Path,
    prompt: str,
    device: str | Path | DeviceProfile,
    *,
    entitlement: bool = False,
    max_new_tokens: int = 128,
    chat: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    backend: str | None = None,
    residency: Mode | None = None,
    progress: Progress | None = None,
) -> DeviceGeneration:
    """A generation in a process of its own, under the memory limits of a device.

    `device` is a name of `find_devices`, a TOML file or a profile; `entitlement` is iOS's
    increased-memory-limit; `residency` None is "auto". The rest is as for `generate`. A package
    that does not fit is no error: `fits` of the result says so. Raises TinyQMoEError.
    """
    from runtime_ref import generate as texts
    from runtime_ref.device import run as device_runs

    _check_limit(max_new_tokens)
    sampling = texts.Sampling(temperature, top_p, seed)
    profiles = find_devices([device])
    bundle, progress = open_bundle(bundle), progress or no_progress
    ids = texts.encode_prompt(bundle, prompt, chat=chat)
    artifact = choose_package(bundle, backend)
    (placed,) = plan_packages(bundle.manifest, [artifact], profiles, residency, entitlement)
    prepare(artifact, progress)
    arguments = {"prompt": ids, "max_new_tokens": max_new_tokens, "sampling": vars(sampling)}
    done = device_runs.run(bundle, placed, "generate", arguments, progress)
    return DeviceGeneration(done, device_runs.project_speed(bundle, done))


def _check_limit(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be a positive number, got {max_new_tokens}")

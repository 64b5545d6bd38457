"""Generating text with a package, in this process or under the limits of a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import UsageError
from tinyqmoe.devices import find_devices, plan_packages
from tinyqmoe.packages import PackageInUse, no_progress, prepare

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
    threads: int | None = None,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> TextStream:
    """An iterator of the text that follows a prompt, piece by piece as it is decoded.

    Its `result` has the tokens, the whole text, times and the reason of the end. `chat` puts the
    prompt through the model's chat template. Temperature 0 is greedy. The package is loaded before
    this returns: `backend`, `residency` and `threads` are as for `open_runner`, whose runner may be
    given in their place. Of a path, the files that are used are verified. Raises TinyQMoEError.
    """
    from runtime_ref import generate as texts

    _check_limit(max_new_tokens)
    sampling = texts.Sampling(temperature, top_p, seed)
    if runner is not None and (backend, residency, threads) != (None, None, None):
        raise UsageError(
            "a runner has its backend, residency and threads", hint="give them to open_runner"
        )
    chosen = PackageInUse(bundle, runner.artifact.format if runner else backend)
    tokenizer = texts.load_tokenizer(chosen.bundle)
    ids = texts.encode_prompt(chosen.bundle, prompt, chat=chat, tokenizer=tokenizer)
    if runner is None:
        runner = chosen.open(residency, threads, progress or no_progress)
    chosen.wait()
    return texts.TextStream(chosen.bundle, runner, ids, max_new_tokens, sampling, tokenizer)


@dataclass(frozen=True)
class DeviceGeneration:
    """A generation under the limits of a device, and the speed projected for the device.

    The projection is None if there is nothing to project from.
    """

    run: DeviceRun
    projection: Projection | None

    @property
    def fits(self) -> bool:
        """Whether the run ended and stayed within the limits."""
        return self.run.fits

    @property
    def text(self) -> str | None:
        """The text that follows the prompt.

        It is None for a run that was ended by a limit.
        """
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
    chosen, progress = PackageInUse(bundle, backend), progress or no_progress
    bundle, artifact = chosen.bundle, chosen.artifact
    ids = texts.encode_prompt(bundle, prompt, chat=chat)
    (placed,) = plan_packages(bundle.manifest, [artifact], profiles, residency, entitlement)
    chosen.wait()
    prepare(artifact, progress)
    arguments = {"prompt": ids, "max_new_tokens": max_new_tokens, "sampling": vars(sampling)}
    done = device_runs.run(bundle, placed, "generate", arguments, progress)
    return DeviceGeneration(done, device_runs.project_speed(bundle, done))


def _check_limit(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be a positive number, got {max_new_tokens}")

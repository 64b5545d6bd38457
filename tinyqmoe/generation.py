"""Generating text with a package, in this process or under the limits of a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from exporter.errors import UsageError
from tinyqmoe.devices import find_devices, plan_packages
from tinyqmoe.packages import PackageInUse, no_progress, prepare
from tinyqmoe.settings import names

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from exporter.chat import Message
    from exporter.progress import Progress
    from runtime_ref.device.profile import DeviceProfile
    from runtime_ref.device.projection import Projection
    from runtime_ref.device.run import DeviceRun
    from runtime_ref.generate import Runner, TextStream
    from runtime_ref.prompts import PromptEncoder
    from runtime_ref.residency import Mode, Residency


class GenerationSettings(TypedDict, total=False):
    """The settings of a generation.

    max_new_tokens: limit of the answer, 128 by default. stop: texts before which it ends.
    temperature: 0, the default, is greedy. top_p: sample from the likeliest tokens of that
    probability. seed: of the sampling. chat: whether the prompt goes through the model's chat
    template; a list of messages does, and any prompt with a system prompt or a template.
    system: system prompt of a chat. chat_template: a template by name, or a file, in the place of
    the bundle's default one. allow_special: whether the prompt may hold control tokens; else their
    text is text like any other.
    """

    max_new_tokens: int
    stop: str | Sequence[str]
    temperature: float
    top_p: float
    seed: int
    chat: bool
    system: str | None
    chat_template: str | None
    allow_special: bool


def generate(
    bundle: Bundle | str | Path,
    prompt: str | Sequence[Message],
    *,
    backend: str | None = None,
    residency: Mode | Residency | None = None,
    threads: int | None = None,
    runner: Runner | None = None,
    progress: Progress | None = None,
    **settings: Unpack[GenerationSettings],
) -> TextStream:
    """An iterator of the text that follows a prompt, piece by piece as it is decoded.

    The prompt is a text, or the messages of a conversation (`{"role": ..., "content": ...}`). The
    `result` has the tokens, the whole text, times and the reason of the end. The settings are those
    of `GenerationSettings`. The package is loaded before this returns: `backend`, `residency` and
    `threads` are as for `open_runner`, whose runner may be given in their place. Of a path, the
    files that are used are verified. Raises TinyQMoEError.
    """
    from runtime_ref.generate import TextStream

    asked = Asked(**settings)
    if runner is not None and (backend, residency, threads) != (None, None, None):
        raise UsageError(
            "a runner has its backend, residency and threads", hint="give them to open_runner"
        )
    chosen = PackageInUse(bundle, runner.artifact.format if runner else backend)
    encoder = asked.encoder(chosen.bundle)
    ids = asked.ids(encoder, prompt)
    if runner is None:
        runner = chosen.open(residency, threads, progress or no_progress)
    chosen.wait()
    limits, sampling = asked.limits, asked.sampling
    return TextStream(chosen.bundle, runner, ids, limits, sampling, encoder.tokenizer)


class Asked:
    """What is asked of a generation, with `GenerationSettings`. Raises UsageError."""

    def __init__(self, **settings: Unpack[GenerationSettings]) -> None:
        from runtime_ref.generate import Limits, Sampling

        given = {"temperature", "top_p", "seed"} & settings.keys()
        self.sampling = Sampling(**{name: settings[name] for name in given})  # type: ignore[literal-required]
        self.limits = Limits(
            settings.get("max_new_tokens", Limits.max_new_tokens), names(settings.get("stop", ()))
        )
        self.system = settings.get("system")
        for_chats = ("system", "chat_template")
        self.is_chat = settings.get("chat", False) or any(
            settings.get(name) is not None for name in for_chats
        )
        self._settings = settings

    def encoder(self, bundle: Bundle) -> PromptEncoder:
        """Encoder of the prompts. Raises BundleError."""
        from runtime_ref.prompts import PromptEncoder

        return PromptEncoder(
            bundle,
            wanted_template=self._settings.get("chat_template"),
            allow_special=self._settings.get("allow_special", False),
        )

    def ids(self, encoder: PromptEncoder, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of the prompt. Raises TinyQMoEError."""
        from runtime_ref.conversation import check_messages

        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        if not isinstance(prompt, str):
            return encoder.chat(check_messages([*system, *prompt]))
        if self.is_chat:
            return encoder.chat([*system, {"role": "user", "content": prompt}])
        return encoder.text(prompt)


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
    prompt: str | Sequence[Message],
    device: str | Path | DeviceProfile,
    *,
    entitlement: bool = False,
    backend: str | None = None,
    residency: Mode | None = None,
    progress: Progress | None = None,
    **settings: Unpack[GenerationSettings],
) -> DeviceGeneration:
    """A generation in a process of its own, under the memory limits of a device.

    `device` is a name of `find_devices`, a TOML file or a profile; `entitlement` is iOS's
    increased-memory-limit; `residency` None is "auto". The rest is as for `generate`. A package
    that does not fit is no error: `fits` of the result says so. Raises TinyQMoEError.
    """
    from runtime_ref.device import run as device_runs

    asked = Asked(**settings)
    profiles = find_devices([device])
    chosen, progress = PackageInUse(bundle, backend), progress or no_progress
    bundle, artifact = chosen.bundle, chosen.artifact
    ids = asked.ids(asked.encoder(bundle), prompt)
    (placed,) = plan_packages(bundle.manifest, [artifact], profiles, residency, entitlement)
    chosen.wait()
    prepare(artifact, progress)
    arguments = {
        "prompt": ids,
        "limits": asdict(asked.limits),
        "sampling": asdict(asked.sampling),
    }
    done = device_runs.run(bundle, placed, "generate", arguments, progress)
    return DeviceGeneration(done, device_runs.project_speed(bundle, done))

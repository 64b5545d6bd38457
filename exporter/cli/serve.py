"""The command that serves a package over HTTP: serve."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

import tinyqmoe
from exporter.cli.common import check_device_options, one_device, open_verified, residency_mode
from exporter.cli.console import emit, err_console, out_console, progress_bars
from exporter.cli.generation_options import AllowSpecialOption, ChatTemplateOption
from exporter.cli.options import (
    BackendOption,
    BundleArgument,
    EntitlementOption,
    JsonOption,
    OneDeviceFileOption,
    OneDeviceOption,
    ResidencyOption,
    ThreadsOption,
    Verification,
    VerifyOption,
)
from exporter.cli.signals import own_interrupts
from exporter.errors import UsageError

HostOption = Annotated[
    str,
    typer.Option(metavar="ADDRESS", help="Where to listen. Nothing asks for a key: mind who can."),
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="0 is one that is free.")]
QueueOption = Annotated[
    int, typer.Option("--queue", min=0, help="Requests that may wait; the next is refused: 429.")
]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
SecondsOption = Annotated[
    float, typer.Option("--timeout", min=0.001, help="An answer ends after so many seconds.")
]


def serve(
    bundle_path: BundleArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    queue: QueueOption = 8,
    max_tokens: MaxTokensOption = 1024,
    timeout: SecondsOption = 300.0,
    chat_template: ChatTemplateOption = None,
    allow_special: AllowSpecialOption = False,
    backend: BackendOption = None,
    residency: ResidencyOption = None,
    threads: ThreadsOption = None,
    verify: VerifyOption = Verification.USED,
    device: OneDeviceOption = None,
    device_file: OneDeviceFileOption = None,
    entitlement: EntitlementOption = False,
    json_file: JsonOption = None,
) -> None:
    """Answer OpenAI's clients with a package, on this machine.

    /v1/chat/completions, /v1/completions, /v1/models and /health. Requests are answered one after
    the other. Ctrl-C ends. --json writes the address as soon as the server listens.
    """
    profiles = tinyqmoe.find_devices([name for name in (device, device_file) if name])
    check_device_options(profiles, entitlement, None)
    if profiles and threads is not None:
        what = "a server on a device takes as many threads as the process may use"
        raise UsageError(what, hint="leave --threads or --device away")
    package: dict[str, Any] = {
        "backend": backend,
        "residency": residency_mode(residency),
        "threads": threads,
        "device": one_device(profiles) if profiles else None,
        "entitlement": entitlement,
    }
    limits = tinyqmoe.ServerLimits(waiting=queue, new_tokens=max_tokens, seconds=timeout)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(tinyqmoe.listen(host, port))
        bundle = open_verified(bundle_path) if verify is Verification.ALL else bundle_path
        with progress_bars() as progress:
            opening = tinyqmoe.hold_package(bundle, progress=progress, **package)
            held = stack.enter_context(opening)
        name, number = held.bundle.manifest.model.name, listening.getsockname()[1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{number}/v1"
        what = f"{name} answers at {url}, Ctrl-C ends"
        emit(
            json_file,
            lambda: {"url": url, "model": name},
            lambda: out_console.print(what, markup=False, highlight=False, soft_wrap=True),
        )
        with contextlib.suppress(KeyboardInterrupt), own_interrupts():
            tinyqmoe.serve(
                listening,
                held,
                limits,
                _log,
                chat_template=chat_template,
                allow_special=allow_special,
            )


def _log(line: str) -> None:
    err_console.print(line, markup=False, highlight=False, soft_wrap=True)

"""The commands that run packages: run and parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

import tinyqmoe
from exporter.cli.common import check_device_options, one_device, open_verified, residency_mode
from exporter.cli.console import emit, err_console, out_console, progress_bars, stream
from exporter.cli.generation_options import (
    AllowSpecialOption,
    ChatOption,
    ChatTemplateOption,
    MaxNewTokensOption,
    MessagesOption,
    PromptOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
)
from exporter.cli.options import (
    BackendOption,
    BackendsOption,
    BundleArgument,
    DeviceFilesOption,
    DevicesOption,
    EntitlementOption,
    HtmlOption,
    JsonOption,
    JUnitOption,
    MarkdownOption,
    OneDeviceFileOption,
    OneDeviceOption,
    PlotOption,
    ResidencyOption,
    ThreadsOption,
    Verification,
    VerifyOption,
)
from exporter.cli.prompt_input import Prompt, read_prompt
from exporter.errors import OutOfSpaceError

STOPPED = {
    "eos": "end of text",
    "stop": "a stop string",
    "limit": "token limit",
    "context": "the context is full",
}


def run(
    bundle_path: BundleArgument,
    prompt: PromptOption = None,
    messages: MessagesOption = None,
    system: SystemOption = None,
    max_new_tokens: MaxNewTokensOption = 128,
    stop: StopOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    chat: ChatOption = False,
    chat_template: ChatTemplateOption = None,
    allow_special: AllowSpecialOption = False,
    backend: BackendOption = None,
    residency: ResidencyOption = None,
    threads: ThreadsOption = None,
    verify: VerifyOption = Verification.USED,
    device: OneDeviceOption = None,
    device_file: OneDeviceFileOption = None,
    entitlement: EntitlementOption = False,
    plot: PlotOption = None,
    json_file: JsonOption = None,
) -> None:
    """Generate text with a package, by default in the C++ core that apps link.

    ExecuTorch's package runs in its real runtime too, Core ML's in an interpreter. A prompt that is
    not given is read from stdin. --messages, --system and --chat-template make it a chat.

    On a device the package runs in a process of its own, under the phone's limits. Exit code 4 if
    it does not fit.
    """
    profiles = tinyqmoe.find_devices([name for name in (device, device_file) if name])
    check_device_options(profiles, entitlement, plot)
    if profiles and threads is not None:
        what = "a run on a device takes as many threads as the process may use"
        raise tinyqmoe.UsageError(what, hint="leave --threads or --device away")
    given = read_prompt(prompt, messages)
    bundle = open_verified(bundle_path) if verify is Verification.ALL else bundle_path
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stop": stop or (),
        "chat": chat,
        "system": system,
        "chat_template": chat_template,
        "allow_special": allow_special,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "backend": backend,
        "residency": residency_mode(residency),
    }
    is_chat = chat or messages or system is not None or chat_template
    shown = given if isinstance(given, str) and not is_chat else ""  # a chat shows the answer alone
    if profiles:
        options |= {"device": one_device(profiles), "entitlement": entitlement}
        _run_on_device(bundle, given, options, shown, plot, json_file)
    else:
        _run_here(bundle, given, options | {"threads": threads}, shown, json_file)


def _run_here(
    bundle: tinyqmoe.Bundle | Path,
    prompt: Prompt,
    options: dict[str, Any],
    shown: str,
    json_file: Path | None,
) -> None:
    with progress_bars() as progress:
        text = tinyqmoe.generate(bundle, prompt, progress=progress, **options)
    if str(json_file) != "-":
        stream(shown, style="dim")
        for piece in text:
            stream(piece)
    emit(json_file, lambda: run_json(text.result), lambda: _show_run(text))


def _run_on_device(
    bundle: tinyqmoe.Bundle | Path,
    prompt: Prompt,
    options: dict[str, Any],
    shown: str,
    plot: Path | None,
    json_file: Path | None,
) -> None:
    from runtime_ref.reports.plot import plot_memory
    from runtime_ref.reports.run_tables import run_view

    with progress_bars() as progress:
        done = tinyqmoe.run_on_device(bundle, prompt, progress=progress, **options)
    if plot is not None:
        plot_memory(done.run, plot)

    def show() -> None:
        if done.text is not None:
            stream(shown, style="dim")
            out_console.print(done.text, "\n", highlight=False, markup=False, soft_wrap=True)
        out_console.print(run_view(done.run, done.projection))

    emit(json_file, done.to_dict, show)
    if not done.fits:
        raise typer.Exit(OutOfSpaceError.exit_code)


def parity(
    bundle_path: BundleArgument,
    backend: BackendsOption = ["all"],  # noqa: B006  (typer copies it)
    residency: ResidencyOption = None,
    device: DevicesOption = None,
    device_file: DeviceFilesOption = None,
    entitlement: EntitlementOption = False,
    junit: JUnitOption = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    json_file: JsonOption = None,
) -> None:
    """Check that the packages answer like the quantized model in PyTorch.

    Exit code 1 if one does not. On devices each package is checked in a process of its own, under
    the phone's limits, and must fit besides.
    """
    profiles = tinyqmoe.find_devices([*(device or []), *(device_file or [])])
    check_device_options(profiles, entitlement, None)
    bundle = open_verified(bundle_path)
    with progress_bars() as progress:
        verdict = tinyqmoe.check_parity(
            bundle,
            backends=[str(b) for b in backend],
            residency=residency_mode(residency),
            devices=profiles,
            entitlement=entitlement,
            progress=progress,
        )
    emit(json_file, verdict.to_dict, lambda: _show_verdict(verdict))
    _write_reports(verdict, bundle, junit, markdown, html)
    if not verdict.passed:
        raise typer.Exit(1)


def _write_reports(
    verdict: tinyqmoe.BundleParity,
    bundle: tinyqmoe.Bundle,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
) -> None:
    from runtime_ref.reports import files

    if markdown is not None:
        files.write_markdown(verdict.packages, bundle, markdown)
    if html is not None:
        files.write_html(verdict.packages, bundle, html)
    if junit is not None:
        files.write_junit(verdict.packages, junit)


def _show_verdict(verdict: tinyqmoe.BundleParity) -> None:
    """Shows the parity of each package, then how each did on each device.

    Of a package on several devices, the one that failed is shown.
    """
    from runtime_ref.reports.run_tables import run_table

    reports = sorted(verdict.reports, key=lambda report: report.passed, reverse=True)
    show_parity(list({report.backend: report for report in reports}.values()))
    if runs := [judged.run for judged in verdict.packages if judged.run]:
        out_console.print(run_table(runs))


def show_parity(reports: list[tinyqmoe.ParityReport]) -> None:
    """Shows one package in detail, several side by side, and in detail only those that fail."""
    from runtime_ref.reports.parity_tables import parity_table, side_by_side

    for report in reports:
        if len(reports) == 1 or not report.passed:
            out_console.print(parity_table(report))
    if len(reports) > 1:
        out_console.print(side_by_side(reports))


def _show_run(text: tinyqmoe.TextStream) -> None:
    result, expanded = text.result, tinyqmoe.expanded_bytes(text.runner)
    out_console.print()
    why = STOPPED[result.stopped]
    err_console.print(
        f"[dim]{len(result.prompt_tokens)} + {len(result.tokens)} tokens, ended by {why}; "
        f"prefill {result.prefill_ms:.0f} ms, decode {result.decode_tokens_per_second:.1f} "
        f"tokens/s on this machine{expanded_note(expanded)}[/]",
        highlight=False,
        soft_wrap=True,
    )


def expanded_note(n_bytes: int) -> str:
    """What is said of memory that expanded weights take; nothing where there are none."""
    return f"; {n_bytes / 1e6:,.0f} MB hold expanded weights" if n_bytes else ""


def run_json(result: tinyqmoe.RunResult) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(result), "decode_tokens_per_second": result.decode_tokens_per_second}

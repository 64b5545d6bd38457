"""The commands that run packages: run and parity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exporter.cli.console import emit, err_console, out_console, progress_bars, stream
from exporter.cli.options import (
    BackendOption,
    BackendsOption,
    BundleArgument,
    DeviceFilesOption,
    DevicesOption,
    EntitlementOption,
    JsonOption,
    ResidencyMode,
    ResidencyOption,
    writable,
)
from exporter.errors import OutOfSpaceError

if TYPE_CHECKING:
    from exporter.bundle import Artifact, Bundle
    from runtime_ref.device.profile import DeviceProfile
    from runtime_ref.device.run import DevicePlan
    from runtime_ref.generate import Runner, RunResult
    from runtime_ref.parity import ParityReport
    from runtime_ref.reports.files import Judged
from exporter.cli.common import (
    check_device_options,
    chosen_artifacts,
    open_runner_of,
    open_verified,
    plan_runs,
    prepare_kernels,
    read_profiles,
)


def run(
    bundle_path: BundleArgument,
    prompt: Annotated[str, typer.Option(help="What the model goes on from.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens of this total probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt through the model's chat template.")
    ] = False,
    backend: BackendOption = None,
    residency: ResidencyOption = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run under the limits of this phone.")
    ] = None,
    device_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run under the limits of a phone of your own."),
    ] = None,
    entitlement: EntitlementOption = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=writable, help="Memory over time as a PNG; needs a device."
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Generate text with a package: ExecuTorch's in the real runtime, Core ML's in an interpreter.

    On a device the package runs in a process of its own, under the phone's limits. Exit code 4 if
    it does not fit.
    """
    from runtime_ref import generate

    sampling = generate.Sampling(temperature, top_p, seed)
    profiles = read_profiles([device] if device else [], [device_file] if device_file else [])
    check_device_options(profiles, residency, entitlement, plot)
    bundle = open_verified(bundle_path)
    ids = generate.encode_prompt(bundle, prompt, chat=chat)
    artifact = bundle.manifest.artifacts[0] if backend is None else bundle.artifact(backend)
    quiet = str(json_file) == "-"
    if profiles:
        _run_on_device(
            bundle,
            artifact,
            profiles,
            residency,
            entitlement,
            plot,
            json_file,
            "" if chat else prompt,
            {"prompt": ids, "max_new_tokens": max_new_tokens, "sampling": vars(sampling)},
        )
        return
    runner = open_runner_of(bundle, artifact, residency)
    if not quiet and not chat:
        stream(prompt, style="dim")
    result = generate.run(
        bundle, runner, ids, max_new_tokens, sampling, lambda text: None if quiet else stream(text)
    )
    emit(json_file, lambda: run_json(result), lambda: _show_run(result))


def _run_on_device(
    bundle: Bundle,
    artifact: Artifact,
    profiles: list[DeviceProfile],
    residency: ResidencyMode | None,
    entitlement: bool,
    plot: Path | None,
    json_file: Path | None,
    prompt: str,
    arguments: dict[str, Any],
) -> None:
    from dataclasses import asdict

    from runtime_ref.device import run
    from runtime_ref.reports import run_tables
    from runtime_ref.reports.plot import plot_memory

    (plan,) = plan_runs(bundle.manifest, [artifact], profiles, residency, entitlement)
    prepare_kernels(artifact)
    with progress_bars() as progress:
        done = run.run(bundle, plan, "generate", arguments, progress)
    if plot is not None:
        plot_memory(done, plot)
    projection = run.project_speed(bundle, done)
    result = done.to_dict() | {"projection": projection and asdict(projection)}

    def show() -> None:
        if done.report.result is not None:
            stream(prompt, style="dim")
            out_console.print(
                done.report.result["text"], "\n", highlight=False, markup=False, soft_wrap=True
            )
        out_console.print(run_tables.run_view(done, projection))

    emit(json_file, lambda: result, show)
    if not done.fits:
        raise typer.Exit(OutOfSpaceError.exit_code)


def parity(
    bundle_path: BundleArgument,
    backend: BackendsOption = ["all"],  # noqa: B006  (typer copies it)
    residency: ResidencyOption = None,
    device: DevicesOption = None,
    device_file: DeviceFilesOption = None,
    entitlement: EntitlementOption = False,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=writable, help="For CI: a test case for each check."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=writable, help="For a pull request.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=writable, help="For a browser, with memory over time."
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Check that the packages answer like the quantized model in PyTorch. Exit code 1 if one does
    not.

    On devices each package is checked in a process of its own, under the phone's limits, and must
    fit besides.
    """
    from runtime_ref.reports import files as report_files

    profiles = read_profiles(device or [], device_file or [])
    check_device_options(profiles, residency, entitlement, None)
    bundle = open_verified(bundle_path)
    chosen = chosen_artifacts(bundle.manifest, backend)
    if profiles:
        plans = plan_runs(bundle.manifest, chosen, profiles, residency, entitlement)
        results = _judge_on_devices(bundle, plans)
    else:
        results = [
            report_files.Judged(judge(bundle, open_runner_of(bundle, a, residency)), None)
            for a in chosen
        ]
    emit(json_file, lambda: _judged_json(results), lambda: _show_judged(results))
    for write, path in ((report_files.write_markdown, markdown), (report_files.write_html, html)):
        if path is not None:
            write(results, bundle, path)
    if junit is not None:
        report_files.write_junit(results, junit)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _judge_on_devices(bundle: Bundle, plans: list[DevicePlan]) -> list[Judged]:
    from runtime_ref.device import run
    from runtime_ref.device.sandbox_tasks import parity_report
    from runtime_ref.reports.files import Judged

    for p in plans:
        prepare_kernels(p.artifact)
    with progress_bars() as progress:
        runs = run.run_each(bundle, plans, "parity", progress)
    return [Judged(parity_report(r.report.result) if r.report.result else None, r) for r in runs]


def judge(bundle: Bundle, runner: Runner) -> ParityReport:
    from runtime_ref.parity import check_parity, work_tokens

    total, done = work_tokens(bundle, runner.artifact), 0
    stage = f"check parity of {runner.name}"
    with progress_bars() as progress:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress(stage, done, total)

        progress(stage, 0, total)
        return check_parity(bundle, runner, advance)


def parity_json(reports: list[ParityReport]) -> dict[str, Any]:
    return {"passed": all(r.passed for r in reports), "packages": [r.to_dict() for r in reports]}


def _judged_json(results: list[Judged]) -> dict[str, Any]:
    """Without devices as `parity_json`; with them a run for each package and device besides."""
    plain = parity_json([r.parity for r in results if r.parity])
    runs = [r.run.to_dict() for r in results if r.run]
    return plain | ({"passed": all(r.passed for r in results), "devices": runs} if runs else {})


def _show_judged(results: list[Judged]) -> None:
    """Parity of each package, on several devices the one that failed, then how each did on each
    device."""
    from runtime_ref.reports.run_tables import run_table

    reports = [r.parity for r in results if r.parity]
    show_parity(
        list({r.backend: r for r in sorted(reports, key=lambda r: r.passed, reverse=True)}.values())
    )
    if runs := [r.run for r in results if r.run]:
        out_console.print(run_table(runs))


def show_parity(reports: list[ParityReport]) -> None:
    """One package in detail, several side by side and in detail only those that fail."""
    from runtime_ref.reports.parity_tables import parity_table, side_by_side

    for report in reports:
        if len(reports) == 1 or not report.passed:
            out_console.print(parity_table(report))
    if len(reports) > 1:
        out_console.print(side_by_side(reports))


def _show_run(result: RunResult) -> None:
    out_console.print()
    why = {"eos": "end of text", "limit": "token limit", "context": "the context is full"}[
        result.stopped
    ]
    err_console.print(
        f"[dim]{len(result.prompt_tokens)} + {len(result.tokens)} tokens, ended by {why}; "
        f"prefill {result.prefill_ms:.0f} ms, decode {result.decode_tokens_per_second:.1f} "
        "tokens/s on this machine[/]",
        highlight=False,
        soft_wrap=True,
    )


def run_json(result: RunResult) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(result), "decode_tokens_per_second": result.decode_tokens_per_second}

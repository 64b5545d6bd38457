"""The command check: all gates of a bundle in one verdict, for a team's CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import tinyqmoe
from exporter.cli.common import open_verified
from exporter.cli.console import emit, err_console, out_console, progress_bars
from exporter.cli.options import (
    BundleArgument,
    DevicesOption,
    JsonOption,
    JUnitOption,
    MarkdownOption,
    Packages,
    report,
    size,
)

CheckedBackendsOption = Annotated[
    list[Packages] | None,
    typer.Option("--backend", help="Which packages, all that ship by default. Can be repeated."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings as TOML under [check]; tinyqmoe.toml here by default. Options win over it.",
    ),
]
MaxBytesOption = Annotated[
    int | None,
    typer.Option(parser=size, metavar="SIZE", help="Largest size of a package, such as 80MB."),
]
MaxDirtyOption = Annotated[
    int | None,
    typer.Option(
        parser=size, metavar="SIZE", help="Most dirty memory of a package, predicted, streaming."
    ),
]
MaxKLOption = Annotated[
    float | None, typer.Option(metavar="NATS", help="Largest KL from the original.")
]
MinTop1Option = Annotated[
    float | None,
    typer.Option("--min-top1", metavar="SHARE", help="Least share of the same best token."),
]
MaxRatioOption = Annotated[
    float | None, typer.Option(metavar="RATIO", help="Largest perplexity over the original's.")
]
MinSpeedOption = Annotated[
    float | None,
    typer.Option(
        "--min-tokens-per-second-projected",
        metavar="SPEED",
        help="Least projected speed of decoding on each --device.",
    ),
]
BaselineOption = Annotated[
    str | None,
    typer.Option(metavar="BUNDLE|JSON", help="What may not get worse: a bundle, or its --json."),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(metavar="PERCENT", help="Growth of bytes and memory since it; by default 1."),
]
ToleranceKLOption = Annotated[
    float | None,
    typer.Option(metavar="NATS", help="Growth of the KL since it; by default 0.001."),
]


CheckHtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", callback=report, help="For a browser: one file with its plots."
    ),
]


def check(
    bundle_path: BundleArgument,
    backend: CheckedBackendsOption = None,
    device: DevicesOption = None,
    max_bytes: MaxBytesOption = None,
    max_dirty: MaxDirtyOption = None,
    max_kl: MaxKLOption = None,
    min_top1: MinTop1Option = None,
    max_perplexity_ratio: MaxRatioOption = None,
    min_tokens_per_second_projected: MinSpeedOption = None,
    baseline: BaselineOption = None,
    tolerance: ToleranceOption = None,
    tolerance_kl: ToleranceKLOption = None,
    config: ConfigOption = None,
    junit: JUnitOption = None,
    markdown: MarkdownOption = None,
    html: CheckHtmlOption = None,
    json_file: JsonOption = None,
) -> None:
    """Judge a bundle by all gates of a team's CI: parity, fit, limits, and a baseline.

    Exit code 1 if a gate fails; each says what to do. Whether a package fits a phone is predicted;
    `tinyqmoe parity --device` enforces it.
    """
    options = {
        "backend": None if backend is None else [str(b) for b in backend],
        "device": device,
        "max_bytes": max_bytes,
        "max_dirty": max_dirty,
        "max_kl": max_kl,
        "min_top1": min_top1,
        "max_perplexity_ratio": max_perplexity_ratio,
        "min_tokens_per_second_projected": min_tokens_per_second_projected,
        "baseline": baseline,
        "tolerance": tolerance,
        "tolerance_kl": tolerance_kl,
    }
    settings = _settings(config, {name: v for name, v in options.items() if v is not None})
    bundle = open_verified(bundle_path)
    with progress_bars() as progress:
        verdict = tinyqmoe.check(bundle, settings, progress=progress)
    emit(json_file, verdict.to_dict, lambda: _show(verdict))
    _write_reports(verdict, junit, markdown, html)
    if not verdict.passed:
        raise typer.Exit(1)


def _settings(config: Path | None, options: dict[str, Any]) -> tinyqmoe.CheckSettings:
    """The settings of the file, if one is given or there, and of the options, which win."""
    from_file: dict[str, Any] = {}
    found = Path(tinyqmoe.CHECK_FILE)
    if config is not None or found.is_file():
        file = config or found
        from_file = tinyqmoe.read_check_file(file)
        err_console.print(f"[dim]settings of {file}[/]", highlight=False, soft_wrap=True)
    return tinyqmoe.CheckSettings(**from_file | options)


def _show(verdict: tinyqmoe.BundleCheck) -> None:
    from runtime_ref.reports.gate_reports import changes_table, gates_table

    out_console.print(gates_table(verdict.gates))
    if changes := verdict.changes:
        out_console.print(changes_table(changes))


def _write_reports(
    verdict: tinyqmoe.BundleCheck, junit: Path | None, markdown: Path | None, html: Path | None
) -> None:
    from runtime_ref.reports import gate_reports

    judged = gate_reports.JudgedGates(
        verdict.gates, verdict.changes, verdict.facts, verdict.baseline
    )
    if markdown is not None:
        gate_reports.write_markdown(judged, markdown)
    if junit is not None:
        gate_reports.write_junit(verdict.gates, junit)
    if html is not None:
        gate_reports.write_html(judged, html)

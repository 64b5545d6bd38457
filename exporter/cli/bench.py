"""The command bench: how fast a package is on this machine, and what memory it takes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

import tinyqmoe
from exporter.cli.console import emit, out_console, progress_bars
from exporter.cli.options import BackendOption, BundleArgument, JsonOption, ResidencyMode


def bench(
    bundle_path: BundleArgument,
    context: Annotated[
        list[int], typer.Option(min=0, help="Positions that are filled before. Can be repeated.")
    ] = [0],  # noqa: B006  (typer copies it)
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads of --backend native, by default all. Can be repeated."),
    ] = None,
    residency: Annotated[
        list[ResidencyMode] | None,
        typer.Option(help="Where weights lie, as for run. Can be repeated."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prefill.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are decoded.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median is shown.")] = 5,
    backend: BackendOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure decode, prefill, load and memory of a package on this machine.

    Every residency is measured with every number of threads, at every context.
    """
    settings = tinyqmoe.BenchSettings(
        residencies=[mode.value for mode in residency or ()],
        threads=threads or (),
        contexts=context,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
    )
    with progress_bars() as progress:
        found = tinyqmoe.bench(bundle_path, settings, backend=backend, progress=progress)
    emit(json_file, found.to_dict, lambda: _show(found))


def _show(found: tinyqmoe.Bench) -> None:
    head = f"{found.model}, {found.package}; {found.machine}; medians of {found.rounds} rounds"
    out_console.print(head, markup=False, highlight=False, soft_wrap=True)
    table = Table()
    columns = ("residency", "threads", "context", "prefill tokens/s", "decode tokens/s")
    for name in (*columns, "of bandwidth", "load", "expanded", "resident"):
        table.add_column(name, justify="right")
    for run in found.runs:
        for point in run.points:
            table.add_row(
                *(run.residency, str(run.threads or "its own"), f"{point.context:,}"),
                *(f"{s.median:,.1f} ({s.lowest:,.1f})" for s in (point.prefill, point.decode)),
                *(f"{point.bandwidth_share:.0%}", f"{run.load_ms:,.0f} ms"),
                *(f"{n / 1e6:,.0f} MB" for n in (run.expanded_bytes, run.resident_bytes)),
            )
    out_console.print(table)
    rates = {run.threads: f"{run.bandwidth / 1e9:.1f} GB/s" for run in found.runs}
    shown = ", ".join(f"{rate} by {threads or 'all'}" for threads, rate in rates.items())
    note = f"in brackets the slowest round; read bandwidth {shown} threads, by NumPy's maximum"
    out_console.print(note, style="dim", highlight=False, soft_wrap=True)

"""Tables of parity reports on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from runtime_ref.parity import Check, ParityReport


def parity_table(report: ParityReport) -> Table:
    """Table with a line for each check, the gates in the title, the verdict in the caption."""
    verdict, like = (
        ("[bold green]PASS", "like") if report.passed else ("[bold red]FAIL", "NOT like")
    )
    table = Table(
        title=f"Parity of the {report.backend} package. {gate_text(report)}",
        caption=f"{verdict}[/] the package answers {like} the quantized model in PyTorch",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("verdict", "what"):
        table.add_column(name)
    for name in ("KL median", "KL worst", "dB median", "dB worst", "top-1"):
        table.add_column(name, justify="right")
    table.add_column("result")
    for check in report.checks:
        result = "[green]pass" if check.passed else "[red]FAIL"
        table.add_row(check.verdict, _what(check), *_figures(check), result)
    return table


def gate_text(report: ParityReport) -> str:
    """Text of the gate of a report, KL in nats."""
    gate = report.tolerance
    return (
        f"{report.activations} activations, {report.kv_type} KV cache: median KL <= "
        f"{gate.median_kl:g} and SQNR >= {gate.median_sqnr_db:g} dB, "
        f"worst KL <= {gate.worst_kl:g} and SQNR >= {gate.worst_sqnr_db:g} dB"
    )


def _what(check: Check) -> str:
    return (
        f"{escape(check.what)}\n[dim]{escape(check.detail)}[/]"
        if check.detail
        else escape(check.what)
    )


def _figures(check: Check) -> list[str]:
    kl, sqnr = (check.kl_median, check.kl_worst), (check.sqnr_db_median, check.sqnr_db_worst)
    figures = [(value, ".1e") for value in kl] + [(value, ".1f") for value in sqnr]
    top1 = "" if check.top1 is None else f"{check.top1}/{check.positions}"
    return ["" if value is None else format(value, form) for value, form in figures] + [top1]


def side_by_side(reports: Sequence[ParityReport]) -> Table:
    """Table with a line for each check and a column for each package.

    A cell has the worst SQNR, the agreement of the best tokens, and the result.
    """
    caption = "\n".join(
        f"{r.backend}: {gate_text(r)}: "
        + ("[bold green]PASS" if r.passed else "[bold red]FAIL")
        + "[/]"
        for r in reports
    )
    table = Table(
        title="Parity, side by side", caption=caption, title_justify="left", caption_justify="left"
    )
    for name in ("verdict", "what"):
        table.add_column(name)
    for report in reports:
        table.add_column(report.backend)
    lines = [{(check.verdict, check.what): check for check in report.checks} for report in reports]
    for verdict, what in dict.fromkeys(key for checks in lines for key in checks):
        cells = [_cell(checks.get((verdict, what))) for checks in lines]
        table.add_row(verdict, escape(what), *cells)
    return table


def _cell(check: Check | None) -> str:
    if check is None:
        return ""
    parts = ["[green]pass[/]" if check.passed else "[red]FAIL[/]"]
    parts += [] if check.sqnr_db_worst is None else [f"{check.sqnr_db_worst:.1f} dB"]
    parts += [] if check.top1 is None else [f"{check.top1}/{check.positions}"]
    return " ".join(parts)

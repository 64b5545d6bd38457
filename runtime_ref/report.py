"""A parity report as a table."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from runtime_ref.parity import Check, ParityReport, Tolerance


def parity_table(report: ParityReport) -> Table:
    """One line a check, the gates in the title, the verdict in the caption."""
    verdict, like = ("[bold green]PASS", "like") if report.passed else ("[bold red]FAIL", "NOT like")
    gates = "; ".join(_gate(*item) for item in report.tolerances.items())
    table = Table(
        title=f"Parity of the {report.backend} package. {gates}",
        caption=f"{verdict}[/] the package answers {like} the quantized model in PyTorch",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("verdict", "activations", "what", "KL median", "KL worst", "dB median", "dB worst", "top-1", "result"):
        table.add_column(name, justify="left" if name in ("verdict", "activations", "what", "result") else "right")
    for check in report.checks:
        result = "[green]pass" if check.passed else "[red]FAIL"
        table.add_row(check.verdict, check.arithmetic, _what(check), *_figures(check), result)
    return table


def _gate(arithmetic: str, gate: Tolerance) -> str:
    return (
        f"{arithmetic} activations: median KL <= {gate.median_kl:g} and SQNR >= {gate.median_sqnr_db:g} dB, "
        f"worst SQNR >= {gate.worst_sqnr_db:g} dB"
    )


def _what(check: Check) -> str:
    return f"{escape(check.what)}\n[dim]{escape(check.detail)}[/]" if check.detail else escape(check.what)


def _figures(check: Check) -> list[str]:
    kl, sqnr = (check.kl_median, check.kl_worst), (check.sqnr_db_median, check.sqnr_db_worst)
    figures = [(value, ".1e") for value in kl] + [(value, ".1f") for value in sqnr]
    top1 = "" if check.top1 is None else f"{check.top1}/{check.positions}"
    return ["" if value is None else format(value, form) for value, form in figures] + [top1]

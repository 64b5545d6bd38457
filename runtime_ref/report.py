"""A parity report as a table."""

from __future__ import annotations

from rich.table import Table

from runtime_ref.parity import Check, ParityReport


def parity_table(report: ParityReport) -> Table:
    """One line a check, the gates in the title, the verdict in the caption."""
    gate = report.tolerance
    verdict = "[bold green]PASS" if report.passed else "[bold red]FAIL"
    table = Table(
        title=f"Parity: {report.backend}, {report.activations} activations "
        f"(gates: KL <= {gate.max_kl:g}, SQNR >= {gate.min_sqnr_db:g} dB)",
        caption=f"{verdict}[/] the package answers {'like' if report.passed else 'NOT like'} the quantized model in PyTorch",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("verdict", "what", "KL max", "SQNR min", "|Δ| max", "top-1", "result"):
        table.add_column(name, justify="left" if name in ("verdict", "what", "result") else "right")
    for check in report.checks:
        table.add_row(check.verdict, _what(check), *_figures(check), "[green]pass" if check.passed else "[red]FAIL")
    return table


def _what(check: Check) -> str:
    return f"{check.what}\n[dim]{check.detail}[/]" if check.detail else check.what


def _figures(check: Check) -> tuple[str, str, str, str]:
    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    top1 = "" if check.top1 is None else f"{check.top1}/{check.positions}"
    return text(check.kl_max, ".1e"), text(check.sqnr_db_min, ".1f"), text(check.delta_max, ".1e"), top1

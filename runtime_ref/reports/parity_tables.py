"""Tables of parity reports on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from runtime_ref.parity import Check, ParityReport, Tolerance


def parity_table(report: ParityReport) -> Table:
    """Table with a line for each check, the gates in the title, the verdict in the caption."""
    verdict, like = (
        ("[bold green]PASS", "like") if report.passed else ("[bold red]FAIL", "NOT like")
    )
    gates = "; ".join(gate_text(*item) for item in report.tolerances.items())
    table = Table(
        title=f"Parity of the {report.backend} package. {gates}",
        caption=f"{verdict}[/] the package answers {like} the quantized model in PyTorch",
        title_justify="left",
        caption_justify="left",
    )
    for name in (
        "verdict",
        "activations",
        "what",
        "KL median",
        "KL worst",
        "dB median",
        "dB worst",
        "top-1",
        "result",
    ):
        table.add_column(
            name,
            justify="left" if name in ("verdict", "activations", "what", "result") else "right",
        )
    for check in report.checks:
        result = "[green]pass" if check.passed else "[red]FAIL"
        table.add_row(check.verdict, check.arithmetic, _what(check), *_figures(check), result)
    return table


def gate_text(arithmetic: str, gate: Tolerance) -> str:
    """Text of the gates of an arithmetic, KL in nats."""
    worst_kl = f"KL <= {gate.worst_kl:g} and " if math.isfinite(gate.worst_kl) else ""
    return (
        f"{arithmetic} activations: median KL <= {gate.median_kl:g} and SQNR >= "
        f"{gate.median_sqnr_db:g} dB, "
        f"worst {worst_kl}SQNR >= {gate.worst_sqnr_db:g} dB"
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
        f"{r.backend}: {'; '.join(gate_text(*item) for item in r.tolerances.items())}: "
        + ("[bold green]PASS" if r.passed else "[bold red]FAIL")
        + "[/]"
        for r in reports
    )
    table = Table(
        title="Parity, side by side", caption=caption, title_justify="left", caption_justify="left"
    )
    for name in ("verdict", "judged", "what"):
        table.add_column(name)
    for report in reports:
        table.add_column(report.backend)
    lines = [
        {(*judged_in(check), check.what): check for check in report.checks} for report in reports
    ]
    for verdict, judged, what in dict.fromkeys(key for checks in lines for key in checks):
        cells = [_cell(checks.get((verdict, judged, what))) for checks in lines]
        table.add_row(verdict, judged, escape(what), *cells)
    return table


def judged_in(check: Check) -> tuple[str, str]:
    """Verdict and kind of arithmetic of a check, alike for all packages.

    Packages compute in different arithmetics: each has its structure judged, and what it declares.
    """
    if check.verdict in ("levels", "context"):
        return check.verdict, "exactly"
    return check.verdict, "in float32" if check.arithmetic == "float32" else "as declared"


def _cell(check: Check | None) -> str:
    if check is None:
        return ""
    parts = ["[green]pass[/]" if check.passed else "[red]FAIL[/]"]
    parts += [] if check.sqnr_db_worst is None else [f"{check.sqnr_db_worst:.1f} dB"]
    parts += [] if check.top1 is None else [f"{check.top1}/{check.positions}"]
    return " ".join(parts)

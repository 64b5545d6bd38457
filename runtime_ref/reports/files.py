"""Files of verdicts that continuous integration and people keep: JUnit, Markdown, HTML.

A file is whole or not there; the OSError of a full disk or of a path that cannot be written goes to
the caller.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jinja2

from exporter.bundle import Bundle
from exporter.errors import require_extra
from runtime_ref.device.run import DeviceRun
from runtime_ref.parity import Check, ParityReport
from runtime_ref.reports import plot
from runtime_ref.reports.atomic import write_whole
from runtime_ref.reports.parity_tables import gate_text
from runtime_ref.reports.run_tables import outcome
from runtime_ref.reports.tables import device_title, mb_text

if TYPE_CHECKING:
    from junitparser import TestCase, TestSuite

TEMPLATES = Path(__file__).parent / "templates"
CAVEATS = "Packages were run by a reference runtime on Linux, never on a phone."
CAVEATS_RUN = (
    f"{CAVEATS} Memory was measured there, under an enforced limit; the limits are from public "
    "reports. Dirty memory "
    "cannot be dropped and is what a phone kills for; clean memory is pages of files, evicted "
    "and read again."
)
# Characters that XML 1.0 has no way to say.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&])")


@dataclass(frozen=True)
class Judged:
    """Verdict on a package, judged here or on a device in the sandbox.

    Here there is no run; in a sandbox there is no parity if the run ended before its verdict.
    """

    parity: ParityReport | None
    run: DeviceRun | None

    def __post_init__(self) -> None:
        if self.parity is None and self.run is None:
            raise ValueError("nothing was judged")

    @property
    def passed(self) -> bool:
        """Whether all that was judged passed."""
        return (self.parity is None or self.parity.passed) and (self.run is None or self.run.fits)

    @property
    def package(self) -> str:
        """Name of the package, as its runner is called."""
        if self.parity is not None:
            return self.parity.backend
        assert self.run is not None
        return self.run.plan.package

    @property
    def name(self) -> str:
        """Name of the package, and of the device if it was judged on one."""
        return (
            self.package if self.run is None else f"{self.package} on {device_title(self.run.plan)}"
        )


# ---- JUnit


def write_junit(results: Sequence[Judged], path: Path) -> None:
    """Writes a suite for each package and device, with a case for each check and the fit.

    Raises MissingComponentError.
    """
    require_extra("report", ("junitparser",), "a JUnit file")
    from junitparser import JUnitXml

    xml: Any = JUnitXml("tinyqmoe parity")  # its methods have no types
    for result in results:
        xml.append(_suite(result))
    xml.update_statistics()
    write_whole(path, xml.tostring())


def _suite(result: Judged) -> TestSuite:
    from junitparser import TestSuite

    suite = TestSuite(xml_text(result.name))
    cases = []
    if result.run is not None:
        report, budget = result.run.report, result.run.plan.budget
        suite.add_property("peak_dirty_bytes", str(report.peak_dirty_bytes))
        suite.add_property("limit_dirty_bytes", str(budget.dirty_bytes))
        suite.add_property("mechanism", report.mechanism)
        cases.append(_case(result, "fits", result.run.problems, report.wall_ms / 1e3))
    if result.parity is not None:
        for check in result.parity.checks:
            name = f"{check.verdict} {check.what}"
            cases.append(_case(result, name, _problems(check, result.parity), check.seconds))
    suite.add_testcases(cases)
    return suite


def _problems(check: Check, report: ParityReport) -> list[str]:
    """Figures of a check that failed, and of logits the gate that they failed; else nothing."""
    if check.passed:
        return []
    return [_figures(check), *([f"gate: {gate_text(report)}"] if check.verdict == "logits" else [])]


def _case(
    result: Judged, name: str, problems: Sequence[str], seconds: float | None = None
) -> TestCase:
    from junitparser import Failure, TestCase

    case = TestCase(xml_text(name), xml_text(result.name), seconds)
    if problems:
        case.result = [Failure(xml_text("; ".join(problems)))]
    return case


def xml_text(text: str) -> str:
    """Text without what neither XML nor HTML can hold, whoever wrote it."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


# ---- for people


def write_markdown(results: Sequence[Judged], bundle: Bundle, path: Path) -> None:
    """Writes a short report to paste into a pull request."""
    template = environment(autoescape=False).get_template("report.md")
    write_whole(path, xml_text(template.render(_content(results, bundle))).encode())


def write_html(results: Sequence[Judged], bundle: Bundle, path: Path) -> None:
    """Writes the same report with a figure of each run, in one file that needs no other."""
    pngs = [(result.name, plot.memory_png(run)) for result, run in _runs(results)]
    figures = [(name, base64.b64encode(png).decode("ascii")) for name, png in pngs]
    template = environment(autoescape=True).get_template("report.html")
    write_whole(
        path, xml_text(template.render(_content(results, bundle), figures=figures)).encode()
    )


def environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _markdown
    return environment


def _markdown(text: str) -> str:
    """Text as one line that means nothing to Markdown or HTML, for a cell of a table too."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _content(results: Sequence[Judged], bundle: Bundle) -> dict[str, Any]:
    """Texts that both templates show, by name."""
    failed = [result.name for result in results if not result.passed]
    reports = [result.parity for result in results if result.parity is not None]
    runs = _runs(results)
    return {
        "passed": bool(results) and not failed,
        "verdict": f"{len(results) - len(failed)} of {len(results)} passed",
        "failed": failed,
        "facts": _facts(bundle),
        "checks": _checks_table(results),
        "failures": [(r.name, _what(c), _figures(c)) for r in results for c in _failed_checks(r)],
        "gates": list(dict.fromkeys(gate_text(report) for report in reports)),
        "devices": _devices_table(runs),
        "problems": [(result.name, problem) for result, run in runs for problem in run.problems],
        "caveats": CAVEATS_RUN if runs else CAVEATS,
    }


def _runs(results: Sequence[Judged]) -> list[tuple[Judged, DeviceRun]]:
    """Verdicts that have a run, each with it."""
    return [(result, result.run) for result in results if result.run is not None]


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    """Facts about the bundle: names and texts."""
    m = bundle.manifest
    return [
        (
            "model",
            f"{m.model.name}, {m.model.parameters:,} parameters, context {m.interface.context:,}",
        ),
        (
            "quantization",
            ", ".join(
                f"{name} {value}" for name, value in m.quantization.items() if value is not None
            ),
        ),
        (
            "made",
            f"{m.created} with "
            + ", ".join(f"{name} {version}" for name, version in m.tools.items()),
        ),
    ]


# The head of a table, and the rows below.
TableCells: TypeAlias = tuple[Sequence[str], list[tuple[str, ...]]]


def _checks_table(results: Sequence[Judged]) -> TableCells:
    """Table with a row for each package, and a column for each verdict.

    Devices with the same figures are one row.
    """
    judged = [(result, result.parity) for result in results if result.parity is not None]
    verdicts = list(dict.fromkeys(check.verdict for _, report in judged for check in report.checks))
    alike: dict[tuple[Any, ...], list[Judged]] = {}
    for result, report in judged:
        cells = [_cell([c for c in report.checks if c.verdict == v]) for v in verdicts]
        alike.setdefault(
            (result.run is None, result.package, report.activations, *cells), []
        ).append(result)
    rows = [
        (same[0].name if len(same) == 1 else f"{package} on {len(same)} devices", *rest)
        for (_, package, *rest), same in alike.items()
    ]
    return ("package", "declares", *verdicts), rows


def _cell(checks: Sequence[Check]) -> str:
    """Text of the worst of a group of checks."""
    if not checks:
        return "-"
    kl = [c.kl_worst for c in checks if c.kl_worst is not None]
    sqnr = [c.sqnr_db_worst for c in checks if c.sqnr_db_worst is not None]
    top1 = [(c.top1, c.positions) for c in checks if c.top1 is not None]
    parts = ["pass" if all(c.passed for c in checks) else "FAIL"]
    parts += [f"KL {max(kl):.1e}"] if kl else []
    parts += [f"{min(sqnr):.1f} dB"] if sqnr else []
    parts += (
        [f"{_agreeing(checks[0])} {sum(same for same, _ in top1)}/{sum(n for _, n in top1)}"]
        if top1
        else []
    )
    return ", ".join(parts)


def _agreeing(check: Check) -> str:
    """Name of what `top1` counts.

    A greedy check ends where a near tie was decided in another way.
    """
    return "tokens" if check.verdict == "greedy" else "top-1"


def _failed_checks(result: Judged) -> list[Check]:
    return (
        []
        if result.parity is None
        else [check for check in result.parity.checks if not check.passed]
    )


def _what(check: Check) -> str:
    return f"{check.verdict}: {check.what}"


def _figures(check: Check) -> str:
    """Text of all that was measured, in a line."""
    parts = []
    if check.kl_median is not None and check.kl_worst is not None:
        parts.append(f"KL {check.kl_median:.1e} median, {check.kl_worst:.1e} worst")
    if check.sqnr_db_median is not None and check.sqnr_db_worst is not None:
        parts.append(
            f"SQNR {check.sqnr_db_median:.1f} dB median, {check.sqnr_db_worst:.1f} dB worst"
        )
    if check.top1 is not None:
        parts.append(f"{_agreeing(check)} {check.top1}/{check.positions}")
    return "; ".join([*parts, *([check.detail] if check.detail else [])]) or "failed"


def _devices_table(runs: Sequence[tuple[Judged, DeviceRun]]) -> TableCells:
    """Table with a row for each run, memory in MB."""
    head = (
        "device",
        "package",
        "residency",
        "limit MB",
        "predicted dirty MB",
        "measured dirty MB",
        "clean MB",
        "mechanism",
        "verdict",
    )
    rows: list[tuple[str, ...]] = []
    for result, run in runs:
        plan, report = run.plan, run.report
        memory = (
            plan.budget.dirty_bytes,
            plan.prediction.dirty_bytes,
            report.peak_dirty_bytes,
            report.peak_clean_bytes,
        )
        rows.append(
            (
                device_title(plan),
                result.package,
                plan.residency.mode,
                *map(mb_text, memory),
                report.mechanism,
                outcome(run),
            )
        )
    return head, rows

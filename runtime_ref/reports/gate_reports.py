"""Reports of gates: a table on a terminal, Markdown for a pull request, HTML, and JUnit.

A file is whole or not there; the OSError of a full disk or of a path that cannot be written goes to
the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from exporter.errors import require_extra
from runtime_ref.gates import Change, Facts, Gate
from runtime_ref.reports import gate_figures
from runtime_ref.reports.atomic import write_whole
from runtime_ref.reports.files import environment, xml_text
from runtime_ref.reports.tables import columns

CHANGE_HEAD = ("fact", "baseline", "now", "difference")


@dataclass(frozen=True)
class JudgedGates:
    """Gates of a bundle with its facts, those of a baseline if there is one, and what changed."""

    gates: Sequence[Gate]
    changes: Sequence[Change]
    facts: Facts
    baseline: Facts | None

    def content(self) -> dict[str, Any]:
        """Values that the templates show, by name."""
        return {
            "gates": self.gates,
            "failed": [gate for gate in self.gates if not gate.passed],
            "head": CHANGE_HEAD,
            "changes": [(c.name, c.before, c.now, c.difference) for c in self.changes],
            "facts": self.facts,
        }


def gates_table(gates: Sequence[Gate]) -> Table:
    """Table with a line for each gate; those that failed say what to do."""
    failed = [gate for gate in gates if not gate.passed]
    table = columns("Gates", ("gate", "limit", "measured", "verdict"), (), ("remedy",))
    verdict = f"[bold red]FAIL[/] {len(failed)} of" if failed else "[bold green]PASS[/] all of"
    table.caption = f"{verdict} {len(gates)} gates"
    for gate in gates:
        texts = map(escape, (gate.name, gate.limit, gate.measured))
        result = "[green]pass" if gate.passed else "[red]FAIL"
        table.add_row(*texts, result, "" if gate.passed else escape(gate.remedy))
    return table


def changes_table(changes: Sequence[Change]) -> Table:
    """Table of what changed since the baseline."""
    table = columns("Since the baseline", CHANGE_HEAD[:1], CHANGE_HEAD[1:])
    for c in changes:
        table.add_row(*map(escape, (c.name, c.before, c.now, c.difference)))
    return table


def write_markdown(judged: JudgedGates, path: Path) -> None:
    """Writes a comment for a pull request: the verdict, what changed, then all gates."""
    template = environment(autoescape=False).get_template("gates.md")
    write_whole(path, xml_text(template.render(judged.content())).encode())


def write_html(judged: JudgedGates, path: Path) -> None:
    """Writes the same with plots, in one file that needs no other.

    Raises MissingComponentError.
    """
    require_extra("report", ("matplotlib",), "plots of gates")
    plots = [
        ("How much of each limit is used", gate_figures.shares_svg(judged.gates)),
        (
            "Size and memory of each package",
            gate_figures.packages_svg(judged.facts, judged.baseline),
        ),
    ]
    shown = [(title, svg) for title, svg in plots if svg is not None]
    template = environment(autoescape=True).get_template("gates.html")
    write_whole(path, xml_text(template.render(judged.content(), plots=shown)).encode())


def write_junit(gates: Sequence[Gate], path: Path) -> None:
    """Writes a suite with a case for each gate. Raises MissingComponentError."""
    require_extra("report", ("junitparser",), "a JUnit file")
    from junitparser import Failure, JUnitXml, TestCase, TestSuite

    suite: Any = TestSuite("gates")  # its methods have no types
    cases = []
    for gate in gates:
        case = TestCase(xml_text(gate.name), "tinyqmoe check", gate.seconds)
        if not gate.passed:
            words = f"{gate.name}: {gate.measured}; limit: {gate.limit}. To do: {gate.remedy}"
            case.result = [Failure(xml_text(words))]
        cases.append(case)
    suite.add_testcases(cases)
    xml: Any = JUnitXml("tinyqmoe check")
    xml.append(suite)
    xml.update_statistics()
    write_whole(path, xml.tostring())

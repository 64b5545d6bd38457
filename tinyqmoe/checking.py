"""The gates of a team's CI: parity, fit, limits, and the comparison with a baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyqmoe.check_facts import facts_of, read_baseline
from tinyqmoe.check_settings import CheckSettings
from tinyqmoe.devices import FitVerdict, find_devices, fit
from tinyqmoe.judging import parity_side_by_side
from tinyqmoe.packages import choose_packages, no_progress, open_bundle
from tinyqmoe.speed_gates import speed_gates

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from exporter.progress import Progress
    from runtime_ref.gates import Change, Facts, Gate
    from runtime_ref.parity import ParityReport


@dataclass(frozen=True)
class BundleCheck:
    """The gates of a bundle, its facts, and those of the baseline if there is one."""

    gates: list[Gate]
    facts: Facts
    baseline: Facts | None

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def changes(self) -> list[Change]:
        """What changed since the baseline; empty where there is none."""
        from runtime_ref.gates import changes

        return changes(self.baseline, self.facts) if self.baseline else []

    def to_dict(self) -> dict[str, Any]:
        """The verdict, the gates and the facts as plain values."""
        return {
            "passed": self.passed,
            "gates": [asdict(gate) for gate in self.gates],
            "facts": self.facts.to_dict(),
            "baseline": self.baseline.to_dict() if self.baseline else None,
        }


def check(
    bundle: Bundle | str | Path,
    settings: CheckSettings | None = None,
    *,
    progress: Progress | None = None,
) -> BundleCheck:
    """The gates of a bundle: parity, fit, limits, and what changed since a baseline.

    A gate that fails is no error: `passed` of the result says so. What takes no time comes first,
    so that a wrong setting is told at once. Each package is run once, whatever the limits and
    devices; only a projected speed needs runs of its own, after the others, which would slow it.
    Raises TinyQMoEError.
    """
    from runtime_ref.gates import Limits, Tolerance, baseline_gates, limit_gates

    s = settings or CheckSettings()
    bundle, devices = open_bundle(bundle), find_devices(s.device)
    facts = facts_of(bundle, choose_packages(bundle.manifest, s.backend))
    limits = Limits(s.max_bytes, s.max_dirty, s.max_kl, s.min_top1, s.max_perplexity_ratio)
    gates = limit_gates(facts, limits)
    baseline = None if s.baseline is None else read_baseline(s.baseline, s.backend)
    if baseline is not None:
        gates += baseline_gates(baseline, facts, Tolerance(s.tolerance, s.tolerance_kl))
    fits = fit(bundle, devices=devices, backends=s.backend) if devices else []
    gates += map(_fit_gate, fits)
    progress = progress or no_progress
    parity = parity_side_by_side(bundle, s.backend, progress)
    least = s.min_tokens_per_second_projected
    if least is not None:
        gates += speed_gates(bundle, [verdict.plan for verdict in fits], least, progress)
    return BundleCheck([*map(_parity_gate, parity), *gates], facts, baseline)


def _parity_gate(report: ParityReport) -> Gate:
    """The parity of a package, with the checks that failed."""
    from runtime_ref.gates import Gate
    from runtime_ref.reports.parity_tables import gate_text

    failed = [check for check in report.checks if not check.passed]
    n = len(report.checks)
    measured = f"{n - len(failed)} of {n} checks"
    if failed:
        measured += f", not {'; '.join(f'{c.verdict} {c.what}' for c in failed[:3])}"
        measured += f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    remedy = "`tinyqmoe parity` shows the figures; export again with the versions of this machine"
    seconds = sum(check.seconds for check in report.checks)
    return Gate(
        f"parity of {report.backend}", gate_text(report), measured, report.passed, remedy, seconds
    )


def _fit_gate(verdict: FitVerdict) -> Gate:
    """The predicted fit of a package on a device, with what would help."""
    from runtime_ref.gates import Gate, share_of
    from runtime_ref.reports.tables import mb_text

    plan = verdict.plan
    dirty, limit = plan.prediction.dirty_bytes, plan.budget.dirty_bytes
    return Gate(
        f"fit of {verdict.format} on {verdict.device}",
        f"at most {mb_text(limit)} MB dirty",
        "; ".join([f"{mb_text(dirty)} MB dirty predicted", *verdict.problems]),
        verdict.fits,
        "; ".join(verdict.advice) or "`tinyqmoe fit` shows who holds how much",
        share=share_of(dirty, limit),
    )

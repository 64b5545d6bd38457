"""The rules of a plan: which scheme, with which settings, the matrices of a name pattern take.

A plan is a JSON file, `{"rules": [{"pattern": "*.mlp.*", "scheme": "int8", ...}, ...]}`. The first
rule whose pattern matches the name of a matrix is that of the matrix. In a pattern `*` stands for
any characters and `?` for one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.quant import load, supported
from exporter.quant.tensor import SchemeConfig

AUTO = "auto"  # levels of the checkpoint's own where it has them, else DEFAULT
DEFAULT = "int8"
ALL = "*"
OWN = ("pattern", "scheme")  # members of a rule that are no settings
FORM = '{"rules": [{"pattern": "*", "scheme": "int8", "bits_per_weight": 4}]}'


@dataclass(frozen=True)
class Rule:
    """The scheme of the matrices whose names match a pattern, and the fields of its `Config`."""

    pattern: str
    scheme: str
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: object) -> Rule:
        """The rule of a JSON object. Raises UsageError with everything that is wrong."""
        if not isinstance(raw, dict) or not isinstance(raw.get("pattern"), str):
            raise UsageError("a rule has no pattern", problems=[f"expected a pattern in {raw!r}"])
        pattern, scheme = raw["pattern"], raw.get("scheme")
        rule = cls(pattern, str(scheme), {k: v for k, v in raw.items() if k not in OWN})
        if problems := [f"{pattern}: {problem}" for problem in rule.problems()]:
            raise UsageError("a rule is wrong", problems=problems)
        return rule

    def problems(self) -> list[str]:
        """Problems of the scheme and its settings; empty if there are none."""
        if self.scheme not in (AUTO, *supported()):
            known = ", ".join((AUTO, *supported()))
            return [f"the scheme must be one of {known}; got {self.scheme!r}"]
        own = [] if self.scheme == AUTO else [f.name for f in fields(self._module.Config)]
        if unknown := sorted(self.settings.keys() - set(own)):
            known = ", ".join(own) or "none"
            return [f"{', '.join(unknown)}: the settings of {self.scheme} are {known}"]
        try:
            self.config  # noqa: B018  (it checks the values)
        except UsageError as error:
            return error.problems
        return []

    @property
    def _module(self) -> Any:
        return load(DEFAULT if self.scheme == AUTO else self.scheme)

    @property
    def config(self) -> SchemeConfig:
        """The scheme's config. Raises UsageError for wrong values."""
        config: SchemeConfig = self._module.Config(**self.settings)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The rule as a JSON object."""
        return {"pattern": self.pattern, "scheme": self.scheme, **self.settings}


def read(path: Path) -> tuple[Rule, ...]:
    """The rules of a plan file.

    Raises UsageError with everything that is wrong in it.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no JSON text: {error}"
        what = f"the plan {path} cannot be read: {reason}"
        raise UsageError(what, hint=f"give a file such as {FORM}") from error
    given = raw.get("rules") if isinstance(raw, dict) and raw.keys() == {"rules"} else None
    if not isinstance(given, list) or not given:
        raise UsageError(f"{path} is no plan", hint=f"it must be an object such as {FORM}")
    rules, problems = [], []
    for number, rule in enumerate(given, 1):
        try:
            rules.append(Rule.from_dict(rule))
        except UsageError as error:
            problems += [f"rule {number}: {problem}" for problem in error.problems]
    if problems:
        raise UsageError(f"the plan {path} has rules that are wrong", problems=problems)
    return tuple(rules)


def write(path: Path, rules: Iterable[Rule]) -> None:
    """Writes a plan file, a rule on each line."""
    lines = ",\n  ".join(json.dumps(rule.to_dict()) for rule in rules)
    try:
        path.write_text(f'{{"rules": [\n  {lines}\n]}}\n', encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the plan cannot be written to {path}: {error.strerror}") from error


def first(rules: Sequence[Rule], name: str) -> Rule:
    """The rule of a matrix, which `check` has found to have one."""
    return next(rule for rule in rules if fnmatchcase(name, rule.pattern))


def check(rules: Sequence[Rule], names: Collection[str]) -> None:
    """Raises UsageError for matrices that no rule names, and for rules that no matrix takes."""
    taken: set[str] = set()
    problems: list[str] = []
    for name in names:
        matching = [rule for rule in rules if fnmatchcase(name, rule.pattern)]
        taken.update(rule.pattern for rule in matching[:1])
        if not matching:
            problems.append(f"{name} matches no pattern")
    for rule in rules:
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            problems.append(f"the pattern {rule.pattern} matches no matrix")
        elif rule.pattern not in taken:
            problems.append(f"the pattern {rule.pattern} is never the first that matches")
    if problems:
        hint = f"correct the plan; a last rule with the pattern {ALL} takes all that is left"
        raise UsageError("the plan does not fit the model", problems=problems, hint=hint)

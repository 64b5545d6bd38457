"""constraints.txt: a version of everything that pyproject.toml asks for."""

from __future__ import annotations

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

OWN = "tiny-qmoe"


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def asked(lines: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for, without itself."""
    return [wanted for line in lines if (wanted := Requirement(line)).name != OWN]


def pinned() -> dict[str, list[str]]:
    """Versions by name; there are several of a package where they depend on the system."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        found.setdefault(canonicalize_name(requirement.name), []).append(specifier.version)
    return found


def test_every_dependency_is_there() -> None:
    versions = pinned()
    assert OWN not in versions
    missing = [
        w.name for w in asked(PROJECT["dependencies"]) if canonicalize_name(w.name) not in versions
    ]
    assert not missing, "make constraints.txt anew (docs/security.md)"


def test_no_version_contradicts_the_project() -> None:
    versions = pinned()
    extras = PROJECT["optional-dependencies"].values()
    for wanted in asked([*PROJECT["dependencies"], *(line for extra in extras for line in extra)]):
        for version in versions.get(canonicalize_name(wanted.name), []):
            assert wanted.specifier.contains(version), f"{wanted} is {version} in constraints.txt"

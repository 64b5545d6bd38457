"""The workflows to copy: parsed, and their shell run with stand-ins. No service has run them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.project.test_docs import problem_of
from tests.support.paths import ROOT

FILES = sorted((ROOT / "ci").rglob("*.yml"))
STAND_IN = """#!/bin/sh
printf '%s\\n' "$(basename "$0")" "$@" >> calls
for word in "$@"; do case "$last" in --markdown|--html|--junit|--json) echo "$word" > "$word";; esac
last=$word; done
[ "$(basename "$0")" = tinyqmoe ] && exit "${CODE:-0}"
exit 0
"""


def parsed(name: str) -> Any:
    return yaml.safe_load((ROOT / "ci" / name).read_text(encoding="utf-8"))


def run(script: str, folder: Path, **environment: str) -> tuple[int, list[str]]:
    """Exit code of a step in a folder as the services run it, and the words of its commands."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("python", "python3", "tinyqmoe"):
        (tools / name).write_text(STAND_IN)
        (tools / name).chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env={**path, **environment}, check=False)
    return done.returncode, (folder / "calls").read_text().splitlines()


def judged(words: list[str]) -> list[str]:
    """The arguments of `tinyqmoe check`, which the command line knows."""
    arguments = words[words.index("tinyqmoe") + 1 :]
    assert problem_of(arguments) is None
    return arguments


def test_every_file_says_that_it_has_not_run() -> None:
    assert len(FILES) == 5
    for file in FILES:
        assert "never run on Git" in file.read_text(encoding="utf-8")
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


# ---- GitHub


def steps() -> list[str]:
    return [step["run"] for step in parsed("github/action.yml")["runs"]["steps"] if "run" in step]


def test_the_shell_of_the_action_reads_no_expression() -> None:
    """An input in a script would be shell that a stranger can write: it comes by `env`."""
    assert len(steps()) == 2
    assert [step for step in steps() if "${{" in step] == []


def test_the_action_installs_and_names_the_versions(tmp_path: Path) -> None:
    output = tmp_path / "output"
    code, words = run(steps()[0], tmp_path, PACKAGE="tiny-qmoe[report]", GITHUB_OUTPUT=str(output))
    assert (code, words[:5]) == (0, ["python", "-m", "pip", "install", "tiny-qmoe[report]"])
    assert re.fullmatch(r"frozen=[0-9a-f]{64}\n", output.read_text())


@pytest.mark.parametrize("code", [0, 1])
def test_the_action_keeps_the_summary_and_the_exit_code(tmp_path: Path, code: int) -> None:
    summary = tmp_path / "summary"
    environment = {"BUNDLE": "my model", "OPTIONS": "--device iphone-13", "REPORTS": "out"}
    environment |= {"GITHUB_STEP_SUMMARY": str(summary), "CODE": str(code)}
    got, words = run(steps()[1], tmp_path, **environment)
    assert got == code
    assert judged(words)[:4] == ["check", "my model", "--device", "iphone-13"]
    assert summary.read_text() == "out/check.md\n"


def test_the_action_fails_without_reports_too(tmp_path: Path) -> None:
    """As where an option is wrong: there is no summary to show."""
    script = steps()[1].replace("--markdown", "--other")
    environment = {"BUNDLE": "b", "OPTIONS": "", "REPORTS": "out", "CODE": "2"}
    assert run(script, tmp_path, **environment)[0] == 2


def test_the_example_gives_the_inputs_of_the_action() -> None:
    inputs = parsed("github/action.yml")["inputs"]
    job = parsed("github/example-workflow.yml")["jobs"]["check"]
    (step,) = [s for s in job["steps"] if "ci/github" in s.get("uses", "")]
    assert set(step["with"]) <= set(inputs)
    assert {name for name, i in inputs.items() if i.get("required")} <= set(step["with"])
    for device in job["strategy"]["matrix"]["device"]:
        options = step["with"]["options"].replace("${{ matrix.device }}", device)
        assert problem_of(["check", "BUNDLE", *options.split()]) is None


@pytest.mark.parametrize("job", ["arm64", "macos"])
def test_the_steps_of_other_runners_run(tmp_path: Path, job: str) -> None:
    """With a stand-in for `python3`, which would make the environment that the others lie in."""
    made = tmp_path / ".venv" / "bin"
    made.mkdir(parents=True)
    for name in ("python", "tinyqmoe"):
        (made / name).write_text(STAND_IN)
        (made / name).chmod(0o755)
    described = parsed("github/runners-workflow.yml")["jobs"][job]
    scripts = [step["run"] for step in described["steps"] if "run" in step]
    for script in scripts:
        code, words = run(script, tmp_path)
        assert code == 0
    assert words[:7] == ["python3", "-m", "venv", ".venv", "python", "-m", "pip"]
    assert len(judged(words)) > 2


@pytest.mark.parametrize(
    ("job", "built"),
    [
        ("wheels", ["cibuildwheel", "--archs", "auto64", "--output-dir", "dist"]),
        ("sdist", ["build", "--sdist", "--outdir", "dist"]),
    ],
)
def test_the_steps_of_the_builds_run(tmp_path: Path, job: str, built: list[str]) -> None:
    described = parsed("github/wheels-workflow.yml")["jobs"][job]
    scripts = [step["run"] for step in described["steps"] if "run" in step]
    results = [run(script, tmp_path) for script in scripts]
    assert [code for code, _ in results] == [0, 0]
    assert results[-1][1][-len(built) :] == built


# ---- pre-commit


def hook() -> dict[str, Any]:
    (found,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    return dict(found)


@pytest.mark.parametrize("code", [0, 1])
def test_the_hook_runs_its_command(tmp_path: Path, code: int) -> None:
    script = f"{hook()['entry']} model --device iphone-13"  # as pre-commit appends `args`
    got, words = run(script, tmp_path, CODE=str(code))
    assert (got, judged(words)) == (code, ["check", "model", "--device", "iphone-13"])


def test_the_hook_runs_when_a_bundle_or_its_gates_change() -> None:
    wanted = re.compile(hook()["files"])
    assert all(map(wanted.search, ("manifest.json", "model/manifest.json", "tinyqmoe.toml")))
    assert not any(map(wanted.search, ("README.md", "web/manifest.json5", "my-tinyqmoe.toml")))
    assert not hook()["pass_filenames"]


# ---- GitLab


@pytest.mark.parametrize("code", [0, 1])
def test_the_script_of_gitlab_runs(tmp_path: Path, code: int) -> None:
    job = parsed("gitlab/tinyqmoe.yml")["check-bundle"]
    names = {name: job["variables"][name] for name in ("TINYQMOE_BUNDLE", "TINYQMOE_PACKAGE")}
    got, words = run("\n".join(job["script"]), tmp_path, **names, CODE=str(code))
    assert got == code
    assert words[:5] == ["python", "-m", "pip", "install", "tiny-qmoe[report]"]
    assert judged(words)[:2] == ["check", "model"]
    assert (tmp_path / job["artifacts"]["reports"]["junit"]).is_file()

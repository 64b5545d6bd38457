"""The share of the CPU time of an export and of a start that the checks of docs/security.md take.

    python -m benchmarks.cost_of_checks MODEL WORK [--target ios,android]

A child process exports MODEL into the folder WORK, and another one generates 8 tokens with the
bundle for the first time on the machine, a third again. In each the functions of CHECKS are timed
by the CPU time of their thread. What a guarded child does is work that is needed anyway, and is
shown apart.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKS = (
    ("exporter.checkpoint.source_files", ("hash_files", "check_unchanged")),
    ("exporter.guarded", ("guarded",)),
    ("exporter.strict_json", ("parse",)),
    (
        "exporter.real_files",
        ("sync", "regular_files", "links", "unsafe_to_write", "is_private_folder"),
    ),
    ("exporter.bundle.relations", ("relation_problems",)),
    ("exporter.bundle.sealing", ("digest",)),
    ("exporter.bundle.directory", ("sha256", "file_entries")),
)
IN_CHILDREN = "in children, of all functions"
spent: Counter[str] = Counter()
inside = threading.local()


def children_seconds() -> float:
    """CPU time of the child processes that have ended, in seconds."""
    times = os.times()
    return times.children_user + times.children_system


def timed(name: str, check: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose time is added up; that of checks within it counts once."""

    @functools.wraps(check)
    def call(*arguments: Any, **options: Any) -> Any:
        if getattr(inside, "a_check", False):
            return check(*arguments, **options)
        inside.a_check, begin, children = True, time.thread_time(), children_seconds()
        try:
            return check(*arguments, **options)
        finally:
            inside.a_check = False
            spent[name] += time.thread_time() - begin
            spent[IN_CHILDREN] += children_seconds() - children

    return call


def watch_checks() -> None:
    """Puts timed functions in the place of the checks, wherever they were imported."""
    import importlib

    for name, functions in CHECKS:
        module = importlib.import_module(name)
        for function in functions:
            original = getattr(module, function)
            replacement = timed(f"{name}.{function}", original)
            for there in list(sys.modules.values()):
                for key, value in list(vars(there).items()):
                    if value is original:
                        setattr(there, key, replacement)


def work(what: str, model: str, out: Path, target: str) -> dict[str, Any]:
    """One of the three things, in this process: CPU seconds of all and of each check."""
    watch_checks()
    from exporter.cli import app

    words = {
        "export": ["export", model, str(out), "--scheme", "int8", "--context", "512"],
        "start": ["run", str(out), "--prompt", "Once upon a time", "--max-new-tokens", "8"],
    }[what]
    sys.argv[1:] = [*words, *(["--target", target] if what == "export" and target else [])]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        try:
            app.app()
        except SystemExit as end:
            if end.code:
                raise
    times = os.times()
    return {"cpu": sum(times[:4]), "checks": dict(spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work", type=Path)
    parser.add_argument("--target", default="")
    parser.add_argument("--only", choices=("export", "start"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = options.work / "bundle"
    if options.only:
        print(json.dumps(work(options.only, options.model, out, options.target)))
        return
    with tempfile.TemporaryDirectory() as cache:
        for what, title in (
            ("export", "export"),
            ("start", "first start on a machine"),
            ("start", "start"),
        ):
            command = [sys.executable, "-m", "benchmarks.cost_of_checks", options.model]
            command += [str(options.work), "--target", options.target, "--only", what]
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                check=True,
                env={**os.environ, "XDG_CACHE_HOME": cache},
            )
            found = json.loads(done.stdout)
            checks, cpu = found["checks"], found["cpu"]
            took = sum(checks.values()) - checks.get(IN_CHILDREN, 0.0)
            print(f"{title}: {cpu:.2f} s of CPU, checks {took:.2f} s, {100 * took / cpu:.1f} %")
            for name, part in sorted(checks.items(), key=lambda item: -item[1]):
                print(f"    {name}: {part:.3f} s")


if __name__ == "__main__":
    main()

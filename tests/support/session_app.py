"""A program of C over session.h: what it is fed, and the digest of what it computes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from exporter.bundle import Bundle, logits_sha256
from runtime_ref.answers import Answer, load_reference
from tests.support.paths import ROOT

SOURCE = ROOT / "tests" / "native" / "session_logits.c"
RUNNER, EXECUTORCH = 0, 1  # tinyqmoe_engine


def run(
    command: Sequence[object],
    bundle: Bundle | Path,
    engine: int,
    calls: Iterable[str],
    status: int = 0,
) -> subprocess.CompletedProcess[bytes]:
    """The program's logits on stdout and its words on stderr; `status` is the exit status that it
    must have."""
    folder = bundle.path if isinstance(bundle, Bundle) else bundle
    words = [*map(str, command), str(folder), str(engine)]
    text = "".join(f"{call}\n" for call in calls)
    done = subprocess.run(words, input=text.encode(), capture_output=True)
    assert done.returncode == status, done.stderr.decode()
    return done


def exact_answers(bundle: Bundle) -> list[Answer]:
    """The answers of the reference whose logits are known to the last bit."""
    answers = load_reference(bundle, bundle.artifact("pte"))
    exact = [a for a in answers if a.sha256 is not None]
    assert len(exact) > 2
    return exact


def digest(command: Sequence[object], bundle: Bundle, engine: int, answer: Answer) -> bytes:
    """SHA-256 of the logits that a program computes for an answer, fed with its tokens."""
    n = len(answer.prompt)
    calls = [[0, *answer.prompt], *([n + i, t] for i, t in enumerate(answer.tokens[:-1]))]
    done = run(command, bundle, engine, (" ".join(map(str, call)) for call in calls))
    rows = np.frombuffer(done.stdout, "<f4").reshape(len(calls), -1)
    return logits_sha256(row.data for row in rows)

"""The command bench: what it measures, writes and refuses. No speed is asserted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from exporter.bundle import Bundle
from exporter.errors import UsageError
from runtime_ref.executorch.runtime import Runtime
from runtime_ref.residency import coded_tensors
from tests.support.bundles import CONTEXT
from tests.support.command_line import one_error, strict_json, tinyqmoe
from tinyqmoe import BenchSettings

SHORT = ("--rounds", 2, "--prompt-tokens", 3, "--new-tokens", 2)


def test_every_residency_thread_and_context_is_measured(bundle: Bundle) -> None:
    modes = ("--residency", "stream", "--residency", "expand")
    counts = ("--threads", 1, "--threads", 2, "--context", 0, "--context", 5)
    result = tinyqmoe("bench", bundle.path, *SHORT, *modes, *counts, "--json", "-")
    found = strict_json(result.stdout)
    assert [(run["residency"], run["threads"]) for run in found["runs"]] == [
        ("stream", 1),
        ("stream", 2),
        ("expand", 1),
        ("expand", 2),
    ]
    for run in found["runs"]:
        assert [point["context"] for point in run["points"]] == [0, 5]
        assert run["load_ms"] > 0
        assert run["resident_bytes"] > run["expanded_bytes"]
        for point in run["points"]:
            for speed in (point["prefill"], point["decode"]):
                assert 0 < speed["lowest"] <= speed["median"] <= speed["highest"]
            moved = point["decode"]["median"] * point["read_bytes"]
            assert point["bandwidth_share"] == pytest.approx(moved / run["bandwidth"])
    coded = coded_tensors(bundle, bundle.artifact("pte"))
    forms = sum(t.form_bytes for t in coded if t.gain > 0)
    assert [run["expanded_bytes"] for run in found["runs"]] == [0, 0, forms, forms]
    streamed, expanded = found["runs"][0]["points"][0], found["runs"][2]["points"][0]
    grown = sum(t.blob_bytes for t in coded if t.gain > 0)
    places = bundle.artifact("pte").places
    codes = sum(places[t.name].n_bytes for t in coded if t.gain > 0)
    assert expanded["read_bytes"] - streamed["read_bytes"] == grown - codes


def test_the_table_says_what_was_measured(bundle: Bundle, tmp_path: Path) -> None:
    json_file = tmp_path / "bench.json"
    result = tinyqmoe("bench", bundle.path, *SHORT, "--json", json_file)
    assert result.exit_code == 0
    assert "medians of 2 rounds" in result.stdout
    assert "auto" in result.stdout
    assert json.loads(json_file.read_text())["package"] == "native"


def test_threads_are_those_that_a_runtime_has_itself(bundle: Bundle) -> None:
    cores = len(os.sched_getaffinity(0))
    pool = Runtime.get().start_threads()
    for backend, threads in {"native": cores, "executorch": pool}.items():
        result = tinyqmoe("bench", bundle.path, *SHORT, "--backend", backend, "--json", "-")
        assert [run["threads"] for run in strict_json(result.stdout)["runs"]] == [threads]


def test_threads_that_a_runtime_does_not_tell_are_left_open(both: Bundle) -> None:
    arguments = ("bench", both.path, *SHORT, "--backend", "mlprogram")
    assert strict_json(tinyqmoe(*arguments, "--json", "-").stdout)["runs"][0]["threads"] is None
    assert "its own" in tinyqmoe(*arguments).stdout


def test_what_does_not_fit_the_context_is_refused(bundle: Bundle) -> None:
    message = one_error(tinyqmoe("bench", bundle.path, "--context", CONTEXT), 3)
    assert f"do not fit the context of {CONTEXT}" in message


def test_numbers_that_measure_nothing_are_refused() -> None:
    for wrong in ({"rounds": 0}, {"contexts": (-1,)}, {"threads": (0,)}):
        with pytest.raises(UsageError, match="of a bench are positive"):
            BenchSettings(**wrong)  # type: ignore[arg-type]

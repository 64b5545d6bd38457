"""Tables of runs on a terminal."""

from __future__ import annotations

from dataclasses import replace

from runtime_ref.device.projection import Measured, TokenTraffic, project
from runtime_ref.reports import run_tables
from tests.support.reports import (
    MB,
    PHONE,
    device_run,
    killed_run,
    row,
    shown,
)


def test_a_run_is_compared_with_its_prediction() -> None:
    full = 990 * MB  # of 1,000
    text = shown(
        run_tables.run_view(
            device_run(refaulted_bytes=3 * MB, major_faults=1234, peak_group_bytes=full), None
        )
    )
    assert text.startswith("fits: executorch on A phone, residency stream\n")
    assert row(text, "dirty")[1:5] == ["400", "380", "+5 %", "1,000"]
    assert row(text, "clean")[1:5] == ["300", "250", "", "1,000"]
    assert row(text, "mapped")[1:5] == ["730", "700", "+4 %", "-"]
    assert row(text, "load") == ["load", "0.00", "90.0", "50.0"]
    assert row(text, "decode") == ["decode", "1.00", "380", "250"]
    assert "3.0 MB of files were read again" in text
    roomy = shown(
        run_tables.run_view(device_run(refaulted_bytes=3 * MB, peak_group_bytes=500 * MB), None)
    )
    assert "read again" not in roomy, "not for want of memory"
    assert "1,234 major page faults" in text
    assert "cgroup v9 memory" in text
    assert "projection" not in text


def test_a_killed_run_says_why_and_compares_nothing() -> None:
    text = shown(run_tables.run_view(killed_run(), None))
    assert text.startswith("killed in phase decode: ")
    assert "problem: killed in phase 'decode': 1,000 bytes were not enough" in text
    assert row(text, "dirty")[3] == ""


def test_a_phase_too_short_to_be_seen_has_no_peaks() -> None:
    run = device_run()
    short = replace(run, report=replace(run.report, samples=[]))
    assert row(shown(run_tables.run_view(short, None)), "decode") == ["decode", "1.00", "-", "-"]


def test_a_speed_is_called_a_projection_and_shows_what_went_in() -> None:
    run = device_run()
    traffic = TokenTraffic(900 * MB, 100 * MB, 900 * MB)
    speed = project(PHONE, run.plan.budget, traffic, 380 * MB, Measured(10, 2))
    text = shown(run_tables.run_view(run, speed))
    assert "Speed: a projection, not a measurement" in text
    # 1 GB at 10 and 12 GB/s; 2 threads' work on 4 cores; 280 MB find no room and come at 2 GB/s
    assert "decoding on A phone  4.17 to 4.48 tokens/s" in text
    inputs = (
        "83.3 to 100 ms",
        "900 MB of weights and 100 MB of cache",
        "0.5 to 0.6 of 20 GB/s",
        "50 ms",
        "2 threads",
        "10 tokens/s",
        "4 fast cores",
        "140 ms",
        "280 MB",
        "380 MB dirty",
        "2 GB/s",
    )
    assert [part for part in inputs if part not in text] == []


def test_a_speed_that_cannot_be_projected_says_what_is_missing() -> None:
    run = device_run()
    unknown = replace(PHONE, performance_cores=None)
    speed = project(unknown, run.plan.budget, TokenTraffic(MB, MB, MB), 0, Measured(10, 2))
    assert "unknown: no performance cores" in shown(run_tables.run_view(run, speed))

"""Tables of devices and predictions on a terminal."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from exporter.bundle import BACKENDS
from runtime_ref.coreml.custom_op_runner import CustomOpRunner
from runtime_ref.coreml.mlprogram_runner import MLProgramRunner
from runtime_ref.device import profile as device
from runtime_ref.executorch.runner import ExecuTorchRunner
from runtime_ref.reports import run_tables, tables
from runtime_ref.reports.files import Judged
from tests.support.reports import (
    PHONE,
    device_plan,
    device_run,
    figure,
    row,
    shown,
)


def test_all_devices_are_listed_with_their_limits() -> None:
    text = shown(tables.devices_table(device.all_devices()))
    assert all(p.name in text for p in device.all_devices())
    assert row(text, "iphone-13") == [
        "iphone-13",
        "iPhone 13",
        "4",
        "2,100",
        "2,400",
        "-",
        "34.1",
        "1",
        "2 + 4",
    ]
    assert row(text, "pixel-6a") == [
        "pixel-6a",
        "Pixel 6a",
        "6",
        "-",
        "-",
        "2,500",
        "34.1",
        "2.1",
        "4 + 4",
    ]


def test_a_device_is_shown_with_every_source() -> None:
    profile = device.load("iphone-13")
    text = shown(tables.device_view(profile))
    assert row(text, "DRAM") == ["DRAM", "34.1", "GB/s", "medium", "64-bit bus x 4266 MT/s"]
    assert row(text, "limit with entitlement")[1:4] == ["2,400", "MB", "medium"]
    assert row(text, "performance cores")[1:3] == ["2", ""]
    assert len(re.findall(r"high|medium|low", text)) >= len(list(profile.figures()))


def test_markup_in_a_title_of_a_users_device_is_text() -> None:
    profile = replace(PHONE, title="[red]mine[/red]")
    run = device_run(device_plan(profile=profile))
    views = (
        tables.devices_table([profile]),
        tables.device_view(profile),
        tables.fit_view(run.plan, ["[b]x"]),
        run_tables.run_view(run, None),
    )
    assert all("[red]mine[/red]" in shown(view) for view in views)


@pytest.mark.parametrize(
    ("dirty_mb", "verdict"), [(899, "fits"), (901, "tight"), (1001, "does not fit")]
)
def test_fit_is_tight_above_nine_tenths(dirty_mb: int, verdict: str) -> None:
    text = shown(tables.fit_table([device_plan(dirty_mb, clean_mb=50)]))
    expected = [
        "phone",
        "executorch",
        "stream",
        "decode",
        f"{dirty_mb:,}",
        "1,000",
        f"{dirty_mb / 10:.0f} %",
        "50.0",
    ]
    assert row(text, "phone") == [*expected, verdict]


def test_address_space_alone_can_be_too_much() -> None:
    assert (
        tables.fit_verdict(device_plan(profile=replace(PHONE, mapped_gb=figure(0.7))))
        == "does not fit"
    )


def test_a_limit_with_the_entitlement_is_named_as_one() -> None:
    entitled = device_plan(entitlement=True)
    assert row(shown(tables.fit_table([entitled])), "phone (entitled)")[5] == "2,000"
    assert Judged(None, device_run(entitled)).name == "executorch on A phone, with entitlement"


def test_fit_shows_holders_by_phase_and_what_would_help() -> None:
    text = shown(tables.fit_view(device_plan(1400), ["--residency stream: 5 MB"]))
    assert row(text, "KV cache") == ["KV cache", "100", "100", ""]
    assert row(text, "activations") == ["activations", "", "1,300", ""]
    assert row(text, "package") == ["package", "", "", "300"]
    assert row(text, "sum") == ["sum", "100", "1,400", "300"]
    assert "does not fit: 1,400 MB dirty in decode, 140.0 % of 1,000 MB" in text
    assert "most of it: activations 1,300 MB; KV cache 100 MB" in text
    assert "problem: decode: 1,400 MB dirty, 1,000 MB allowed" in text
    assert "what would help: --residency stream: 5 MB" in text


def test_packages_are_called_as_their_runners() -> None:
    where = device_plan()
    names = {
        form: replace(where, artifact=replace(where.artifact, format=form)).package
        for form in BACKENDS
    }
    runners = {"pte": ExecuTorchRunner, "mlprogram": MLProgramRunner, "custom-op": CustomOpRunner}
    assert names == {form: runner.name for form, runner in runners.items()}

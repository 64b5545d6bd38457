"""The figure of a run: what is in it, and that it can be read."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from runtime_ref.device.run import DeviceRun
from runtime_ref.reports import plot
from tests.support.reports import PHONE, device_plan, device_run, figure, killed_run, sample


def pixels(run: DeviceRun) -> np.ndarray:
    """[height, width, 3]"""
    return matplotlib.image.imread(io.BytesIO(plot.memory_png(run)), format="png")[:, :, :3]


def share(image: np.ndarray, colour: str) -> float:
    """Of the pixels that have a colour."""
    return float((np.abs(image - to_rgb(colour)).max(axis=-1) < 0.01).mean())


def legend(run: DeviceRun) -> list[str]:
    found = plot.memory_figure(run).axes[0].get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def test_a_png_is_written(tmp_path: Path) -> None:
    file = tmp_path / "memory.png"
    plot.plot_memory(device_run(), file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [f.name for f in tmp_path.iterdir()] == ["memory.png"]


def test_both_kinds_of_memory_are_seen() -> None:
    image = pixels(device_run())
    assert share(image, plot.DIRTY) > 0.1
    assert share(image, plot.CLEAN) > 0.05
    no_clean = pixels(device_run(samples=[sample(0, 100, 0), sample(2000, 380, 0)]))
    assert share(no_clean, plot.CLEAN) < 0.01  # in the legend only


def test_a_limit_that_is_near_is_drawn() -> None:
    assert share(pixels(device_run()), plot.LIMIT) > 0.002
    assert legend(device_run())[2:] == [
        "dirty, as predicted: 400 MB",
        "limit of dirty memory: 1,000 MB",
    ]


def test_a_limit_that_is_far_does_not_flatten_what_was_used() -> None:
    far = device_run(
        device_plan(profile=replace(PHONE, ram_gb=figure(400), limit_mb=figure(300_000)))
    )
    assert share(pixels(far), plot.DIRTY) > 0.15
    assert "limit of dirty memory: 300,000 MB, far above this figure" in legend(far)


def test_an_android_device_may_have_two_limits() -> None:
    android = replace(
        PHONE,
        platform="android",
        limit_mb=None,
        limit_with_entitlement_mb=None,
        available_mb=figure(900),
        anonymous_limit_mb=figure(500),
    )
    lines = legend(device_run(device_plan(profile=android)))
    assert lines[3:] == ["limit of dirty memory: 500 MB", "available to dirty and clean: 900 MB"]


def test_what_was_seen_after_the_end_is_left_out() -> None:
    axes = plot.memory_figure(device_run()).axes[0]
    assert (
        max(
            float(path.vertices[:, 0].max())
            for area in axes.collections
            for path in area.get_paths()
        )
        < 2.0
    )


@pytest.mark.parametrize("decode_ms", [1, 40, 1000])
def test_labels_of_phases_do_not_cover_each_other_nor_the_title(decode_ms: float) -> None:
    run = killed_run()
    load, decode = run.report.phases
    phases = [
        load,
        replace(decode, name="prefill", start_ms=1),
        replace(decode, start_ms=decode_ms),
    ]
    drawn = plot.memory_figure(replace(run, report=replace(run.report, phases=phases)))
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    assert [text.get_text() for text in axes.texts] == ["load", "prefill", "decode", "killed"]
    (title,) = drawn.findobj(
        lambda artist: isinstance(artist, Text) and artist.get_text().startswith("A phone")
    )
    boxes = [text.get_window_extent() for text in (*axes.texts, title)]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert all(
        drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1 and box.y1 <= drawn.bbox.y1
        for box in boxes
    )


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (device_run(), "fits, 380 MB dirty of 1,000 MB"),
        (killed_run(), "killed in phase decode, 380 MB dirty of 1,000 MB"),
        (
            device_run(outcome="failed", phase="", samples=[], phases=[], wall_ms=0.0),
            "failed in phase start, 380",
        ),
    ],
)
def test_title_and_caption_say_what_it_was(run: DeviceRun, said: str) -> None:
    drawn = plot.memory_figure(run)
    title = drawn.axes[0].get_title(loc="left")
    assert title.startswith("A phone: executorch, residency stream\n" + said)
    assert (
        drawn.get_supxlabel()
        == "Measured on Linux under an enforced limit (cgroup v9 memory), not on the phone."
    )
    drawn.draw_without_rendering()


def test_a_name_with_dollars_is_no_formula() -> None:
    plot.memory_png(device_run(device_plan(profile=replace(PHONE, title=r"$\phone$"))))

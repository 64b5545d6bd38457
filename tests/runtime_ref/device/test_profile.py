"""Device files: those that ship are whole and sensible, and each mistake in one is named."""

from __future__ import annotations

import copy
import dataclasses
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import TinyQMoEError, UsageError
from runtime_ref.device import profile as device
from tests.support.paths import ROOT

NAMES = sorted(file.stem for file in device.FOLDER.glob("*.toml"))
GOOD: dict[str, Any] = {
    "title": "A phone",
    "platform": "ios",
    **{
        key: {"value": value, "source": "a test", "confidence": "low"}
        for key, value in {
            "ram_gb": 4,
            "limit_mb": 2000,
            "limit_with_entitlement_mb": 2500,
            "mapped_gb": 6.5,
            "mapped_with_entitlement_gb": 40,
            "page_kib": 16,
            "dram_gb_per_s": 34.1,
            "flash_gb_per_s": 1,
            "performance_cores": 2,
            "efficiency_cores": 4,
        }.items()
    },
}


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return repr(value).lower() if isinstance(value, bool | float | int) else f'"{value}"'


def write(path: Path, raw: dict[str, Any]) -> Path:
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in raw.items()))
    return path


def problems(tmp_path: Path, raw: dict[str, Any]) -> list[str]:
    with pytest.raises(TinyQMoEError) as caught:
        device.load_file(write(tmp_path / "phone.toml", raw))
    assert type(caught.value) is TinyQMoEError
    assert caught.value.exit_code == 3
    assert "phone.toml does not describe a device" in caught.value.what
    return caught.value.problems


def test_enough_devices_ship() -> None:
    profiles = device.all_devices()
    assert [p.name for p in profiles] == NAMES
    assert len(profiles) >= 13
    assert {p.platform for p in profiles} == {"ios", "android"}
    assert {p.ram_gb.value for p in profiles} == {4, 6, 8}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_device_is_sensible(name: str) -> None:
    profile = device.load(name)
    raw = tomllib.loads((device.FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    assert {key for key, _ in profile.figures()} | {"title", "platform"} == set(raw), (
        "nothing of the file is lost"
    )
    ram_bytes = profile.ram_gb.value * 1e9
    budget = device.memory_budget(profile, entitlement=False)
    assert 0 < budget.dirty_bytes <= budget.available_bytes < ram_bytes
    if profile.limit_with_entitlement_mb:
        entitled = device.memory_budget(profile, entitlement=True)
        assert budget.dirty_bytes <= entitled.dirty_bytes < ram_bytes
        assert budget.mapped_bytes is not None
        assert entitled.mapped_bytes is not None
        assert budget.dirty_bytes < budget.mapped_bytes <= entitled.mapped_bytes
    assert profile.page_kib.value in ((16,) if profile.platform == "ios" else (4, 16))
    assert 10 <= profile.dram_gb_per_s.value <= 100
    for key, figure in profile.figures():
        if "policy" in figure.source or "assumed" in figure.source or "estimate" in figure.source:
            assert figure.confidence == "low", f"{key} is no measurement"


def devices_table() -> list[str]:
    """Of docs/devices.md: a row a device, each number with the first letter of its confidence."""
    columns = {
        "ram_gb": "RAM, GB",
        "limit_mb": "limit, MB",
        "limit_with_entitlement_mb": "with entitlement, MB",
        "available_mb": "available, MB",
        "mapped_gb": "mapped, GB",
        "mapped_with_entitlement_gb": "with entitlement, GB",
        "page_kib": "page, KiB",
        "dram_gb_per_s": "DRAM, GB/s",
        "flash_gb_per_s": "flash, GB/s",
        "performance_cores": "P cores",
        "efficiency_cores": "E cores",
    }
    rows = [
        f"| name | device | {' | '.join(columns.values())} |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for profile in device.all_devices():
        figures = dict(profile.figures())
        assert figures.keys() <= columns.keys()
        cells = [
            f"{figures[key].value:g} {figures[key].confidence[0]}" if key in figures else ""
            for key in columns
        ]
        rows.append(f"| `{profile.name}` | {profile.title} | {' | '.join(cells)} |")
    return rows


def sources_table() -> list[str]:
    """Of docs/devices.md: what each number is from, once for all devices that have it from
    there."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for profile in device.all_devices():
        for key, figure in profile.figures():
            row = (key, f"{figure.value:g}", figure.confidence, figure.source)
            found.setdefault(row, []).append(f"`{profile.name}`")
    order = [f.name for f in dataclasses.fields(device.DeviceProfile)]
    rows = sorted(found, key=lambda row: (order.index(row[0]), float(row[1]), row[3], row[2]))
    head = ["| key | value | confidence | source | devices |", "|---|---|---|---|---|"]
    named = {row: "all" if len(found[row]) == len(NAMES) else ", ".join(found[row]) for row in rows}
    return head + [
        f"| `{row[0]}` | {row[1]} | {row[2]} | {row[3]} | {named[row]} |" for row in rows
    ]


@pytest.mark.parametrize(
    ("heading", "table"), [("The devices that ship", devices_table), ("Sources", sources_table)]
)
def test_the_documentation_has_what_the_files_have(
    heading: str, table: Callable[[], list[str]]
) -> None:
    text = (ROOT / "docs/devices.md").read_text(encoding="utf-8")
    _, _, section = text.partition(f"\n## {heading}\n")
    there = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    expected = "\n".join(table())
    assert "\n".join(there) == expected, f"the table should be:\n{expected}"


def test_the_documentation_explains_every_key() -> None:
    text = (ROOT / "docs/devices.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `(\w+)` \| (?:text|number)", text, re.MULTILINE)
    assert explained == [
        f.name for f in dataclasses.fields(device.DeviceProfile) if f.name != "name"
    ]


def test_budgets() -> None:
    iphone = device.load("iphone-13")
    assert device.memory_budget(iphone, entitlement=False) == device.MemoryBudget(
        "iphone-13",
        False,
        "footprint: dirty and compressed",
        2_100_000_000,
        2_100_000_000,
        6_980_000_000,
    )
    assert device.memory_budget(iphone, entitlement=True).dirty_bytes == 2_400_000_000
    android = device.memory_budget(device.load("galaxy-s23"), entitlement=False)
    assert (android.counted, android.dirty_bytes) == ("anonymous and swapped", 4_000_000_000)
    assert android.mapped_bytes is None


def test_the_limiter_of_android_bounds_dirty_memory_and_not_the_rest() -> None:
    profile = device.load("galaxy-s23")
    limited = dataclasses.replace(profile, anonymous_limit_mb=device.Figure(1500, "a test", "low"))
    budget = device.memory_budget(limited, entitlement=False)
    assert (budget.dirty_bytes, budget.available_bytes) == (1_500_000_000, 4_000_000_000)


def test_an_entitlement_that_means_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="Android device: there is no such entitlement"):
        device.memory_budget(device.load("galaxy-s23"), entitlement=True)
    with pytest.raises(UsageError, match="with the entitlement is not known"):
        device.memory_budget(device.load("ipad-8gb"), entitlement=True)


@pytest.mark.parametrize(
    ("name", "alike"), [("iphone13", "iphone-13"), ("Galaxy S23", "galaxy-s23")]
)
def test_an_unknown_name_suggests_those_that_are_alike(name: str, alike: str) -> None:
    with pytest.raises(UsageError, match=f"there is no device '{name}'") as caught:
        device.load(name)
    assert alike in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["zzz", "", "../devices/iphone-13"])
def test_an_unknown_name_like_no_other(name: str) -> None:
    with pytest.raises(UsageError, match="`tinyqmoe devices` lists all"):
        device.load(name)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    profile = device.load_file(write(tmp_path / "my phone.toml", GOOD))
    assert (profile.name, profile.title, profile.platform) == ("my phone", "A phone", "ios")
    assert profile.mapped_gb == device.Figure(6.5, "a test", "low")
    needed = {
        key: GOOD[key]
        for key in ("title", "platform", "ram_gb", "limit_mb", "page_kib", "dram_gb_per_s")
    }
    assert device.load_file(write(tmp_path / "least.toml", needed)).flash_gb_per_s is None


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        device.load_file(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"title = ", b"title = '\xff'", b"\0"])
def test_what_is_no_toml(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "phone.toml").write_bytes(content)
    with pytest.raises(TinyQMoEError, match="it is not TOML") as caught:
        device.load_file(tmp_path / "phone.toml")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"ram_gb": None}, "ram_gb is missing"),
        ({"title": None}, "title is missing"),
        ({"platform": None}, "platform is missing"),
        ({"limit_mb": None}, "limit_mb is missing: an ios device has it"),
        ({"color": 1}, "color is unknown"),
        ({"name": "x"}, "name is unknown"),
        ({"title": " "}, "title must be a text"),
        ({"title": 5}, "title must be a text"),
        ({"platform": "palm"}, "platform must be ios or android, got 'palm'"),
        ({"platform": 1}, "platform must be ios or android, got 1"),
        (
            {"available_mb": {"value": 1, "source": "s", "confidence": "low"}},
            "available_mb is for android only",
        ),
        ({"ram_gb": 4}, "ram_gb must be { value, source, confidence }, got 4"),
        ({"ram_gb": {"value": 4, "source": "s"}}, "ram_gb.confidence is missing"),
        ({"ram_gb": {"source": "s", "confidence": "low"}}, "ram_gb.value is missing"),
        ({"ram_gb": {"value": 4, "confidence": "low"}}, "ram_gb.source is missing"),
        (
            {"ram_gb": {"value": 4, "source": "s", "confidence": "low", "unit": "GB"}},
            "ram_gb.unit is unknown",
        ),
        (
            {"ram_gb": {"value": "4", "source": "s", "confidence": "low"}},
            "value must be a positive number, got '4'",
        ),
        (
            {"ram_gb": {"value": True, "source": "s", "confidence": "low"}},
            "value must be a positive number, got True",
        ),
        (
            {"ram_gb": {"value": 0, "source": "s", "confidence": "low"}},
            "value must be a positive number, got 0",
        ),
        (
            {"ram_gb": {"value": float("inf"), "source": "s", "confidence": "low"}},
            "positive number, got inf",
        ),
        (
            {"ram_gb": {"value": float("nan"), "source": "s", "confidence": "low"}},
            "positive number, got nan",
        ),
        (
            {"ram_gb": {"value": 4, "source": "", "confidence": "low"}},
            "ram_gb.source must name a reference, got ''",
        ),
        (
            {"ram_gb": {"value": 4, "source": "s", "confidence": "sure"}},
            "must be high, medium, low, got 'sure'",
        ),
        (
            {"limit_mb": {"value": 3000, "source": "s", "confidence": "low"}},
            "limit_mb is more than limit_with_ent",
        ),
        (
            {"ram_gb": {"value": 2.2, "source": "s", "confidence": "low"}},
            "limit_with_entitlement_mb is more than ram",
        ),
        (
            {"mapped_gb": {"value": 99, "source": "s", "confidence": "low"}},
            "mapped_gb is more than mapped_with_ent",
        ),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    raw = {key: value for key, value in (copy.deepcopy(GOOD) | change).items() if value is not None}
    (found,) = problems(tmp_path, raw)
    assert problem in found


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    raw = copy.deepcopy(GOOD) | {"platform": "android", "color": 1}
    raw["ram_gb"]["value"], raw["page_kib"]["confidence"] = -1, "none"
    del raw["title"]
    found = problems(tmp_path, raw)
    assert len(found) == 4 + 1 + 4, (
        found
    )  # and the one that Android needs, and the four that it does not know

"""Profiles of phones and tablets, and the memory that an app may use there.

A profile says what is known, from where, and how sure it is. A device is a TOML file in `devices/`,
its name the file's. Every number is a table { value, source, confidence } and has its unit in its
key; MB and GB are powers of ten, as device makers count.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

from exporter.bundle import NATIVE
from exporter.errors import TinyQMoEError, UsageError

FOLDER = Path(__file__).parent / "profiles"
CONFIDENCES = ("high", "medium", "low")
COUNTED = {"ios": "footprint: dirty and compressed", "android": "anonymous and swapped"}
_ONLY = {  # keys of one platform
    "limit_mb": "ios",
    "limit_with_entitlement_mb": "ios",
    "mapped_gb": "ios",
    "mapped_with_entitlement_gb": "ios",
    "available_mb": "android",
    "anonymous_limit_mb": "android",
}
_NEEDED = {"ios": "limit_mb", "android": "available_mb"}
_ORDER = (  # the first is at most the second
    ("limit_mb", "limit_with_entitlement_mb"),
    ("mapped_gb", "mapped_with_entitlement_gb"),
    ("limit_mb", "ram_gb"),
    ("limit_with_entitlement_mb", "ram_gb"),
    ("available_mb", "ram_gb"),
    ("anonymous_limit_mb", "ram_gb"),
)


@dataclass(frozen=True)
class Figure:
    """Number with the public reference it is from, and its confidence: high, medium or low."""

    value: float
    source: str
    confidence: str


@dataclass(frozen=True)
class DeviceProfile:
    """Profile of a device. What is not known is None.

    limit_mb: of an iOS app's footprint, and with the increased-memory-limit entitlement. mapped_gb:
    ceiling of its mapped address space. available_mb: what an Android app finds free.
    anonymous_limit_mb: Android 17's limiter.
    """

    name: str
    title: str
    platform: Literal["ios", "android"]
    ram_gb: Figure
    dram_gb_per_s: Figure
    page_kib: Figure
    flash_gb_per_s: Figure | None = None
    performance_cores: Figure | None = None
    efficiency_cores: Figure | None = None
    limit_mb: Figure | None = None
    limit_with_entitlement_mb: Figure | None = None
    mapped_gb: Figure | None = None
    mapped_with_entitlement_gb: Figure | None = None
    available_mb: Figure | None = None
    anonymous_limit_mb: Figure | None = None

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the backends whose packages run there."""
        everywhere = ("executorch", NATIVE)
        return (*everywhere, "coreml") if self.platform == "ios" else everywhere

    @property
    def knows_entitlement(self) -> bool:
        """Whether the limit with iOS's increased-memory-limit is known."""
        return self.limit_with_entitlement_mb is not None

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Key and figure of everything that is known."""
        for f in fields(self):
            if isinstance(figure := getattr(self, f.name), Figure):
                yield f.name, figure


@dataclass(frozen=True)
class MemoryBudget:
    """Memory that an app may use on a device, in bytes.

    dirty_bytes: of memory that cannot be dropped, in the sense of `counted`; the app is killed
    above it. available_bytes: of everything in memory, clean pages of files too; more is evicted
    and read again. mapped_bytes: of address space, None where no ceiling is known.
    """

    device: str
    entitlement: bool
    counted: str
    dirty_bytes: int
    available_bytes: int
    mapped_bytes: int | None


def load(name: str) -> DeviceProfile:
    """Profile that ships with the package. Raises UsageError, with names that are alike."""
    names = _names()
    if name not in names:
        alike = difflib.get_close_matches(name.lower().replace(" ", "-"), names, n=3, cutoff=0.5)
        hint = f"perhaps {' or '.join(alike)}; " if alike else ""
        raise UsageError(f"there is no device {name!r}", hint=f"{hint}`tinyqmoe devices` lists all")
    return load_file(FOLDER / f"{name}.toml")


def all_devices() -> list[DeviceProfile]:
    """All profiles that ship with the package, by name."""
    return [load_file(FOLDER / f"{name}.toml") for name in _names()]


def _names() -> list[str]:
    """Names of all devices that ship with the package, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def load_file(path: Path) -> DeviceProfile:
    """Profile from a file.

    Raises UsageError if there is none, TinyQMoEError with everything that is wrong in it.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no file {path}", hint="`tinyqmoe devices` lists the devices that need none"
        )
    what, hint = f"{path} does not describe a device", "docs/devices.md says what such a file holds"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also TOMLDecodeError, UnicodeDecodeError
        raise TinyQMoEError(f"{what}: it is not TOML: {error}", hint=hint) from error
    if found := _problems(raw):
        raise TinyQMoEError(what, problems=found, hint=hint)
    figures = {key: Figure(**value) for key, value in raw.items() if isinstance(value, dict)}
    return DeviceProfile(name=path.stem, title=raw["title"], platform=raw["platform"], **figures)


def memory_budget(profile: DeviceProfile, *, entitlement: bool) -> MemoryBudget:
    """Memory that an app may use; `entitlement` is iOS's increased-memory-limit.

    How much room iOS leaves to clean pages is not public: the limit stands in for it. On Android,
    dirty memory can be no more than what is available. Raises UsageError where the entitlement
    means nothing or its limit is not known.
    """
    if profile.platform == "android":
        if entitlement:
            hint = "leave --entitlement away"
            raise UsageError(
                f"{profile.title} is an Android device: there is no such entitlement", hint=hint
            )
        available = _mb(profile.available_mb)
        dirty = min(available, _mb(profile.anonymous_limit_mb or profile.available_mb))
        return MemoryBudget(profile.name, False, COUNTED["android"], dirty, available, None)
    limit = profile.limit_with_entitlement_mb if entitlement else profile.limit_mb
    if limit is None:
        what = f"the limit of {profile.title} with the entitlement is not known"
        raise UsageError(
            what, hint="leave --entitlement away, or describe the device in a file of your own"
        )
    mapped = profile.mapped_with_entitlement_gb if entitlement else profile.mapped_gb
    mapped_bytes = None if mapped is None else int(mapped.value * 1e9)
    return MemoryBudget(
        profile.name, entitlement, COUNTED["ios"], _mb(limit), _mb(limit), mapped_bytes
    )


def _mb(figure: Figure | None) -> int:
    """Bytes of a figure in MB that a file must have."""
    return int(cast(Figure, figure).value * 1e6)


def _problems(raw: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a file; empty if nothing is."""
    known = {f.name: f for f in fields(DeviceProfile) if f.name != "name"}
    platform = raw.get("platform")
    found = [f"{key} is unknown" for key in raw if key not in known]
    found += [
        f"{key} is missing" for key, f in known.items() if f.default is MISSING and key not in raw
    ]
    if "title" in raw and not _is_text(raw["title"]):
        found.append("title must be a text")
    if "platform" in raw and platform not in ("ios", "android"):
        found.append(f"platform must be ios or android, got {platform!r}")
    elif needed := _NEEDED.get(str(platform), ""):
        found += [] if needed in raw else [f"{needed} is missing: an {platform} device has it"]
        found += [
            f"{key} is for {of} only" for key, of in _ONLY.items() if key in raw and of != platform
        ]
    for key in raw:
        if key in known and key not in ("title", "platform"):
            found += _figure_problems(key, raw[key])
    return found or _order_problems(raw)


def _figure_problems(key: str, raw: object) -> list[str]:
    """Everything that is wrong with one figure; empty if nothing is."""
    if not isinstance(raw, dict):
        return [f"{key} must be {{ value, source, confidence }}, got {raw!r}"]
    found = [
        f"{key}.{part} is missing" for part in ("value", "source", "confidence") if part not in raw
    ]
    found += [
        f"{key}.{part} is unknown" for part in raw if part not in ("value", "source", "confidence")
    ]
    value = raw.get("value", 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        found.append(f"{key}.value must be a positive number, got {value!r}")
    if not _is_text(raw.get("source", "-")):
        found.append(f"{key}.source must name a reference, got {raw['source']!r}")
    if raw.get("confidence", "low") not in CONFIDENCES:
        found.append(
            f"{key}.confidence must be {', '.join(CONFIDENCES)}, got {raw['confidence']!r}"
        )
    return found


def _is_text(value: object) -> bool:
    """Whether a value is a text that says something."""
    return isinstance(value, str) and bool(value.strip())


def _order_problems(raw: dict[str, Any]) -> list[str]:
    """Figures that contradict each other; empty if none do."""
    found = []
    for less, more in _ORDER:
        if less in raw and more in raw:
            low, high = (
                raw[key]["value"] * (1e3 if key.endswith("_gb") else 1) for key in (less, more)
            )
            if low > high:
                found.append(f"{less} is more than {more}")
    return found

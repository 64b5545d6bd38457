"""What a check of a bundle asks for, from options or from a `tinyqmoe.toml`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from exporter.errors import TinyQMoEError, UsageError
from tinyqmoe.hub import is_hub_id
from tinyqmoe.packages import ALL

CHECK_FILE = "tinyqmoe.toml"
SECTION = "check"
_LISTS, _SIZES, _PATHS = ("backend", "device"), ("max_bytes", "max_dirty"), ("baseline",)
_RANGES = {  # what a number is at least, and at most
    "max_bytes": (1, math.inf),
    "max_dirty": (1, math.inf),
    "max_kl": (0, math.inf),
    "min_top1": (0, 1),
    "max_perplexity_ratio": (0, math.inf),
    "min_tokens_per_second_projected": (0, math.inf),
    "tolerance": (0, math.inf),
    "tolerance_kl": (0, math.inf),
}


@dataclass(frozen=True)
class CheckSettings:
    """Settings of a check. None is no limit, and no baseline.

    backend: backends or formats, "all" for those that ship. device: names of phones that each
    package must be predicted to fit. max_bytes: of the files of a package. max_dirty: predicted
    dirty memory of a run that streams, in bytes. max_kl: in nats. min_top1: share of positions.
    min_tokens_per_second_projected: of decoding on each device, the lower end of the range.
    baseline: a bundle, also on the hub, or the JSON of a check. tolerance: of bytes and memory
    since the baseline, in percent; tolerance_kl: of the KL, in nats. Raises UsageError with all
    that is out of range.
    """

    backend: Sequence[str] = (ALL,)
    device: Sequence[str] = ()
    max_bytes: int | None = None
    max_dirty: int | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    max_perplexity_ratio: float | None = None
    min_tokens_per_second_projected: float | None = None
    baseline: str | Path | None = None
    tolerance: float = 1.0
    tolerance_kl: float = 0.001

    def __post_init__(self) -> None:
        problems = _range_problems(vars(self))
        if self.min_tokens_per_second_projected is not None and not self.device:
            problems.append("min-tokens-per-second-projected: it needs a device to project for")
        if problems:
            raise UsageError("a check cannot be as it is asked for", problems=problems)


def read_check_file(path: Path) -> dict[str, Any]:
    """The settings in `[check]` of a file, by the names of the fields of CheckSettings.

    A baseline is relative to the folder of the file, or a bundle on the hub. Raises UsageError if
    there is no file, TinyQMoEError with everything that is wrong in it.
    """
    what, hint = f"{path} does not describe a check", "docs/ci.md says what such a file holds"
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint=hint)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also TOMLDecodeError, UnicodeDecodeError
        raise TinyQMoEError(f"{what}: it is not TOML: {error}", hint=hint) from error
    section = raw.get(SECTION)
    problems = [f"{key} is unknown" for key in raw if key != SECTION]
    if not isinstance(section, dict):
        problems.append(f"the table [{SECTION}] is missing")
        raise TinyQMoEError(what, problems=problems, hint=hint)
    known = {field.name.replace("_", "-"): field.name for field in fields(CheckSettings)}
    problems += [f"{SECTION}.{key} is unknown" for key in section if key not in known]
    values: dict[str, Any] = {}
    for key, name in known.items():
        if key in section:
            try:
                values[name] = _value(name, section[key])
            except ValueError as error:
                problems.append(f"{SECTION}.{key}: {error}")
    problems += [f"{SECTION}.{problem}" for problem in _range_problems(values)]
    if problems:
        raise TinyQMoEError(what, problems=problems, hint=hint)
    if "baseline" in values:
        beside = path.parent / values["baseline"]
        if beside.exists() or not is_hub_id(values["baseline"]):
            values["baseline"] = beside
    return values


def _value(name: str, raw: object) -> Any:
    """The value of a setting as a file has it. Raises ValueError for one of another kind."""
    if name in _LISTS:
        if isinstance(raw, list) and raw and all(isinstance(item, str) for item in raw):
            return tuple(raw)
        raise ValueError(f"expected a list of names, got {raw!r}")
    if name in _PATHS:
        if isinstance(raw, str) and raw:
            return raw
        raise ValueError(f"expected a path, got {raw!r}")
    if name in _SIZES and isinstance(raw, str):
        from exporter.memory import parse_size

        try:
            return parse_size(raw)
        except UsageError as error:
            raise ValueError(error.what) from error
    kinds: Any = int if name in _SIZES else int | float
    if isinstance(raw, bool) or not isinstance(raw, kinds):
        raise ValueError(f"expected a {'size' if name in _SIZES else 'number'}, got {raw!r}")
    return raw


def _range_problems(values: Mapping[str, Any]) -> list[str]:
    """Every number that is out of range, by its name as an option; NaN is."""
    return [
        f"{name.replace('_', '-')}: expected {_range_text(low, high)}, got {values[name]!r}"
        for name, (low, high) in _RANGES.items()
        if values.get(name) is not None
        and not (low <= values[name] <= high and math.isfinite(values[name]))
    ]


def _range_text(low: float, high: float) -> str:
    return f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"

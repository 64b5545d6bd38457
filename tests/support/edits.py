"""Random edits of parsed JSON: what a stranger, a bad copy or a careless hand makes of it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

EXTREMES = (
    *(0, -1, 1, 2**31, 2**53, 2**63, 10**30, 0.5, -0.0, 1e300, True, None),
    *("", "..", "/", "a\x1b[31mb", "x" * 5000, [], {}, [[]], {"a": 1}),
)
Path = tuple[Any, ...]
"""The keys and indices that lead to a value."""


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Paths of all values inside a value."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for key, member in members:
        yield (*at, key)
        if isinstance(member, dict | list):
            yield from paths(member, (*at, key))


def edited(value: Any, rng: random.Random, places: list[Path]) -> tuple[Any, str]:
    """A copy with one edit, and what the edit is in words."""
    value = copy.deepcopy(value)
    *way, key = path = rng.choice(places)
    holder = value
    for step in way:
        holder = holder[step]
    old = holder[key]
    kind = rng.choice(("delete", "extreme", "near", "other", "twice"))
    if kind == "delete":
        del holder[key]
    elif kind == "extreme":
        holder[key] = rng.choice(EXTREMES)
    elif kind == "near":
        holder[key] = _near(old, rng)
    elif kind == "other":
        holder[key] = _at(value, rng.choice(places))
    elif isinstance(holder, list):
        holder.append(old)
    else:
        holder[f"{key}x"] = old
    return value, f"{kind} {'.'.join(map(str, path))}"


def _near(old: Any, rng: random.Random) -> Any:
    """A value of the same type that is a little different."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return old + rng.choice((-64, -16, -4, -1, 1, 4, 16, 64))
    if isinstance(old, str):
        return old[:-1] if old and rng.random() < 0.5 else f"{old}a"
    return old


def _at(value: Any, path: Path) -> Any:
    for step in path:
        if isinstance(value, dict) and step not in value:
            return None
        value = value[step]
    return copy.deepcopy(value)

"""Random edits of files: what a stranger, a bad copy or a careless hand makes of them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

EXTREMES = (
    *(0, -1, 1, 2**31, 2**53, 2**63, 10**30, 0.5, -0.0, 1e300, True, None),
    *("", "..", "/", "a\x1b[31mb", "x" * 5000, [], {}, [[]], {"a": 1}),
)
# What is of the right form and means too much.
TOKENS = (
    *(
        b"\xff" * 8,
        b"\0" * 8,
        b"\xff\xff\xff\x7f",
        b"9" * 400,
        b"[" * 2000,
        b"\xc3\x28",
        b'"',
        b"{",
    ),
    *(b"-1", b"1e999", b"NaN", b"null", b"..", b"/", b"\\ud800", b"\x80" * 10, b"a" * 300),
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


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes of a good file after up to four changes: other bytes, some taken out or put in, cut."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        # Half of the changes are near the beginning: headers matter most.
        reach = min(len(data), 128) if draw(st.booleans()) else len(data)
        at = draw(st.integers(0, reach))
        new = draw(st.one_of(st.binary(max_size=8), st.sampled_from(TOKENS)))
        kind = draw(st.sampled_from(("replace", "insert", "delete", "cut")))
        if kind == "cut":
            del data[at:]
        else:
            data[at : at + (0 if kind == "insert" else len(new))] = b"" if kind == "delete" else new
    return bytes(data)


def damaged_json(good: bytes) -> st.SearchStrategy[bytes]:
    """The text of a JSON document after edits of its values, or of its bytes."""
    value = json.loads(good)
    places = list(paths(value))
    texts = st.randoms(use_true_random=False).map(
        lambda rng: json.dumps(edited(value, rng, places)[0]).encode()
    )
    return st.one_of(texts, damaged(good))

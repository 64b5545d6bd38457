"""JSON of strangers, read so strictly that every reader understands the same."""

from __future__ import annotations

import itertools
import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises ValueError for what is no JSON, is nested too deeply, names a member twice, or has a
    number that is not finite or a text that is not Unicode.
    """
    try:
        value = json.loads(_decoded(text), object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _decoded(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(a for a, b in itertools.pairwise(names) if a == b)
        raise ValueError(f"{twice[:80]!r} is there twice")
    return members

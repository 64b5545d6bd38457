"""The bits of a level in each plain form of a matrix."""

from __future__ import annotations

PLAIN_BITS = {"uint2": 2, "int4": 4, "int8": 8}


def plain_bytes(form: str, n_levels: int) -> int:
    """Size of so many levels in a form, in bytes."""
    return -(-n_levels * PLAIN_BITS[form] // 8)

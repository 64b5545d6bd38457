"""What engines are asked for, and what is measured of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What is measured: numbers of threads and tokens, `context` positions filled before."""

    threads: int
    context: int
    prompt_tokens: int
    new_tokens: int
    repetitions: int


@dataclass(frozen=True)
class Rates:
    """Speeds in tokens a second: medians of the repetitions."""

    decode: float
    prefill: float

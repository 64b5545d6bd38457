"""What the runtime of a package format takes in memory besides the weights: the terms of a runner's
`memory`."""

from __future__ import annotations

from dataclasses import dataclass

MB = 10**6


@dataclass(frozen=True)
class Holder:
    """One part of the memory of a run, in bytes: `dirty` cannot be dropped, `clean` is pages of
    files."""

    what: str
    dirty_bytes: int = 0
    clean_bytes: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model that the memory of its activations follows.

    rows: of all matrices of the layers together. weights: of all matrices together.
    kv_cache_bytes: size of the cache at `context` positions.
    """

    hidden: int
    intermediate: int
    heads: int
    rows: int
    weights: int
    context: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class RuntimeMemory:
    """Holders of a runtime: those it has from loading on, and those that come with the first
    call."""

    loaded: list[Holder]
    used: list[Holder]

"""Terms in which a runner predicts the memory of its runtime, in bytes, without the weights."""

from __future__ import annotations

from dataclasses import dataclass

MB = 10**6


@dataclass(frozen=True)
class Holder:
    """Part of the memory of a run, in bytes.

    Dirty memory cannot be dropped, clean memory is pages of files.
    """

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
    """Holders of a runtime.

    It has those of `loaded` from loading on; those of `used` come with the first call.
    """

    loaded: list[Holder]
    used: list[Holder]

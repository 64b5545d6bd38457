"""Projection of how fast a package might decode on a device, from bytes and cores.

It is never a measurement:

    token_ms = max(memory_ms, compute_ms) + flash_ms

    memory_ms = (weights_bytes + kv_bytes) / (share x DRAM bandwidth)
    share of the peak bandwidth: 0.5 to 0.6
    compute_ms = 1000 / measured tokens/s x measured threads / performance cores of the device
    flash_ms = shortfall_bytes / flash bandwidth
    shortfall_bytes = max(0, clean_bytes - (available_bytes - dirty_bytes))

What it cannot know: clocks and instructions per clock (a performance core counts as one of the
machine measured), what NEON makes of the kernels, heat, other apps, and how well cores share the
work. A runtime that leaves eviction to the kernel reads more than the shortfall again: walking all
weights in order, nearly everything.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporter.bundle import Artifact, Manifest
from runtime_ref.device.profile import DeviceProfile, MemoryBudget
from runtime_ref.residency import CodedTensor, Residency, in_order_of_use, plan

BANDWIDTH_SHARES = (0.5, 0.6)  # of the peak that decoding reaches on phones


@dataclass(frozen=True)
class TokenTraffic:
    """Memory that one decoded token reads, in bytes.

    weights_bytes: matrices in the form they are held in, with their scales. kv_bytes: of the cache,
    as far as it is filled. clean_bytes: how much of the weights lies in clean pages of files, and
    has to find room in memory.
    """

    weights_bytes: int
    kv_bytes: int
    clean_bytes: int


@dataclass(frozen=True)
class Measured:
    """Decode speed on the machine that measured it, and the threads it took.

    waits_for_files: memory was short, so what is projected from it is a lower bound.
    """

    tokens_per_second: float
    threads: int
    waits_for_files: bool = False


@dataclass(frozen=True)
class Projection:
    """Projected speed with all that went in.

    Ranges are from the lower to the upper share of the bandwidth. missing: figures of the device
    that are needed and not known; then there are no tokens per second.
    """

    device: str
    traffic: TokenTraffic
    measured: Measured
    dirty_bytes: int
    shortfall_bytes: int
    memory_ms: tuple[float, float]
    compute_ms: float | None
    flash_ms: float | None
    tokens_per_second: tuple[float, float] | None
    missing: list[str]


def token_traffic(
    manifest: Manifest, artifact: Artifact, residency: Residency, fill_tokens: int
) -> TokenTraffic:
    """Memory that a token reads, in bytes.

    The weights are where `residency` has them, and `fill_tokens` of the context are filled. An
    embedding apart from the head is read by one row a token, and left out.
    """
    used = in_order_of_use(manifest.tensors)
    coded = {
        t.name: CodedTensor.of_entry(t) for t in used if artifact.places[t.name].form == "tqlz"
    }
    in_memory = plan(list(coded.values()), residency.budget)
    weights = dirty = 0
    for entry in used:
        tensor = coded.get(entry.name)
        expanded = (
            tensor is not None
            and tensor.gain > 0
            and (entry.name in in_memory or residency.folder is not None)
        )
        n_bytes = (
            tensor.blob_bytes
            if tensor is not None and expanded
            else artifact.places[entry.name].n_bytes
        )
        weights += n_bytes + entry.scales_bytes
        dirty += n_bytes if entry.name in in_memory else 0
    kv = artifact.kv_cache_bytes * fill_tokens // manifest.interface.context
    return TokenTraffic(weights, kv, clean_bytes=weights - dirty)


def project(
    profile: DeviceProfile,
    budget: MemoryBudget,
    traffic: TokenTraffic,
    dirty_bytes: int,
    measured: Measured,
) -> Projection:
    """Projected speed by the formula above; `dirty_bytes` are what the run was seen to use."""
    shortfall = max(0, traffic.clean_bytes - max(0, budget.available_bytes - dirty_bytes))
    moved = traffic.weights_bytes + traffic.kv_bytes
    low, high = (moved / (share * profile.dram_gb_per_s.value * 1e6) for share in BANDWIDTH_SHARES)
    cores, flash = profile.performance_cores, profile.flash_gb_per_s
    compute = (
        None if cores is None else 1e3 / measured.tokens_per_second * measured.threads / cores.value
    )
    flash_ms = 0.0 if shortfall == 0 else None if flash is None else shortfall / (flash.value * 1e6)
    parts = {"performance_cores": compute, "flash_gb_per_s": flash_ms}
    speeds = None
    if compute is not None and flash_ms is not None:
        speeds = (1e3 / (max(low, compute) + flash_ms), 1e3 / (max(high, compute) + flash_ms))
    missing = [name for name, value in parts.items() if value is None]
    return Projection(
        profile.name,
        traffic,
        measured,
        dirty_bytes,
        shortfall,
        (low, high),
        compute,
        flash_ms,
        speeds,
        missing,
    )

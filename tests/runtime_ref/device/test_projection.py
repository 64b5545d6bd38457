"""The projection of a speed: each bound on its own, by figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exporter.bundle import EMBEDDING, Manifest
from runtime_ref.device import profile as device
from runtime_ref.device.profile import DeviceProfile, Figure, MemoryBudget
from runtime_ref.device.projection import Measured, TokenTraffic, project, token_traffic
from runtime_ref.residency import Residency
from tests.support.bundles import small_manifest

MB = 1_000_000
FAST = Measured(tokens_per_second=1e6, threads=1)


def figure(value: float) -> Figure:
    return Figure(value, "a test", "low")


PHONE = DeviceProfile(
    name="phone",
    title="Phone",
    platform="android",
    ram_gb=figure(4),
    dram_gb_per_s=figure(20),
    page_kib=figure(4),
    flash_gb_per_s=figure(2),
    performance_cores=figure(4),
    available_mb=figure(1000),
)
BUDGET = device.memory_budget(PHONE, entitlement=False)


def test_bytes_over_bandwidth_bound_the_speed() -> None:
    p = project(PHONE, BUDGET, TokenTraffic(900 * MB, 100 * MB, 900 * MB), 0, FAST)
    assert p.memory_ms == pytest.approx((100.0, 1000 / 12))  # 1 GB at 10 and at 12 GB/s
    assert p.tokens_per_second == pytest.approx((10.0, 12.0))
    assert (p.shortfall_bytes, p.flash_ms, p.missing) == (0, 0.0, [])


def test_cores_bound_the_speed() -> None:
    p = project(PHONE, BUDGET, TokenTraffic(MB, 0, MB), 0, Measured(tokens_per_second=5, threads=2))
    assert p.compute_ms == pytest.approx(100)  # 200 ms by 2 threads, 4 cores
    assert p.tokens_per_second == pytest.approx((10.0, 10.0))


def test_what_does_not_fit_comes_from_flash_for_every_token() -> None:
    p = project(PHONE, BUDGET, TokenTraffic(1000 * MB, 0, 1000 * MB), 200 * MB, FAST)
    assert p.shortfall_bytes == 200 * MB
    assert p.flash_ms == pytest.approx(100)  # at 2 GB/s
    assert p.tokens_per_second == pytest.approx((1000 / 200, 1000 / (1000 / 12 + 100)))


def test_dirty_memory_above_what_is_available_leaves_no_room_and_no_less() -> None:
    p = project(PHONE, BUDGET, TokenTraffic(300 * MB, 0, 300 * MB), 2000 * MB, FAST)
    assert p.shortfall_bytes == 300 * MB


def test_what_is_not_known_is_not_guessed() -> None:
    unknown = replace(PHONE, performance_cores=None, flash_gb_per_s=None)
    p = project(unknown, BUDGET, TokenTraffic(2000 * MB, 0, 2000 * MB), 0, FAST)
    assert (p.compute_ms, p.flash_ms, p.tokens_per_second) == (None, None, None)
    assert p.missing == ["performance_cores", "flash_gb_per_s"]
    fits = project(unknown, BUDGET, TokenTraffic(MB, 0, MB), 0, FAST)
    assert fits.missing == ["performance_cores"], (
        "flash matters only where something is missing from memory"
    )


def test_a_device_that_is_better_in_everything_is_not_slower() -> None:
    traffic, measured = TokenTraffic(900 * MB, 50 * MB, 900 * MB), Measured(8, 2)
    slow, fast = (device.load(name) for name in ("android-4gb", "galaxy-s24"))

    def speed(profile: DeviceProfile) -> float:
        budget: MemoryBudget = device.memory_budget(profile, entitlement=False)
        projected = project(profile, budget, traffic, 800 * MB, measured).tokens_per_second
        assert projected is not None
        assert projected[0] <= projected[1]
        return projected[0]

    assert speed(slow) < speed(fast)


def manifest(*, untied: bool) -> Manifest:
    """One matrix of 32 bytes and 16 of scales in a context of 16, with a head of the same size
    beside it."""
    small = small_manifest()
    embedding = next(t for t in small.tensors if t.name == EMBEDDING)
    matrix = replace(embedding, rows=4, cols=8, group_size=8, blob_bytes=32, scales_bytes=16)
    names = [EMBEDDING, "lm_head.weight"] if untied else [EMBEDDING]
    place = replace(small.artifacts[0].places[EMBEDDING], n_bytes=32, scales_bytes=16)
    return replace(
        small,
        tensors=[replace(matrix, name=name) for name in names],
        artifacts=[replace(small.artifacts[0], places=dict.fromkeys(names, place))],
    )


@pytest.mark.parametrize("untied", [False, True])
def test_traffic_of_a_package(untied: bool) -> None:
    """An embedding of its own is not read in full; a tied one is, as the head."""
    described = manifest(untied=untied)
    artifact = replace(described.artifacts[0], kv_cache_bytes=1600)
    expected = TokenTraffic(weights_bytes=48, kv_bytes=400, clean_bytes=48)
    assert token_traffic(described, artifact, Residency(), 4) == expected
    assert token_traffic(described, artifact, Residency("expand"), 4) == expected, (
        "raw levels have no other form"
    )


def test_traffic_follows_where_weights_lie() -> None:
    """Ternary codes of 32 bytes for 4 x 8 levels; expanded, a raw blob of 2 bits a level,
    padded."""
    described = manifest(untied=False)
    coded = replace(described.tensors[0], codec="lzw", code_bits=12, cap=6, n_levels=3)
    described, artifact = replace(described, tensors=[coded]), described.artifacts[0]
    expanded = 16 + 128  # scales; header, levels and tail, aligned
    in_memory = token_traffic(described, artifact, Residency("expand"), 0)
    assert in_memory == TokenTraffic(weights_bytes=expanded, kv_bytes=0, clean_bytes=16)
    in_files = token_traffic(described, artifact, Residency("file"), 0)
    assert in_files == TokenTraffic(weights_bytes=expanded, kv_bytes=0, clean_bytes=expanded)
    streamed = token_traffic(described, artifact, Residency("auto", budget_bytes=0), 0)
    assert streamed == TokenTraffic(weights_bytes=48, kv_bytes=0, clean_bytes=48)

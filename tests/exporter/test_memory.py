"""Memory that a process could still take, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter import memory


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a system with 8,000 kB available, in the control group a/b."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   8000 kB\n")
    (tmp_path / "cgroup").write_text("1:memory:/elsewhere\n0::/a/b\n")
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUP_ROOT", tmp_path / "groups")
    return tmp_path


def test_what_the_system_has(system: Path) -> None:
    (system / "groups" / "a" / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 8000 * 1024


@pytest.mark.parametrize("file", ["memory.max", "a/memory.max", "a/b/memory.max"])
def test_at_most_the_limit_of_a_group(system: Path, file: str) -> None:
    (system / "groups" / file).write_text("5000000\n")
    assert memory.available_bytes() == 5_000_000


def test_at_most_the_limit_of_the_older_groups(system: Path) -> None:
    (system / "groups" / "memory").mkdir()
    (system / "groups" / "memory" / "memory.limit_in_bytes").write_text("6000000\n")
    assert memory.available_bytes() == 6_000_000


def test_half_of_the_machine_where_nothing_is_told(system: Path) -> None:
    (system / "meminfo").unlink()
    assert memory.available_bytes() > 100_000_000

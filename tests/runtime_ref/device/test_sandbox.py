"""The sandbox kills what does not fit and nothing else, says which, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from exporter.bundle import Bundle
from exporter.errors import CodecError, MissingComponentError
from runtime_ref.device import (
    memory_limits,
    sandbox,
    sandbox_child,
    sandbox_report,
    sandbox_tasks,
    sandbox_watch,
)
from runtime_ref.device.memory_limits import Usage
from runtime_ref.device.profile import MemoryBudget
from runtime_ref.device.sandbox_report import SandboxReport
from runtime_ref.residency import Residency
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="NOT TESTED: memory limits are enforced by the Linux kernel only",
)

MIB = 1 << 20
LIMIT = 64 * MIB
GROUPS = {"cgroup v1": memory_limits.v1_limit, "cgroup v2": memory_limits.v2_limit}
PARENT = """
import sys
from runtime_ref.device import sandbox
def progress(phase, done, total):
    print(phase, done, flush=True)
sandbox.run("tests.support.sandbox_probes:wait", {}, 64 << 20, [], progress)
"""


def need(mechanism: str) -> Callable[[int], memory_limits.Limit | None]:
    """Makes limits of one mechanism; skips the test where there is none."""
    if mechanism == "watchdog":
        return memory_limits.Watchdog
    limit = GROUPS[mechanism](LIMIT)
    if limit is None:
        pytest.skip(
            f"NOT TESTED: this machine has no {mechanism} memory controller in which this user "
            "may make groups"
        )
    limit.remove()
    return GROUPS[mechanism]


@pytest.fixture(params=["cgroup v2", "cgroup v1", "watchdog"])
def mechanism(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each in turn."""
    monkeypatch.setattr(memory_limits, "MECHANISMS", (need(request.param),))
    return request.param


@pytest.fixture(params=["cgroup v2", "cgroup v1"])
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of control group in turn."""
    monkeypatch.setattr(memory_limits, "MECHANISMS", (need(request.param),))
    return request.param


def groups_of(pid: int) -> list[Path]:
    """The control groups that a process has made."""
    return list(
        Path("/sys/fs/cgroup").rglob(f"{memory_limits.PREFIX}-{pid}-*")
    )  # v1 hierarchies are mounted inside


@pytest.fixture(autouse=True)
def nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The probes can be imported, and afterwards there is no group, no temporary file and no child,
    alive or not."""
    children = descendants(os.getpid())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # found anew
    yield
    assert groups_of(os.getpid()) == []
    assert list(temporary.iterdir()) == []
    assert set(descendants(os.getpid())) <= set(children)


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """2.5 times the limit."""
    path = tmp_path_factory.mktemp("large") / "file"
    with path.open("wb") as file:
        for _ in range(160):
            file.write(os.urandom(MIB))
    yield path
    path.unlink()


def silent(phase: str, done: int, total: int) -> None:
    """For runs nobody watches."""


def probe(
    name: str, limit_bytes: int = LIMIT, files: tuple[Path, ...] = (), **arguments: Any
) -> SandboxReport:
    return sandbox.run(
        f"tests.support.sandbox_probes:{name}", arguments, limit_bytes, files, silent
    )


def budget(dirty_bytes: int, mapped_bytes: int | None = None) -> MemoryBudget:
    return MemoryBudget("phone", False, "footprint", dirty_bytes, dirty_bytes, mapped_bytes)


def test_what_does_not_fit_is_killed_and_the_parent_goes_on(mechanism: str) -> None:
    report = probe("anonymous", n_bytes=4 * LIMIT)
    assert (report.outcome, report.phase, report.result) == ("killed", "touch", None)
    assert report.detail == "67,108,864 bytes were not enough"
    assert [phase.name for phase in report.phases] == ["start", "touch"]
    if mechanism == "watchdog":
        assert LIMIT < report.peak_dirty_bytes <= LIMIT + memory_limits.RLIMIT_SLACK_BYTES
    else:
        assert report.peak_group_bytes == pytest.approx(LIMIT, abs=MIB)
        assert LIMIT / 2 < report.peak_dirty_bytes <= LIMIT
    assert (
        sandbox_report.problems(report, budget(LIMIT))[0]
        == f"killed in phase 'touch': {report.detail}"
    )
    assert probe("anonymous", n_bytes=4 * MIB).outcome == "ok"


def test_what_fits_runs_and_is_counted(mechanism: str) -> None:
    report = probe("anonymous", n_bytes=LIMIT // 2)
    assert (report.outcome, report.detail, report.result) == ("ok", "", {"n_bytes": LIMIT // 2})
    assert [phase.name for phase in report.phases] == ["start", "touch", "end"]
    for bytes_used in (
        report.peak_dirty_bytes,
        report.peak_resident_bytes,
        report.peak_mapped_bytes,
    ):
        assert LIMIT // 2 <= bytes_used < LIMIT // 2 + 8 * MIB
    assert report.samples
    assert all(a.ms <= b.ms for a, b in zip(report.samples, report.samples[1:], strict=False))
    assert max(s.anonymous_bytes for s in report.samples) <= report.peak_dirty_bytes
    assert sandbox_report.problems(report, budget(LIMIT)) == []


def test_a_file_larger_than_the_limit_is_read_and_read_again(group: str, large_file: Path) -> None:
    size = large_file.stat().st_size
    report = probe("mapped_file", files=(large_file,), file=str(large_file), times=2)
    assert report.outcome == "ok"
    assert report.peak_group_bytes is not None
    assert LIMIT / 2 < report.peak_group_bytes <= LIMIT
    assert report.peak_clean_bytes <= LIMIT
    assert report.peak_dirty_bytes < 8 * MIB
    assert report.peak_mapped_bytes >= size
    assert report.refaulted_bytes, "pages were evicted and came again"
    assert report.major_faults > 0
    assert probe("anonymous", n_bytes=size).outcome == "killed", (
        "as much memory that cannot be dropped"
    )


def test_the_watchdog_does_not_limit_files(
    monkeypatch: pytest.MonkeyPatch, large_file: Path
) -> None:
    monkeypatch.setattr(memory_limits, "MECHANISMS", (memory_limits.Watchdog,))
    size = large_file.stat().st_size
    report = probe("mapped_file", files=(large_file,), file=str(large_file), times=10)
    assert (report.outcome, report.peak_group_bytes, report.refaulted_bytes) == ("ok", None, None)
    # The system may take pages of the file back while it is read.
    assert report.peak_clean_bytes > size / 2 > LIMIT > report.peak_dirty_bytes


def test_one_large_allocation(mechanism: str) -> None:
    """Under the watchdog it is refused before anything is touched; that counts as killed too."""
    report = probe("one_allocation", n_bytes=4 * LIMIT)
    assert (report.outcome, report.phase) == ("killed", "allocate")


def test_files_are_dropped_from_the_page_cache_first(group: str, large_file: Path) -> None:
    """What was cached before is free, so a run that found it there would seem to need nothing."""
    large_file.read_bytes()
    limit, size = 4 * LIMIT, large_file.stat().st_size
    cached = probe("mapped_file", limit, file=str(large_file), times=1)
    assert cached.peak_clean_bytes < size / 2
    dropped = probe("mapped_file", limit, (large_file,), file=str(large_file), times=1)
    assert dropped.cached_bytes == 0
    assert dropped.peak_clean_bytes >= size
    assert dropped.result == cached.result


def test_what_cannot_be_dropped_is_told(large_file: Path) -> None:
    """Pages that somebody has mapped and touched stay."""
    with large_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[: 8 * MIB : mmap.PAGESIZE]) > 0
        report = probe("anonymous", files=(large_file,), n_bytes=MIB)
    assert 8 * MIB <= report.cached_bytes < large_file.stat().st_size


def test_dropping_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(MIB + 1))
    with file.open("rb") as opened:
        assert sandbox_child.cached_bytes(opened) == MIB + mmap.PAGESIZE
    assert sandbox_child.drop_from_page_cache(file) == 0
    (tmp_path / "empty").touch()
    assert sandbox_child.drop_from_page_cache(tmp_path / "empty") == 0


def test_pages_cannot_be_locked() -> None:
    report = probe("locked")
    assert report.result == {"mlock": -1}
    assert report.locked_bytes == 0


def test_an_error_of_the_task_comes_back_as_it_was() -> None:
    with pytest.raises(CodecError) as caught:
        probe("codec_error")
    error, same = caught.value, CodecError("BAD_MAGIC", "this is no blob", hint="export again")
    assert (str(error), vars(error), error.exit_code) == (str(same), vars(same), same.exit_code)


def test_a_bug_in_the_task(mechanism: str) -> None:
    report = probe("bug")
    assert report.outcome == "failed"
    assert "ZeroDivisionError: a bug" in report.detail


def test_a_crash_is_no_kill(mechanism: str) -> None:
    report = probe("segfault")
    assert (report.outcome, report.phase) == ("failed", "crash")
    assert "SIGSEGV, and not for the memory limit" in report.detail
    assert "sandbox_probes.py" in report.detail, "the last words say where"


def test_a_kill_by_somebody_else_is_none_for_memory(mechanism: str) -> None:
    report = probe("kill_itself")
    assert report.outcome == "failed"
    assert "SIGKILL, and not for the memory limit" in report.detail


def test_a_child_that_leaves_without_a_result() -> None:
    report = probe("leave")
    assert report.outcome == "failed"
    assert report.detail == "the child ended with exit code 3 and without a result\nlast words"


@pytest.mark.parametrize("task", ["no_such_module:x", "tests.support.sandbox_probes:no_such_task"])
def test_a_task_that_is_not_there(task: str) -> None:
    report = sandbox.run(task, {}, LIMIT, [], silent)
    assert report.outcome == "failed"
    assert "no_such" in report.detail


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in probe("anonymous", files=(tmp_path / "none",), n_bytes=MIB).detail


def test_two_side_by_side(mechanism: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        over = pool.submit(probe, "anonymous", n_bytes=4 * LIMIT)
        fits = pool.submit(probe, "anonymous", 8 * LIMIT, n_bytes=4 * LIMIT)
    assert (over.result().outcome, fits.result().outcome) == ("killed", "ok")
    assert over.result().limit_bytes == LIMIT


def test_progress_and_report() -> None:
    heard: list[tuple[str, int, int]] = []
    arguments = {"n_bytes": 8 * MIB}
    report = sandbox.run(
        "tests.support.sandbox_probes:anonymous",
        arguments,
        LIMIT,
        [],
        lambda *said: heard.append(said),
    )
    step = ("touch", 4 * MIB, 8 * MIB)
    assert heard == [
        ("start the sandbox", 0, 0),
        ("start", 0, 0),
        ("touch", 0, 8 * MIB),
        step,
        ("end", 0, 0),
    ]
    plain = report.to_dict()
    assert plain["phases"][0]["counters"]["locked_bytes"] == 0
    assert plain["samples"][0].keys() == {
        "ms",
        "anonymous_bytes",
        "file_bytes",
        "mapped_file_bytes",
    }


def test_an_error_in_the_parent_ends_the_child() -> None:
    def progress(phase: str, done: int, total: int) -> None:
        if phase == "wait":
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        sandbox.run("tests.support.sandbox_probes:wait", {}, LIMIT, [], progress)


@contextlib.contextmanager
def waiting_parent() -> Iterator[subprocess.Popen[str]]:
    """A process whose sandboxed child waits."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            assert [parent.stdout.readline() for _ in range(2)] == [
                "start the sandbox 0\n",
                "wait 0\n",
            ]
            yield parent
        finally:
            parent.kill()  # a test that fails would wait for it


def descendants(pid: int) -> list[int]:
    """Children of all its threads, also those that have ended and that nobody has waited for."""
    lists = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for found in lists for child in found.split()]


def await_end(pids: list[int]) -> None:
    """The children of a killed process end a moment after it."""
    deadline = time.monotonic() + 30
    while any(memory_limits.counters(pid) for pid in pids):
        assert time.monotonic() < deadline, "a child outlives its parent"
        time.sleep(0.01)


def await_empty(groups: list[Path]) -> None:
    """A process leaves its group a moment after its memory is gone."""
    deadline = time.monotonic() + 30
    while any((group / "cgroup.procs").read_text() for group in groups):
        assert time.monotonic() < deadline, "a group is not left"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "return_code"),
    [(signal.SIGTERM, sandbox.TERMINATED), (signal.SIGINT, -signal.SIGINT)],
)
def test_a_parent_that_is_ended_cleans_up(number: signal.Signals, return_code: int) -> None:
    with waiting_parent() as parent:
        children = descendants(parent.pid)
        assert len(children) == 1
        parent.send_signal(number)
        assert parent.wait() == return_code
        await_end(children)
        assert groups_of(parent.pid) == []


def test_a_parent_that_is_killed_takes_the_child_with_it_and_the_next_run_cleans_up(
    group: str,
) -> None:
    """The fixture sees that its temporary files are gone too."""
    mine = Path(tempfile.gettempdir()) / "tinyqmoe-notes-of-somebody-else"
    mine.mkdir()
    with waiting_parent() as parent:
        children, groups = descendants(parent.pid), groups_of(parent.pid)
        assert len(groups) == 1
        memory_limits.remove_stale(groups[0].parent)
        assert groups_of(parent.pid) == groups, "its maker lives"
        parent.kill()
        parent.wait()
        await_end(children)
        await_empty(groups)
    assert len(list(Path(tempfile.gettempdir()).iterdir())) == 2
    assert probe("anonymous", n_bytes=MIB).outcome == "ok"
    assert groups_of(parent.pid) == []
    mine.rmdir()


def test_a_child_that_hangs_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STEP_SECONDS", 2)
    report = probe("hang")
    assert (report.outcome, report.phase) == ("failed", "hang")
    assert "at one step for longer than" in report.detail


def test_a_handler_of_sigterm_stays_or_comes_back() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    probe("locked")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.MonkeyPatch.context():
        previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            probe("locked")
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGTERM, previous)


def test_address_space_has_a_ceiling_of_its_own(large_file: Path) -> None:
    report = probe("mapped_file", files=(large_file,), file=str(large_file), times=1)
    assert sandbox_report.problems(report, budget(LIMIT, 8 * LIMIT)) == []
    (found,) = sandbox_report.problems(report, budget(LIMIT, LIMIT))
    assert found == f"{report.peak_mapped_bytes:,} bytes of address space, 67,108,864 allowed"
    (found,) = sandbox_report.problems(probe("anonymous", n_bytes=16 * MIB), budget(8 * MIB))
    assert found.endswith("bytes dirty, 8,388,608 allowed (footprint)")


def test_samples_of_a_long_run_are_thinned_out() -> None:
    peaks = sandbox_watch.Peaks()
    for ms in range(3 * sandbox_watch.MAX_SAMPLES):
        peaks.see_usage(float(ms), Usage(ms, 0, 0, 0, None))
    times = [sample.ms for sample in peaks.samples]
    assert sandbox_watch.MAX_SAMPLES / 2 <= len(times) < sandbox_watch.MAX_SAMPLES
    assert {b - a for a, b in itertools.pairwise(times)} == {4.0}
    assert peaks.dirty_bytes == 3 * sandbox_watch.MAX_SAMPLES - 1


def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(MissingComponentError, match="Linux kernel only"):
        probe("locked")


def test_the_files_of_cgroup_v2(tmp_path: Path) -> None:
    """As the kernel writes them (Documentation/admin-guide/cgroup-v2.rst), for machines that have
    version 1."""
    files = {
        "memory.swap.max": "max\n",
        "memory.stat": "anon 4096\nfile 40960\nshmem 8192\nfile_mapped 12288\n"
        "pgmajfault 7\nworkingset_refault_file 2\n",
        "memory.events": "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n",
        "memory.peak": f"{LIMIT}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    limit = memory_limits.Cgroup(tmp_path, memory_limits._V2, LIMIT)
    assert ((tmp_path / "memory.max").read_text(), (tmp_path / "memory.swap.max").read_text()) == (
        str(LIMIT),
        "0",
    )
    assert limit.join() == str(tmp_path / "cgroup.procs")
    now = memory_limits.counters()
    assert now is not None
    assert limit.usage(0, now) == Usage(12288, 32768, 12288, 7, 2 * mmap.PAGESIZE)
    assert (limit.peak_bytes(), limit.killed()) == (LIMIT, True)
    (tmp_path / "memory.peak").unlink()
    assert (limit.peak_bytes(), limit.killed()) == (
        None,
        True,
    )  # kernels before 5.19 do not keep the peak
    (tmp_path / "memory.events").write_text(
        "low 0\nhigh 0\nmax 9\noom 0\noom_kill 1\noom_group_kill 0\n"
    )
    assert not limit.killed(), (
        "a limit above this one killed, though file pages had filled this one"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: making groups below a group needs root")
def test_a_kill_for_a_limit_above_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of the whole test run, so to say, is smaller than the device."""
    need("cgroup v1")
    own = memory_limits._own_group("cgroup", "memory", "memory")
    assert own is not None
    above = memory_limits._new_group(own[1], memory_limits._V1, LIMIT)
    assert isinstance(above, memory_limits.Cgroup)
    below = functools.partial(memory_limits._new_group, above._folder, memory_limits._V1)
    monkeypatch.setattr(memory_limits, "MECHANISMS", (below,))
    try:
        report = probe("anonymous", 4 * LIMIT, n_bytes=2 * LIMIT)
        assert (report.outcome, report.phase) == ("failed", "touch")
        assert "SIGKILL, and not for the memory limit" in report.detail
        assert probe("anonymous", LIMIT // 2, n_bytes=LIMIT).outcome == "killed"
    finally:
        above.remove()


def test_a_limit_of_anonymous_memory_alone(mechanism: str, large_file: Path) -> None:
    """Android 17's limiter: file pages have more room than what cannot be dropped."""
    files, arguments = [large_file], {"file": str(large_file), "times": 1}
    reads = sandbox.run(
        "tests.support.sandbox_probes:mapped_file",
        arguments,
        LIMIT,
        files,
        silent,
        dirty_limit_bytes=8 * MIB,
    )
    assert reads.outcome == "ok"
    assert reads.peak_clean_bytes > 16 * MIB
    slow = {"n_bytes": LIMIT // 2, "seconds": 0.1}
    over = sandbox.run(
        "tests.support.sandbox_probes:anonymous", slow, LIMIT, [], silent, dirty_limit_bytes=8 * MIB
    )
    assert (over.outcome, over.phase) == ("killed", "touch")
    assert over.detail == "8,388,608 bytes of anonymous memory were not enough"
    assert over.limit_bytes == LIMIT
    assert 8 * MIB < over.peak_dirty_bytes < LIMIT // 2


def generate_arguments(bundle: Bundle, limit: int) -> dict[str, Any]:
    common = {
        "bundle": str(bundle.path),
        "format": "pte",
        "residency": sandbox_tasks.plain(Residency()),
    }
    return common | {"prompt": [0, 5, 9, 20], "limits": {"max_new_tokens": limit}, "sampling": {}}


def test_generation_in_a_sandbox_gives_the_same_tokens(bundle: Bundle) -> None:
    from runtime_ref.executorch.runner import ExecuTorchRunner
    from runtime_ref.generate import Sampling, generate
    from runtime_ref.prompts import load_tokenizer

    files = sandbox_tasks.files_to_drop(bundle, bundle.artifact("pte"), Residency())
    names = {"model.pte", "reference.safetensors", "tokenizer.json"}
    assert {file.name for file in files} == names
    report = sandbox.run(
        "runtime_ref.device.sandbox_tasks:generate",
        generate_arguments(bundle, 8),
        LIMIT,
        files,
        silent,
    )
    eos = bundle.manifest.interface.eos_token_ids
    expected = list(generate(ExecuTorchRunner(bundle), [0, 5, 9, 20], 8, Sampling(), eos))
    assert (report.outcome, [p.name for p in report.phases]) == (
        "ok",
        ["load", "prefill", "decode"],
    )
    assert report.result is not None
    assert report.result["tokens"] == expected
    assert report.result["text"] == load_tokenizer(bundle).decode(expected)
    assert report.locked_bytes == 0, "the loader locks what it maps, where it may"


def test_parity_in_a_sandbox(bundle: Bundle) -> None:
    files = sandbox_tasks.files_to_drop(bundle, bundle.artifact("pte"), Residency())
    arguments = {
        "bundle": str(bundle.path),
        "format": "pte",
        "residency": sandbox_tasks.plain(Residency()),
    }
    report = sandbox.run("runtime_ref.device.sandbox_tasks:parity", arguments, LIMIT, files, silent)
    assert report.result is not None
    parity = sandbox_tasks.parity_report(report.result)
    assert parity.passed
    assert report.result.pop("residency")["products_raw"] > 0
    assert parity.to_dict() == report.result


def test_a_package_that_does_not_fit_is_killed(bundle: Bundle) -> None:
    report = sandbox.run(
        "runtime_ref.device.sandbox_tasks:generate",
        generate_arguments(bundle, 8),
        MIB // 4,
        [],
        silent,
    )
    assert report.outcome == "killed"
    assert report.phase in ("load", "prefill")


def test_arrays_go_back_although_reading_a_tokenizer_leaves_holes(
    bundle: Bundle, tmp_path: Path
) -> None:
    letters = string.ascii_letters + string.digits
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a + b, c) for a, b in pairs for c in letters][:100_000]
    tokens = [*letters, *(a + b for a, b in pairs + triples)]
    copy = shutil.copytree(bundle.path, tmp_path / "bundle")
    bpe = models.BPE({token: i for i, token in enumerate(tokens)}, pairs + triples)
    Tokenizer(bpe).save(str(copy / "tokenizer.json"), pretty=False)
    n_bytes = 4 << 20
    report = probe("array_after_a_tokenizer", 1 << 30, bundle=str(copy), n_bytes=n_bytes)
    assert report.outcome == "ok", report.detail
    assert report.result is not None
    assert report.result["vocab"] == len(tokens)
    assert report.result["during"] >= 0.9 * n_bytes
    assert report.result["after"] < 0.1 * n_bytes

"""Residency: the same bits in every mode, budgets that hold, cache files that are checked, trims
during generation."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import EMBEDDING, HEAD, Bundle
from exporter.codec import native
from exporter.codec.format import Header
from exporter.codec.native_residency import UNLIMITED, ResidencyManager
from exporter.codec.native_tensor import NativeTensor
from exporter.errors import OutOfSpaceError, UsageError
from runtime_ref import residency
from runtime_ref.executorch import kernels
from runtime_ref.executorch.runner import ExecuTorchRunner
from runtime_ref.residency import (
    CodedTensor,
    Form,
    Residency,
    apply,
    coded_tensors,
    plan,
    stats,
    trim,
)
from tests.support import bundles as shared
from tests.support.blobs import make_blob, random_levels, same_bits
from tests.support.bundles import CONTEXT
from tests.support.bundles import TERNARY as TERNARY_LAYERS
from tests.support.custom_op import emit, feed, new_cache
from tests.support.paths import ROOT

LIBRARY = native.library()
Codec = tuple[str, int, int, int, int]
TERNARY: Codec = ("lzw", 12, 6, -1, 3)
# With levels of a rate that promises few exceptions of 4, 5 or 6 bits, by their spread.
CLIPPED: Codec = ("lzw", 12, 6, -127, 255)
SPREADS = {4: 1.2, 5: 3.0, 6: 5.0}
CODECS: list[Codec] = [
    ("base3", 8, 5, -1, 3),
    TERNARY,
    ("lzw", 12, 14, -1, 3),
    ("lzw", 12, 6, -7, 15),
    ("lzw", 12, 3, -127, 255),
    ("raw", 2, 0, -1, 3),
    ("raw", 8, 0, -128, 256),
    CLIPPED,
]


@pytest.fixture(autouse=True)
def streaming() -> Iterator[None]:
    """Leaves the manager of the codec's library as it found it: nothing expands."""
    yield
    apply(LIBRARY, Residency())
    now = stats(LIBRARY)
    assert (now.dirty_bytes, now.file_bytes) == (0, 0)


class Matrix:
    """An opened tensor, its product as it comes from the codes, and what it is to a plan."""

    def __init__(
        self,
        name: str,
        codec: Codec,
        shape: tuple[int, int],
        group_size: int,
        seed: int = 0,
        clipped_bits: int = 4,
    ) -> None:
        rng = np.random.default_rng(seed)
        levels = random_levels(shape, *codec[3:], seed)
        if codec == CLIPPED:
            drawn = rng.laplace(0, SPREADS[clipped_bits], shape)
            levels = np.clip(np.rint(drawn), -127, 127).astype(np.int8)
        self.group_size = group_size
        self.blob = make_blob(levels, *codec)
        self.tensor = NativeTensor(self.blob)
        self.coded = CodedTensor(name, Header.parse(self.blob), self.blob.nbytes)
        self.x = rng.standard_normal((2, shape[1]), np.float32)
        self.scales = rng.standard_normal((shape[0], -(-shape[1] // group_size)), np.float32)
        self.expected = self.products()

    def products(self) -> list[np.ndarray]:
        """Of one token and of two, with quantized and with float activations."""
        calls = (self.tensor.linear_x16, self.tensor.linear_f32)
        return [
            call(x, self.scales, self.group_size, threads=2)
            for call in calls
            for x in (self.x[:1], self.x)
        ]

    def is_right(self) -> bool:
        return all(same_bits(a, b) for a, b in zip(self.products(), self.expected, strict=True))

    def is_expanded(self) -> bool:
        """Whether its next product is from an expanded form."""
        before = stats(LIBRARY).products_from_forms
        self.products()
        return stats(LIBRARY).products_from_forms > before


def matrices(n: int = 6) -> list[Matrix]:
    """Of three codecs and two shapes, so that gains and sizes differ; raw ones among them."""
    kinds = [
        (CODECS[1], (64, 300)),
        (CODECS[3], (64, 300)),
        (CODECS[5], (20, 100)),
        (CODECS[0], (200, 300)),
        (CLIPPED, (64, 300)),
    ]
    return [Matrix(f"m{i}", *kinds[i % 5], group_size=300, seed=i) for i in range(n)]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_same_bits_in_every_mode(codec: Codec, tmp_path: Path) -> None:
    for seed, (shape, group_size) in enumerate(
        [((1, 1), 1), ((33, 43), 43), ((66, 300), 100), ((7, 2048), 128)]
    ):
        matrix = Matrix("m", codec, shape, group_size, seed)
        coded = codec[0] != "raw"
        modes = (
            Residency("expand"),
            Residency("file", cache_dir=tmp_path),
            Residency("auto", budget_bytes=100_000),
            Residency("auto", budget_bytes=1, cache_dir=tmp_path),
            Residency("expand", clean_budget_bytes=0),
            Residency("file", cache_dir=tmp_path, clean_budget_bytes=0),
            Residency(),
        )
        for mode in modes:
            apply(LIBRARY, mode, [matrix.coded])
            assert matrix.is_right()
            assert matrix.is_right()
            assert matrix.is_expanded() == (coded and mode != Residency())
            assert (stats(LIBRARY).dirty_bytes > 0) == (
                coded and mode.folder is None and mode != Residency()
            )
        assert stats(LIBRARY).file_failures == 0


def test_the_budget_holds_and_the_plan_is_what_the_core_does() -> None:
    every = matrices(12)
    coded = [m.coded for m in every]
    sizes = sorted({c.form_bytes for c in coded if c.gain > 0})
    assert len({c.gain for c in coded}) > 2
    assert len(sizes) > 1
    for budget in (0, 1, sizes[0], sizes[-1], 3 * sizes[0], 50_000, 90_000, 10_000_000, UNLIMITED):
        apply(LIBRARY, Residency())
        every = matrices(12)  # opened anew: the core knows nothing of their order
        apply(LIBRARY, Residency("auto", budget_bytes=budget))
        for _ in range(2):
            assert all(m.is_right() for m in every)
            assert stats(LIBRARY).dirty_bytes <= budget
        done = stats(LIBRARY).expansions
        assert {m.coded.name for m in every if m.is_expanded()} == plan(coded, budget)
        assert stats(LIBRARY).expansions == done, "a form went and came back"
        assert stats(LIBRARY).dirty_bytes == sum(
            c.form_bytes for c in coded if c.name in plan(coded, budget)
        )


@pytest.mark.parametrize("bits", SPREADS)
def test_matrices_of_a_low_rate_take_few_bits(bits: int) -> None:
    matrix = Matrix("m", CLIPPED, (64, 3000), 3000, clipped_bits=bits)
    assert matrix.coded.form == Form(bits, clipped=True)
    apply(LIBRARY, Residency("expand"))
    assert matrix.is_right()
    assert stats(LIBRARY).dirty_bytes == matrix.coded.form_bytes < 64 * 3000 * (bits + 1) / 8 + 4096


def test_lowering_and_trimming_free_at_once() -> None:
    every = matrices(6)
    apply(LIBRARY, Residency("expand"))
    assert all(m.is_right() for m in every)
    held = stats(LIBRARY).dirty_bytes
    freed = trim(LIBRARY, held // 2)
    now = stats(LIBRARY)
    assert freed >= held // 2
    assert now.dirty_bytes == now.budget_bytes == held - freed
    assert all(m.is_right() for m in every)
    assert stats(LIBRARY).dirty_bytes <= held - freed
    apply(LIBRARY, Residency())
    assert stats(LIBRARY).dirty_bytes == 0
    assert all(m.is_right() for m in every)
    assert trim(LIBRARY, 1) == 0


def test_files_are_used_again_and_replaced_when_damaged(tmp_path: Path) -> None:
    mode = Residency("file", cache_dir=tmp_path / "new")
    every = matrices(4)
    apply(LIBRARY, mode, [m.coded for m in every])
    assert all(m.is_right() for m in every)
    files = {m.coded.file_name: m.coded.file_bytes for m in every if m.coded.gain > 0}
    assert {f.name: f.stat().st_size for f in mode.cache_dir.iterdir()} == files  # type: ignore[union-attr]
    assert stats(LIBRARY).tensors_from_file >= len(files)
    assert stats(LIBRARY).dirty_bytes == 0
    done = stats(LIBRARY).expansions
    apply(LIBRARY, Residency())
    apply(LIBRARY, mode)
    assert all(m.is_expanded() and m.is_right() for m in every if m.coded.gain > 0)
    assert stats(LIBRARY).expansions == done
    apply(LIBRARY, Residency())
    first = tmp_path / "new" / every[0].coded.file_name
    good = first.read_bytes()
    first.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    apply(LIBRARY, mode)
    assert every[0].is_right()
    assert first.read_bytes() == good
    assert stats(LIBRARY).expansions == done + 1


@pytest.mark.parametrize("others", [0o020, 0o002])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, others: int) -> None:
    tmp_path.chmod(0o755 | others)
    with pytest.raises(UsageError, match="others could change them") as caught:
        apply(LIBRARY, Residency("file", cache_dir=tmp_path))
    assert f"chmod go-w {tmp_path}" in caught.value.hint
    tmp_path.chmod(0o755)
    apply(LIBRARY, Residency("file", cache_dir=tmp_path))


CHILD = """
import json, resource, sys
from pathlib import Path
import test_residency as t
limit, folder = int(sys.argv[1]), Path(sys.argv[2])
every = t.matrices(4)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
t.apply(t.LIBRARY, t.Residency("file", cache_dir=folder))
right = all(m.is_right() for _ in range(20) for m in every)
now = t.stats(t.LIBRARY)
print(json.dumps([right, now.file_failures, now.tensors_from_file, now.tensors_streamed]))
"""


def children(n: int, limit: int, folder: Path) -> list[list[Any]]:
    """What `n` processes say that multiply at once, with files of at most `limit` bytes (0:
    any)."""
    return in_children([sys.executable, "-c", CHILD, str(limit), str(folder)], n)


def in_children(command: list[str], n: int) -> list[list[Any]]:
    """What `n` processes that run at once print, as JSON."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(n)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * n
    return [json.loads(output) for output in outputs]


def test_two_processes_write_the_same_files(tmp_path: Path) -> None:
    for right, failures, from_file, streamed in children(2, 0, tmp_path):
        assert (right, failures, from_file, streamed) == (True, 0, 3, 0)
    assert all(file.suffix == ".raw" for file in tmp_path.iterdir())


def test_a_full_disk_streams_and_is_counted(tmp_path: Path) -> None:
    """Two of the three files fit under the limit."""
    assert max(m.coded.file_bytes for m in matrices(4)) > 15000
    [[right, failures, from_file, streamed]] = children(1, 15000, tmp_path)
    assert (right, failures, from_file, streamed) == (True, 1, 2, 1)
    assert len(list(tmp_path.iterdir())) == 2


SHORT = """
import json, resource
import test_residency as t
matrix = t.Matrix("m", t.TERNARY, (2048, 16384), 16384)
# no thread: it would need memory too
product = lambda: matrix.tensor.linear_x16(matrix.x[:1], matrix.scales, 16384)
as_expected = lambda: t.same_bits(product(), matrix.expected[0])
dirty = lambda: t.stats(t.LIBRARY).dirty_bytes
t.apply(t.LIBRARY, t.Residency("expand"))
with open("/proc/self/status") as status:
    mapped = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
limit = mapped + matrix.coded.form_bytes // 2
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
refused = [as_expected() for _ in range(2)] + [dirty()]
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
t.apply(t.LIBRARY, t.Residency("expand"))
print(json.dumps([refused, as_expected(), dirty()]))
"""


def test_memory_that_is_refused_streams_and_is_not_counted() -> None:
    [refused, right, dirty_bytes] = in_children([sys.executable, "-c", SHORT], 1)[0]
    assert refused == [True, True, 0]
    assert right
    assert dirty_bytes > 8 << 20


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT TESTED on a file system that is full: mounting one needs root")
    yield folder
    apply(LIBRARY, Residency())
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_system_that_is_full(full_disk: Path) -> None:
    every = matrices(4)
    mode = Residency("file", cache_dir=full_disk)
    with pytest.raises(OutOfSpaceError, match="expanded weights need"):
        apply(LIBRARY, mode, [m.coded for m in every])
    apply(LIBRARY, mode)
    assert all(m.is_right() for _ in range(2) for m in every)
    assert stats(LIBRARY).file_failures >= 1
    assert stats(LIBRARY).tensors_from_file >= 1
    assert not list(full_disk.glob("*.tmp"))


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    for wrong in (
        {"mode": "auto"},
        {"mode": "expand", "budget_bytes": 5},
        {"mode": "stream", "cache_dir": tmp_path},
        {"mode": "auto", "budget_bytes": -1},
        {"mode": "stream", "clean_budget_bytes": 2**64},
    ):
        with pytest.raises(UsageError):
            Residency(**wrong)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(OutOfSpaceError, match="cannot be used"):
        apply(LIBRARY, Residency("file", cache_dir=tmp_path / "file"))
    with pytest.raises(ValueError, match="BAD_ARGUMENT"):
        ResidencyManager().set_cache_dir(Path("x" * 2000))
    assert Residency("file").folder == residency.default_cache_dir()


def test_clean_budget_counts_what_passes() -> None:
    every = [Matrix(f"m{i}", TERNARY, (400, 1024), 1024, seed=i) for i in range(6)]
    sizes = [m.blob.size for m in every]

    def token() -> int:
        before = stats(LIBRARY).given_back_bytes
        assert all(
            same_bits(m.tensor.linear_x16(m.x, m.scales, 1024), m.expected[1]) for m in every
        )
        return stats(LIBRARY).given_back_bytes - before

    assert token() == 0
    apply(LIBRARY, Residency(clean_budget_bytes=sum(sizes)))
    token()
    assert token() == 0
    apply(LIBRARY, Residency(clean_budget_bytes=sum(sizes) - 1))
    token()
    passing = token()
    now = stats(LIBRARY)
    assert now.pinned_bytes + passing == sum(sizes)
    assert 0 < now.pinned_bytes + 2 * max(sizes) <= sum(sizes) - 1 + max(sizes)


# ---- a model


def greedy(
    runner: ExecuTorchRunner, n: int, between: Callable[[int], object] = lambda i: None
) -> list[bytes]:
    """The logits of `n` greedy tokens."""
    logits = [runner.forward([3, 5, 7], 0)]
    for i in range(n):
        between(i)
        logits.append(runner.forward([int(logits[-1].argmax())], 3 + i))
    return [one.tobytes() for one in logits]


@pytest.fixture
def kernel_library() -> Iterator[Any]:
    library = kernels.load()
    yield library
    apply(library, Residency())


@pytest.fixture(scope="module")
def coded_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As `bundle`, with int8 activations and a tied head, but coded everywhere."""
    path = tmp_path_factory.mktemp("coded-bundle") / "small"
    return shared.export(checkpoint, path, TERNARY_LAYERS, context=CONTEXT, codec="lzw")


@pytest.mark.parametrize("which", ["coded_bundle", "other_bundle"])
def test_executorch_trims_while_it_generates(
    which: str, request: pytest.FixtureRequest, kernel_library: Any
) -> None:
    bundle: Bundle = request.getfixturevalue(which)
    runner = ExecuTorchRunner(bundle)
    expected = greedy(runner, 20)
    coded = coded_tensors(bundle, bundle.artifact("pte"))
    forms = sum(c.form_bytes for c in coded if c.gain > 0)
    assert forms > 0
    apply(kernel_library, Residency("expand"), coded)
    before = stats(kernel_library)
    freed = []

    def trim_from_another_thread(i: int) -> None:
        if i == 10:
            assert stats(kernel_library).dirty_bytes >= forms
            thread = threading.Thread(target=lambda: freed.append(trim(kernel_library, UNLIMITED)))
            thread.start()
            thread.join()

    assert greedy(runner, 20, trim_from_another_thread) == expected
    after = stats(kernel_library)
    assert freed[0] >= forms
    assert after.dirty_bytes == after.budget_bytes == 0
    assert after.products_from_forms > before.products_from_forms
    assert after.products_from_codes > before.products_from_codes


DISTURBER = """
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

using Budget = void (*)(uint64_t);
using Trim = void (*)(uint64_t, uint64_t*);
using Folder = int (*)(const char*);

static std::thread thread;
static std::atomic<bool> done;
static std::atomic<int64_t> result;

extern "C" void trim_after(Trim trim, int64_t microseconds) {
  thread = std::thread([=] {
    std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
    uint64_t freed;
    trim(UINT64_MAX, &freed);
    result = std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
  });
}

extern "C" void disturb(Budget set_budget, Budget set_clean_budget, Trim trim, Folder set_cache_dir,
                        const char* folder) {
  done = false;
  result = 0;
  thread = std::thread([=] {
    for (uint64_t i = 0; !done; ++i, ++result) {
      set_budget(i % 3 == 0 ? UINT64_MAX : i % 3 * 5000);
      if (i % 4 == 1) trim(i % 8 * 5000, nullptr);
      if (i % 50 == 7) set_cache_dir(i % 100 == 7 ? folder : nullptr);
      set_clean_budget(i % 5 == 0 ? UINT64_MAX : i % 5 * 10000);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  });
}

extern "C" int64_t so_far() { return result; }

extern "C" int64_t finish() {
  done = true;
  thread.join();
  return result;
}
"""


@pytest.fixture(scope="module")
def disturber(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A thread of its own: the runtime's Python module holds the interpreter's lock while a program
    runs."""
    source = tmp_path_factory.mktemp("disturber") / "disturber.cc"
    source.write_text(DISTURBER)
    built = source.with_suffix(".so")
    command = [
        *kernels.compiler(),
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-pthread",
        str(source),
        "-o",
        str(built),
    ]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(built))
    library.so_far.restype = library.finish.restype = ctypes.c_int64
    return library


PATIENCE_SECONDS = 60  # a thread that comes at the right moment has to find a free core


def test_executorch_frees_within_the_token_in_which_it_is_told_to(
    other_bundle: Bundle, kernel_library: Any, disturber: ctypes.CDLL
) -> None:
    runner = ExecuTorchRunner(other_bundle)
    prompt = [3, 5, 7] * 4
    expected = runner.forward(prompt, 0).tobytes()
    coded = coded_tensors(other_bundle, other_bundle.artifact("pte"))
    forms = sum(c.form_bytes for c in coded if c.gain > 0)
    inside, deadline = 0, time.monotonic() + PATIENCE_SECONDS
    while inside < 5 and time.monotonic() < deadline:
        apply(kernel_library, Residency("expand"))
        runner.forward(prompt, 0)
        assert stats(kernel_library).dirty_bytes >= forms
        disturber.trim_after(kernel_library.tinyqmoe_trim, ctypes.c_int64(50))
        begin_ns = time.monotonic_ns()
        assert runner.forward(prompt, 0).tobytes() == expected
        end_ns = time.monotonic_ns()
        inside += begin_ns < disturber.finish() < end_ns
        assert stats(kernel_library).dirty_bytes == stats(kernel_library).budget_bytes == 0
    assert inside == 5


def test_executorch_while_a_thread_changes_everything(
    other_bundle: Bundle, kernel_library: Any, disturber: ctypes.CDLL, tmp_path: Path
) -> None:
    runner = ExecuTorchRunner(other_bundle)
    expected = greedy(runner, 20)
    changes = [
        getattr(kernel_library, f"tinyqmoe_{name}")
        for name in ("set_budget", "set_clean_budget", "trim")
    ]
    deadline = time.monotonic() + PATIENCE_SECONDS
    disturber.disturb(*changes, kernel_library.tinyqmoe_set_cache_dir, os.fsencode(tmp_path))
    try:
        while disturber.so_far() < 10_000 and time.monotonic() < deadline:
            assert greedy(runner, 20) == expected
    finally:
        changed = disturber.finish()
    assert changed >= 10_000


def test_executorch_from_files(other_bundle: Bundle, kernel_library: Any, tmp_path: Path) -> None:
    runner = ExecuTorchRunner(other_bundle)
    expected = greedy(runner, 5)
    coded = coded_tensors(other_bundle, other_bundle.artifact("pte"))
    apply(kernel_library, Residency("file", cache_dir=tmp_path), coded)
    assert greedy(runner, 5) == expected
    assert {file.name for file in tmp_path.iterdir()} == {c.file_name for c in coded}
    assert stats(kernel_library).dirty_bytes == 0


def test_core_ml_interpreter_in_every_mode(checkpoint: Path, tmp_path: Path) -> None:
    parts = shared.encode(checkpoint, tmp_path / "encoded", TERNARY_LAYERS, "lzw")
    made = emit(parts, tmp_path / "model.mlpackage")
    network, tokens = made.open(), made.tokens(9)

    def logits() -> bytes:
        return feed(network, tokens, [7, 1, 1], new_cache(network)).tobytes()

    expected = logits()
    for mode in (Residency("expand"), Residency("file", cache_dir=tmp_path / "files"), Residency()):
        apply(LIBRARY, mode)
        before = stats(LIBRARY)
        assert logits() == expected
        assert (stats(LIBRARY).products_from_forms > before.products_from_forms) == (
            mode != Residency()
        )
        assert (stats(LIBRARY).products_from_codes > before.products_from_codes) == (
            mode == Residency()
        )


@pytest.mark.parametrize("which", ["bundle", "other_bundle"])
def test_tensors_of_a_bundle_in_the_order_of_use(
    which: str, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(which)
    names = [c.name for c in coded_tensors(bundle, bundle.artifact("pte"))]
    looked_up = set() if which == "bundle" else {EMBEDDING}
    assert names[-1] == (EMBEDDING if which == "bundle" else HEAD)
    assert sorted(names) == sorted({t.name for t in bundle.manifest.tensors} - looked_up)

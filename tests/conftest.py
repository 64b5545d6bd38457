"""Bundles that many tests share. An export takes many seconds, so each is made once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.bundle import Bundle
from tests.support import bundles as shared
from tests.support.bundles import CONTEXT, TERNARY, VOCAB, Parts, export_other
from tests.support.checkpoints import LLAMA3_ROPE, write_llama
from tests.support.paths import DATA

LONGEST_SECONDS = 1200  # of a test that is not marked as long


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that compile or export for minutes come first, lest one worker ends with them alone."""
    items.sort(key=lambda item: item.path.parent.name not in ("native", "real"))


def pytest_configure() -> None:
    """Prepares what the workers and the programs of tests inherit.

    Signals are the usual ones: under `nohup pytest &` they would inherit none. Threads of OpenMP
    that wait sleep instead of spinning, as several workers share the cores. Tables are as wide as
    where there is no terminal, of which a worker inherits the width.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.pop("COLUMNS", None)


@pytest.fixture(autouse=True)
def limited(request: pytest.FixtureRequest) -> Iterator[None]:
    """A limit for every wait: a test that hangs fails, and the others still run."""

    def fail(number: int, frame: object) -> None:
        raise TimeoutError(f"the test took more than {LONGEST_SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(0 if request.node.get_closest_marker("long") else LONGEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, grouped queries, tied head, with a tokenizer and a chat template."""
    directory = tmp_path_factory.mktemp("checkpoint") / "small"
    write_llama(directory, vocab_size=VOCAB, bos_token_id=0, eos_token_id=1)
    shared.write_text_tokenizer(directory, VOCAB)
    return directory


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Ternary layers, int8 embedding, int8 activations: what an export makes by default. Do not
    change it: copy it."""
    return shared.export(
        checkpoint, tmp_path_factory.mktemp("bundle") / "small", TERNARY, context=CONTEXT
    )


@pytest.fixture(scope="session")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a `.pte` and an ML Program. Do not change it: copy it."""
    out = tmp_path_factory.mktemp("both") / "bundle"
    return shared.export(checkpoint, out, TERNARY, context=CONTEXT, formats=("pte", "mlprogram"))


@pytest.fixture(scope="session")
def parts(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """What the program of `bundle` is made of, to lower it again in another way."""
    return shared.encode(checkpoint, tmp_path_factory.mktemp("parts"), TERNARY)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, as many kv heads as heads, a head of its own, llama3 rope; no tokenizer, no BOS,
    no EOS."""
    return write_llama(
        tmp_path_factory.mktemp("other-checkpoint") / "other",
        num_hidden_layers=1,
        num_key_value_heads=4,
        hidden_size=40,
        tie_word_embeddings=False,
        rope_scaling=LLAMA3_ROPE,
        eos_token_id=None,
        bos_token_id=None,
    )


@pytest.fixture(scope="session")
def other_bundle(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All that `bundle` is not: float activations, LZW coding everywhere, groups that do not divide
    rows, C++ sources, and short calls."""
    return export_other(other_checkpoint, tmp_path_factory.mktemp("other-bundle") / "other")


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of `bundle` that the test may damage."""
    return shared.copy(bundle, tmp_path / "copied")


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """The path of a folder of development data; skips the test where it is absent."""

    def find(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(
                f"NOT TESTED: {DATA / name} is absent; set TINYQMOE_DATA to the folder of the data"
            )
        return DATA / name

    return find

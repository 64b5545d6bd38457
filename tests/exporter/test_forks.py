"""Processes that are forked after threads were kept: they have none of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import numpy as np
import pytest

from exporter.codec.native_tensor import NativeTensor
from exporter.reference.model import on_all_cores
from tests.support.blobs import make_blob, random_levels

WAIT = 30  # seconds


def product() -> float:
    """The sum of a product that two threads compute."""
    levels = random_levels((64, 32), -1, 3)
    x, scales = np.ones((1, 32), np.float32), np.ones((64, 1), np.float32)
    with NativeTensor(make_blob(levels, "raw", 2, 0, -1, 3)) as tensor:
        return float(tensor.linear_f32(x, scales, 32, threads=2).sum())


def sums() -> float:
    return sum(on_all_cores(lambda a, b: float(a + b), range(5), range(5)))


@pytest.mark.parametrize("work", [product, sums])
def test_a_fork_computes_what_its_parent_does(work: Callable[[], float]) -> None:
    expected = work()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(work()))
    child.start()
    answered = ours.poll(WAIT)
    child.kill()
    child.join(WAIT)
    assert answered, "the fork waits for threads that it does not have"
    assert ours.recv() == expected

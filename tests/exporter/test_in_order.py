"""Work by several threads, with results in order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from exporter.in_order import in_order

AHEAD = 3


def test_results_come_in_the_order_of_the_items() -> None:
    """The first items take the longest."""

    def work(n: int) -> int:
        time.sleep(0.002 * (20 - n))
        return n * n

    assert list(in_order(range(20), work, AHEAD)) == [n * n for n in range(20)]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_a_few_items_are_all_worked_on(n: int) -> None:
    assert list(in_order(range(n), str, AHEAD)) == [str(i) for i in range(n)]


def test_items_are_worked_on_at_once() -> None:
    """Each waits for another, so one thread would wait for ever."""
    meeting = threading.Barrier(2, timeout=60)

    def work(n: int) -> int:
        meeting.wait()
        return n

    assert list(in_order(range(4), work, 2)) == [0, 1, 2, 3]


def test_no_more_items_are_begun_than_were_asked_for() -> None:
    """What the caller has taken counts until it asks for the next."""
    begun: list[int] = []

    def items() -> Iterator[int]:
        for n in range(10):
            begun.append(n)
            yield n

    for done, result in enumerate(in_order(items(), lambda n: n, AHEAD)):
        assert result == done
        assert len(begun) <= done + AHEAD


def test_an_error_is_raised_in_its_place() -> None:
    def work(n: int) -> int:
        if n >= 2:
            raise ValueError(f"item {n}")
        time.sleep(0.01)  # the error is there before the results that come first
        return n

    results = in_order(range(100), work, AHEAD)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(results)


def test_nothing_is_begun_after_an_error() -> None:
    begun: list[int] = []

    def work(n: int) -> None:
        begun.append(n)
        raise ValueError(f"item {n}")

    with pytest.raises(ValueError, match="item 0"):
        next(in_order(range(100), work, AHEAD))
    assert max(begun) < AHEAD


def test_an_error_of_the_stream_itself_is_raised_after_what_it_gave() -> None:
    def items() -> Iterator[int]:
        yield from range(AHEAD)
        raise OSError("no more")

    results = in_order(items(), lambda n: n, AHEAD)
    assert next(results) == 0
    with pytest.raises(OSError, match="no more"):
        next(results)


def running(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.is_alive()} - before


def test_threads_have_ended_when_the_generator_is_closed() -> None:
    before, ended = set(threading.enumerate()), []

    def work(n: int) -> int:
        time.sleep(0.05 * n)
        ended.append(n)
        return n

    results = in_order(range(100), work, AHEAD)
    assert next(results) == 0
    assert running(before)
    results.close()
    assert not running(before)
    assert len(ended) <= AHEAD


def test_threads_end_after_an_interrupt() -> None:
    """It reaches the caller wherever that is: also where it starts a thread, or waits for its end.

    Such a thread ends by itself.
    """
    before = set(threading.enumerate())

    def work(n: int) -> int:
        if n == 1:
            signal.raise_signal(signal.SIGINT)
        return n

    with pytest.raises(KeyboardInterrupt):
        list(in_order(range(100), work, 2))
    for thread in running(before):
        thread.join(10)
    assert not running(before)

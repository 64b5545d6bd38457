"""Work on the items of a stream by several threads, with results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 2  # blocks of weights or levels that are in work: what an export takes is bounded by it


def in_order(
    items: Iterable[T], work: Callable[[T], R], ahead: int = AT_ONCE
) -> Generator[R, None, None]:
    """What `work` makes of each item, in their order.

    No more than `ahead` items are in work, the one whose result the caller has included: while the
    caller deals with one, the next ones are worked on. `work` runs in threads, and must let go of
    the interpreter's lock for most of its time. What it raises is raised in the place of its
    result; no further item is begun then, nor when the generator is closed, and all threads have
    ended when either is over.
    """
    begun: deque[Future[R]] = deque()
    with ThreadPoolExecutor(ahead) as threads:
        try:
            for item in items:
                begun.append(threads.submit(work, item))
                if len(begun) == ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for result in begun:
                result.cancel()

"""Helper threads of a worker, and the queues between steps: order is kept, and the number of waiting items is bounded.

OpenCV's JPEG functions release Python's lock, so threads suffice; HDF5 is read and written by the worker's own thread.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


class Helpers:
    """A context manager that runs functions on `threads` threads; if that is one, on the caller's own thread.

    Leaving it ends the threads; calls that have not begun are dropped.
    """

    def __init__(self, threads: int):
        self.threads, self._pool = threads, ThreadPoolExecutor(threads, "pipeline-helper") if threads > 1 else None
        self.ahead = 2 if self._pool else 0  # batches that wait between two steps

    def start(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Start a call; the returned function waits for its result, or raises its exception.

        Without threads the call begins only when the result is asked for, so that nothing is held before it is needed.
        """
        if self._pool is None:
            return functools.partial(function, *arguments)
        return self._pool.submit(function, *arguments).result

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def run_ahead(step: Callable[[Item], Any], items: Iterable[Item], *, ahead: int) -> Iterator[Item]:
    """Apply `step`, which starts some work, to each item, and yield the items in order, each `ahead` items later."""
    waiting: deque[Item] = deque()
    for item in items:
        step(item)
        waiting.append(item)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting

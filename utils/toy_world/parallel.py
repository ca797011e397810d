"""Do independent pieces of work on all cores, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Protocol, TypeVar

import cv2

In = TypeVar("In")
Out = TypeVar("Out")

_CHUNK = 16


class OrderedMap(Protocol):
    """The built-in ``map`` of one sequence, or what works like it: results come in the order of the items."""

    def __call__(self, function: Callable[[In], Out], items: Iterable[In], /) -> Iterator[Out]: ...


@contextmanager
def start_workers(count: int) -> Iterator[OrderedMap]:
    """Give a map whose work is done by ``count`` processes, which stay for several rounds; with 1, by this one.

    Functions and items must be picklable. Children are started afresh (which reads the main script once more),
    because a forked child of a process that has run torch or OpenCV threads may hang.
    """
    if count == 1:
        yield map
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_use_one_thread)
    try:
        yield partial(pool.map, chunksize=_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, what waits is not begun


def _use_one_thread() -> None:
    """OpenCV's function does not name its module: to pickle it, Python would look into all that are loaded."""
    cv2.setNumThreads(1)

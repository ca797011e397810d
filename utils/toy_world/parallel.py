"""Do independent pieces of work on all cores, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.pool import Pool
from typing import TypeVar

import cv2

In = TypeVar("In")
Out = TypeVar("Out")

_CHUNK = 16


class Workers:
    """Processes that stay for several rounds of work. With one, everything runs in this process.

    Functions and items must be picklable. Children are started afresh (which reads the main script once
    more), because a forked child of a process that has run torch or OpenCV threads may hang.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: Pool | None = None

    def __enter__(self) -> Workers:
        if self._count > 1:
            self._pool = get_context("spawn").Pool(self._count, initializer=cv2.setNumThreads, initargs=(1,))
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    def map(self, function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """Like the built-in `map`: results come in the order of the items, whoever made them."""
        if self._pool is None:
            return map(function, items)
        return self._pool.imap(function, items, chunksize=_CHUNK)

"""Loader workers: when one dies, the message names the sample that it was reading.

A worker that a signal ends (a crash in a C library, no memory left) cannot say anything. So each notes what it is about
to read in memory that the main process sees.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from ctypes import Array, c_int64
from multiprocessing import RawArray
from types import TracebackType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from model.errors import InputError

from .sources import Source

_NOTHING_YET = -1
_LOOK_SECONDS = 1.0
_USUAL_CAUSE = {
    signal.SIGKILL: " (this is how a system that is out of memory ends processes; lower --workers)",
    signal.SIGBUS: " (shared memory may be full; lower --workers)",
}


class DeadWorker(InputError):
    """A loader worker ended without an exception of its own.

    Attributes:
        source, item: the number of a source and the sample of it that the worker noted last; -1 if there is none.
    """

    def __init__(self, message: str, *, source: int, item: int) -> None:
        super().__init__(message, reason="worker died")
        self.source, self.item = source, item


class _Notes:
    """Source and item that each worker is at; two numbers per worker, in shared memory."""

    def __init__(self, num_workers: int) -> None:
        self.numbers: Array[c_int64] = RawArray(c_int64, [_NOTHING_YET] * (2 * num_workers))

    def open(self, worker: int) -> None:
        """Called in a worker when it starts."""
        global _own
        init_worker()
        _leave_signals_to_parent()
        sys.excepthook = _tell_unless_reader_is_gone
        for crash in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE):  # torch would print lines of its own
            signal.signal(crash, signal.SIG_DFL)
        _own = self, 2 * worker


_own: tuple[_Notes, int] | None = None  # in a worker: where it notes


def note(source: int, item: int) -> None:
    """Say which sample is read next; does nothing outside a worker.

    Args:
        source: its place among the ``sources`` of the loader.
    """
    if _own is not None:
        notes, place = _own
        notes.numbers[place : place + 2] = [source, item]


def init_worker() -> None:
    """Use one core per worker, because the workers together already use all of them."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _tell_unless_reader_is_gone(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """In a worker: the thread that hands tensors over would print a traceback when its reader has been killed."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


def _leave_signals_to_parent() -> None:
    """A launcher and a terminal signal every process, but the parent needs its workers to finish what it is at.

    Only what the parent sends ends a worker, or the end of the parent, which torch does not see while a batch is made.
    Python's handlers are not told who has sent a signal, and do not run while a library is at work; so a thread waits.
    """
    if not hasattr(signal, "sigtimedwait"):  # macOS
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

    def wait() -> None:
        while os.getppid() == parent:
            sent = signal.sigtimedwait({signal.SIGTERM}, _LOOK_SECONDS)
            if sent and sent.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()


class WatchedLoader(DataLoader):
    """A DataLoader that names the sample at which a worker died. The dataset has to call ``note``.

    Args:
        sources: what the notes refer to.
        options: of ``DataLoader``.
    """

    def __init__(self, dataset: Dataset, sources: Sequence[Source], *, num_workers: int, **options: Any) -> None:
        self._sources, self._notes = sources, _Notes(num_workers)
        super().__init__(dataset, num_workers=num_workers, worker_init_fn=self._notes.open, **options)

    def __iter__(self) -> Iterator[Any]:
        """Batches.

        Raises:
            DeadWorker: when a worker has died; torch looks every five seconds.
        """
        # While a loader runs, torch would raise from a signal handler, wherever the main process happens to be.
        handler = signal.getsignal(signal.SIGCHLD)
        batches: Any = super().__iter__()
        if self.num_workers:
            signal.signal(signal.SIGCHLD, handler)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as err:  # the latter two of a pipe that a worker has left
                dead = _find_dead(getattr(batches, "_workers", ()), patience=0 if isinstance(err, RuntimeError) else 5)
                if dead is None:
                    raise
                raise self._describe(*dead) from err
            yield batch

    def _describe(self, worker: int, code: int) -> DeadWorker:
        source, item = self._notes.numbers[2 * worker : 2 * worker + 2]
        if code > 0:
            ended = f"ended with code {code}"
        else:
            number = signal.Signals(-code)
            ended = f"was ended by {number.name}{_USUAL_CAUSE.get(number, '')}"
        name = "its first sample" if item == _NOTHING_YET else f"{self._sources[source].name}, sample {item}"
        return DeadWorker(
            f"{name}: the loader worker that read it {ended}. A training goes on from its last checkpoint by the same "
            "command. If it happens again, `python -m utils.data.verify --deep` with the same data flags goes through "
            "every sample and names all that do this; correct or remove them",
            source=source,
            item=item,
        )


def _find_dead(workers: Sequence[Any], *, patience: float) -> tuple[int, int] | None:
    """The number and the exit code of a worker that has failed; None if none has within so many seconds.

    A pipe breaks a moment before the system knows the exit code.
    """
    deadline = time.monotonic() + patience
    while True:
        for worker, process in enumerate(workers):
            if process.exitcode:
                return worker, process.exitcode
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)

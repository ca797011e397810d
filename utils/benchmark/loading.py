"""What it takes to read a model: seconds, and host memory of one process and of several at once (Linux).

A page of a weight file that several processes have mapped is in memory once. So three numbers tell: what a process
holds beside the files at its peak (``own``), what all processes hold together once every weight has been touched
(``together``), and how large the weights are.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import is_file

from .machine import STATUS, kilobytes

_ROLLUP = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True)
class Loading:
    """One process that read a model; sizes in bytes.

    Attributes:
        seconds: until the network was there.
        own: the most that it held outside of mapped files while reading, less what it held before.
        share: of the machine's memory that is its own, pages that n processes share counted as 1/n each; after every
            weight has been touched.
        weights: of all parameters.
    """

    seconds: float
    own: int
    share: int
    weights: int


def benchmark(version: str, precision: str, *, processes: int) -> None:
    """Print a table for one process, and for ``processes`` at once.

    Raises:
        InputError: if the system does not tell, or the model cannot be read.
    """
    if not is_file(_ROLLUP):
        raise InputError(f"there is no {_ROLLUP}, which says what processes share; this measures on Linux alone")
    print(f"{version}, {precision}")
    print(f"{'processes':>9} {'weights GB':>11} {'seconds':>8} {'own GB':>7} {'together GB':>12}")
    for count in sorted({1, processes}):
        found = load_together(version, precision, processes=count)
        seconds = statistics.median(loading.seconds for loading in found)
        own, together = max(loading.own for loading in found), sum(loading.share for loading in found)
        sizes = f"{own / 1e9:>7.2f} {together / 1e9:>12.2f}"
        print(f"{count:>9} {found[0].weights / 1e9:>11.2f} {seconds:>8.1f} {sizes}")


def load_together(version: str, precision: str, *, processes: int) -> list[Loading]:
    """Read a model in fresh processes at the same time.

    Raises:
        InputError: if it cannot be read.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    ends = []
    for _ in range(processes):
        here, there = context.Pipe()
        worker = context.Process(target=_load, args=(version, precision, barrier, there))
        worker.start()
        ends.append((here, worker))
    found = [here.recv() for here, _ in ends]
    for _, worker in ends:
        worker.join()
    failed = [result for result in found if isinstance(result, InputError)]
    if failed:
        raise failed[0]
    return found


def _load(version: str, precision: str, barrier: Any, result: Any) -> None:
    from model.configuration import PRECISIONS
    from model.PixelLM import PixelLMForCausalLM

    before = kilobytes(STATUS, "RssAnon")
    try:
        barrier.wait()
        with _highest_own() as peak:
            started = time.perf_counter()
            network = PixelLMForCausalLM.from_pretrained(version, dtype=PRECISIONS[precision])
            seconds = time.perf_counter() - started
        for parameter in network.parameters():
            parameter.detach().sum()  # from the file into memory
        barrier.wait()
        share = kilobytes(_ROLLUP, "Pss")
        barrier.wait()  # nobody leaves, which would change the shares of the others
    except (InputError, threading.BrokenBarrierError) as err:
        barrier.abort()
        result.send(err)
        return
    weights = sum(parameter.nbytes for parameter in network.parameters())
    result.send(Loading(seconds, 1024 * (peak[0] - before), 1024 * share, weights))


@contextmanager
def _highest_own() -> Iterator[list[int]]:
    """The most kilobytes outside of mapped files in the meantime, seen a hundred times a second."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], kilobytes(STATUS, "RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], kilobytes(STATUS, "RssAnon"))

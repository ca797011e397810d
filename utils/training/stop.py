"""SIGTERM and Ctrl-C: the update in hand is finished and saved, then the run ends; the same command goes on.

Before the first update there is nothing to finish: what is held is released, and the run ends.

The end of a launcher counts as SIGTERM. The ``deepspeed`` command hands no signal on, and no launcher can that is
killed: the processes would train on, and hold the run directory against the next start.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

import psutil

from utils import dist

logger = logging.getLogger(__name__)

# What ends a process that does not end by itself (DeepSpeed's launcher, torchrun, SLURM) does so after 30 s.
_PATIENCE_SECONDS = 25.0
_PATIENCE_AT_START_SECONDS = 5.0  # nothing would be lost
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 1.0
_LAUNCHER = re.compile(r"python\S* (-\S+ )*\S*(deepspeed|torchrun|torch\.distributed\.run)\b")
# What torchrun and DeepSpeed's launcher alone set.
_OF_A_LAUNCHER = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
# Set by who ends the process for another reason, in which a launcher's SIGTERM is no news.
ends_otherwise = threading.Event()


def exit_code(number: int) -> int:
    """Of a run that a signal has stopped, as shells count."""
    return 128 + number


def tell_stopped(number: int, progress: str) -> int:
    """Say that a signal has stopped the run, and how far it got; returns the exit code."""
    if not ends_otherwise.is_set():
        logger.info("stopped by %s %s", signal.Signals(number).name, progress)
    return exit_code(number)


class Stopped(BaseException):
    """Raised on all processes where there is nothing to finish; no handler of errors may take it for one.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """While it is entered, SIGTERM and the first Ctrl-C raise ``Stopped``; from ``begin`` on they are only noted, and
    the training loop looks at ``received``.

    A second Ctrl-C ends the process at once. What has not ended 25 s after the signal, before ``begin`` 5 s, is given
    up, so that the process ends by itself, and its checkpoint remains the one before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._whereabouts: Callable[[], str] = lambda: ""
        self._trains = self._is_saving = False
        self._over = threading.Event()
        self._before: dict[int, Any] = {}
        # Where torch waits outside of Python, no handler runs. The interpreter itself writes each signal's number here.
        self._reads, self._writes = socket.socketpair()
        self._writes.setblocking(False)
        self._wakes_before = -1

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        self._wakes_before = signal.set_wakeup_fd(self._writes.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hurry, name="stop-signals", daemon=True).start()
        threading.Thread(target=self._watch, args=[launchers()], name="launchers", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._wakes_before)
        self._writes.close()  # the thread has nothing to wait for
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self, whereabouts: Callable[[], str]) -> None:
        """Called before the first update.

        Args:
            whereabouts: one sentence that says where the run will go on.
        Raises:
            Stopped: if a signal came before.
        """
        self._whereabouts = whereabouts
        self._trains = True
        if self.received:  # and what it raised was lost in a library
            raise Stopped(self.received)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While a checkpoint is written nobody hurries: a save that others end leaves the one before."""
        self._is_saving = True
        yield
        self._is_saving = False

    def check(self) -> None:
        """Called by all processes where nothing would be lost, as in a validation after a save.

        One that left alone would keep the others waiting in a collective.

        Raises:
            Stopped: on all of them, if a signal came to any.
        """
        if number := max(dist.gather_objects(self.received)):
            raise Stopped(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            os._exit(exit_code(number))
        is_first = not self.received
        self.received = self.received or number  # a launcher adds SIGTERM to the terminal's Ctrl-C
        if is_first and not self._trains and not ends_otherwise.is_set():
            raise Stopped(number)

    def _watch(self, launchers: list[psutil.Process]) -> None:
        while (launchers or _has_lost_its_launcher()) and not self._over.wait(_LOOK_SECONDS):
            if launchers and all(_runs(launcher) for launcher in launchers):
                continue
            logger.info("the launcher has ended")
            os.kill(os.getpid(), signal.SIGTERM)
            return

    def _hurry(self) -> None:
        number = self._wait_for_signal()
        if not number or self._over.is_set() or ends_otherwise.is_set():
            return
        if self._trains:
            self._promise(signal.Signals(number).name)
        patience = _PATIENCE_SECONDS if self._trains else _PATIENCE_AT_START_SECONDS
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline or self._is_saving:
            if self._over.wait(0.1):
                return
        if self._trains:
            print(
                f"{signal.Signals(number).name}: what was in hand has not ended in {patience:.0f} s and is given up. "
                f"{self._whereabouts()}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        else:
            tell_stopped(number, "before the first update")
        os._exit(exit_code(number))

    def _wait_for_signal(self) -> int:
        """The number of the first of ``_SIGNALS``; 0 if none came until the end."""
        with self._reads:
            while received := self._reads.recv(1):
                if received[0] in _SIGNALS:
                    return received[0]
        return 0

    def _promise(self, name: str) -> None:
        again = "; Ctrl-C again ends it at once" if self.received == signal.SIGINT else ""
        logger.info("%s: the run ends; an update in hand is finished and saved%s", name, again)


@cache
def launchers() -> list[psutil.Process]:
    """The launcher of this process and, of DeepSpeed's, what has started it; none for a plain ``python``.

    To be called early, because those that have ended are not found; they stay in the list then.
    """
    found = []
    for parent in psutil.Process().parents():
        try:
            command = " ".join(parent.cmdline())
        except psutil.Error:
            break
        if not _LAUNCHER.search(command):
            break
        found.append(parent)
    return found


def _has_lost_its_launcher() -> bool:
    """Whether torchrun or DeepSpeed's launcher has started this process, and had ended before anyone looked for it."""
    if os.getppid() != 1 or not any(name in os.environ for name in _OF_A_LAUNCHER):
        return False
    # In a container the first process may be a launcher of another kind.
    return "python" not in " ".join(psutil.Process(1).cmdline())


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

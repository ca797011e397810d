"""A terminal with somebody who types: a program runs in it, and the test reads what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 60.0
# The program gets the terminal as its own, so that Ctrl-C reaches it, whatever pytest was started with.
_IN_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# Bracketed paste is switched on when a line can be typed, after the terminal has left its own line editing.
_READY = "\x1b[?2004h"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[^\[]|\x1b(?:\[[0-9;?]*)?$")


class Typist:
    """Types into a terminal of 24 x 80, and waits for what is shown; made by ``typist``."""

    READY = "<ready>"

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process, self._terminal = process, terminal
        self._written = b""
        self._seen = 0

    @property
    def shown(self) -> str:
        """All that was shown so far, without colors and movements; ``READY`` stands where a line could be typed."""
        text = self._written.decode(errors="replace").replace(_READY, self.READY)
        return _ESCAPE.sub("", text)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> None:
        """Until it is shown, behind what was waited for before.

        Raises:
            AssertionError: if the program ends, or nothing of it comes in a minute.
        """
        until = time.monotonic() + _PATIENCE_S
        while (place := self.shown.find(text, self._seen)) < 0:
            if not self._read(until):
                raise AssertionError(f"{text!r} was not shown behind {self._seen}:\n{self.shown}")
        self._seen = place + len(text)

    def wait_for_the_end(self) -> int:
        """The exit code; everything that was shown is read."""
        until = time.monotonic() + _PATIENCE_S
        while self._read(until):
            pass
        return self.process.wait(max(1.0, until - time.monotonic()))

    def _read(self, until: float) -> bool:
        """Read a piece; whether there was one before the time was over, and before the program has closed its end."""
        ready, _, _ = select.select([self._terminal], [], [], max(0.0, until - time.monotonic()))
        try:
            piece = os.read(self._terminal, 1 << 16) if ready else b""
        except OSError:  # so Linux tells that nobody has the terminal open
            piece = b""
        self._written += piece
        return bool(piece)


@contextmanager
def typist(*command: str | Path, cwd: Path, **environment: str) -> Iterator[Typist]:
    """Start ``python`` with a command line in a terminal; it is killed at the end of the block.

    Args:
        environment: beside the process's own.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    arguments: Sequence[str] = [sys.executable, "-c", _IN_TERMINAL, *map(str, command)]
    settings = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "OMP_NUM_THREADS": "1", **environment}
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        arguments, cwd=cwd, env=kept | settings, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Typist(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)

"""The other processes of a run: when one dies, the rest say so in one line and end.

Nothing else would. A collective of NCCL waits for a dead process for half an hour, and one of gloo raises an error that
names no process; neither can be interrupted. So a thread of every process watches the others: those of its own machine
through the kernel, which tells at once and with the reason, and other machines by a sign of life that each gives in the
store of the process group.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import one_line
from utils import dist
from utils.cli.log import EXIT_BAD_INPUT, SAID_WHY

from .stop import ends_otherwise, exit_code

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

logger = logging.getLogger(__name__)

EXIT_LOST_PEER = 3
# A process that ended with one of these has said why, and the others were about to end, too.
_SAID_WHY = (EXIT_BAD_INPUT, EXIT_LOST_PEER)
_STOPPED_BY = {exit_code(number): number for number in (signal.SIGTERM, signal.SIGINT)}
_LOOK_SECONDS = 1.0
# Processes that end together do so within moments; one that is still at work after this has been left behind.
_TOGETHER_SECONDS = 8.0
_BEAT_SECONDS = 5.0
_SILENT_SECONDS = 45.0
# A launcher ends the others when the first of them ends, so the one that speaks ends last.
_SILENT_ONES_WAIT, _SPEAKER_WAITS = 1.5, 3.0
_ENDED = "pixellm/ended"
_GONE = ""  # the state of a process that the kernel no longer knows


@dataclass(frozen=True)
class Peer:
    """A process of the run.

    Attributes:
        machine: equal for processes that can see one another's ids.
    """

    rank: int
    pid: int
    host: str
    machine: str

    @classmethod
    def this_process(cls) -> Peer:
        return cls(dist.rank(), os.getpid(), socket.gethostname(), _machine())

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"


def _machine() -> str:
    """Host, its start, and the namespace of process ids; containers of one host have their own."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


class PeerWatch:
    """Around a whole run; watches from ``start`` to ``finish``, or to the first exception.

    A thread of it ends the process, with code 3, when another process was killed or ended by an error of its own.
    """

    def __init__(self) -> None:
        self._over, self._broken = threading.Event(), threading.Event()
        self._ends_process = threading.Event()
        self._watches = self._has_remote_peers = False
        self._whereabouts: Callable[[], str] = str

    def start(self, whereabouts: Callable[[], str]) -> None:
        """Called by every process once it has joined the process group.

        Args:
            whereabouts: one sentence that says where the run will go on.
        """
        if dist.world_size() == 1:
            return
        self._whereabouts = whereabouts
        self._oom_kills = _oom_kills()
        self._me = Peer.this_process()
        peers = dist.gather_objects(self._me)
        self._local = [peer for peer in peers if peer.machine == self._me.machine]
        others = [peer for peer in peers if peer.rank != self._me.rank]
        watches = [(self._watch_machine, [peer for peer in self._local if peer.rank != self._me.rank])]
        self._watches, self._has_remote_peers = True, len(self._local) < len(peers)
        if self._has_remote_peers:
            watches.append((self._watch_network, [peer for peer in others if peer.machine != self._me.machine]))
        for watch, watched in watches:
            threading.Thread(target=watch, args=[watched], name="peers", daemon=True).start()

    def finish(self) -> None:
        """Called by every process when its work is done; from here on each may end."""
        dist.barrier()
        self._over.set()

    def __enter__(self) -> PeerWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """What a collective raises when a process has died is left to the watching thread, which knows which one."""
        if error is not None and self._watches and _is_of_a_collective(error):
            self._broken.set()
            ends_otherwise.set()
            self._ends_process.wait(_TOGETHER_SECONDS + (2 * _SILENT_SECONDS if self._has_remote_peers else 0))
            while self._ends_process.is_set():  # it will not be long
                time.sleep(1)
        self._over.set()

    def _watch_machine(self, peers: list[Peer]) -> None:
        """Processes of this machine: the kernel wakes who waits for the end of one."""
        poll, alive = select.poll(), {}
        for peer in peers:
            try:
                handle = os.pidfd_open(peer.pid)
            except ProcessLookupError:
                self._judge(peer, None)
            else:
                alive[handle] = peer
                poll.register(handle, select.POLLIN)
        while not self._over.is_set():
            for handle, _ in poll.poll(_LOOK_SECONDS * 1000):
                code = _exit_code(alive[handle].pid)
                poll.unregister(handle)
                os.close(handle)
                self._judge(alive.pop(handle), code)

    def _judge(self, peer: Peer, code: int | None) -> None:
        """Decide whether the end of a process of this machine ends this one."""
        if code == 0:
            return
        if code is None or code > 0:
            deadline = time.monotonic() + _TOGETHER_SECONDS
            while time.monotonic() < deadline and not self._broken.is_set():
                if self._over.wait(0.1):
                    return
        if self._over.is_set():
            return
        if code is None and dist.is_noted(SAID_WHY):  # its launcher has taken the code
            code = EXIT_BAD_INPUT
        if code in _SAID_WHY:
            self._ends_process.set()
            os._exit(code)
        self._end(f"{peer} {describe_end(code, lacks_memory=_oom_kills() > self._oom_kills)}")

    def _watch_network(self, peers: list[Peer]) -> None:
        """Other machines: what they say in the store, and whether they say anything.

        The process of the lowest rank speaks for a machine and listens to the others'; the rest only read what it or
        anyone has found.
        """
        speakers = {peer.machine: peer for peer in reversed(peers)}
        speaks = self._me.rank == min(peer.rank for peer in self._local)
        try:
            store = _connect()
            heard = {machine: ("", time.monotonic()) for machine in speakers}
            next_beat = 0.0
            while not self._over.wait(_LOOK_SECONDS):
                if store.check([_ENDED]):
                    self._end(json.loads(store.get(_ENDED)), is_told=True)
                if not speaks or time.monotonic() < next_beat:
                    continue
                next_beat = time.monotonic() + _BEAT_SECONDS
                store.set(_beat(self._me.machine), str(next_beat))
                for machine, peer in speakers.items():
                    beat = store.get(_beat(machine)).decode() if store.check([_beat(machine)]) else ""
                    if beat != heard[machine][0]:
                        heard[machine] = beat, time.monotonic()
                    elif time.monotonic() - heard[machine][1] > _SILENT_SECONDS:
                        self._end(f"{peer} has given no sign of life for {_SILENT_SECONDS:.0f} s")
        except (RuntimeError, OSError):  # the store has gone, with process 0 or its launcher
            if not self._over.wait(_TOGETHER_SECONDS):
                self._end("the process group's store has gone, which process 0 or its launcher keeps; it has ended")

    def _end(self, what: str, *, is_told: bool = False) -> None:
        """Say it once on this machine, and end this process."""
        self._ends_process.set()
        ends_otherwise.set()
        survivors = [peer.rank for peer in self._local if peer == self._me or _is_alive(peer.pid)]
        if self._me.rank != min(survivors):
            time.sleep(_SILENT_ONES_WAIT)
            os._exit(EXIT_LOST_PEER)
        line = one_line(f"{what}, so the run ends. {self._whereabouts()}")
        sys.stderr.write(f"error: {line}\n")  # in one piece, as others may write
        sys.stderr.flush()
        if not is_told and self._has_remote_peers:
            with suppress(RuntimeError, OSError):
                _connect().set(_ENDED, json.dumps(what))
        time.sleep(_SPEAKER_WAITS)
        os._exit(EXIT_LOST_PEER)


def describe_end(code: int | None, *, lacks_memory: bool) -> str:
    """How a process has ended, in words.

    Args:
        code: as ``subprocess`` counts; None if unknown.
        lacks_memory: whether the kernel has ended any process for lack of memory meanwhile.
    """
    if code is None:
        return "has ended: it was killed, or by an error of its own, which it has printed"
    if code in _STOPPED_BY:
        return f"was ended by {_STOPPED_BY[code].name}"
    if code >= 0:
        return f"has ended with code {code}, by an error of its own, which it has printed"
    number = signal.Signals(-code)
    if number != signal.SIGKILL:
        return f"was ended by {number.name}"
    if lacks_memory:
        return (
            "was killed by SIGKILL (the kernel has ended a process for lack of memory in this time: lower --workers or "
            "--batch_size)"
        )
    return "was killed by SIGKILL (somebody did, or a system that is out of memory)"


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether it may come of a connection that has broken: from torch, which has no class for it, or in its words."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, (RuntimeError, OSError)) and (
        any("/torch/distributed/" in frame.filename for frame in frames)
        or re.search(r"gloo|nccl|connection", str(error), re.IGNORECASE) is not None
    )


def _beat(machine: str) -> str:
    return f"pixellm/beat/{machine}"


def _connect() -> Store:
    return dist.launcher_store(timedelta(seconds=_SILENT_SECONDS))


def _exit_code(pid: int) -> int | None:
    """Of a process that has ended and that its parent has not asked yet: as ``subprocess`` counts; None if unknown."""
    state, *_, status = _stat_of(pid)
    return os.waitstatus_to_exitcode(int(status)) if state == "Z" else None


def _is_alive(pid: int) -> bool:
    return _stat_of(pid)[0] not in ("Z", _GONE)


def _stat_of(pid: int) -> list[str]:
    """What the kernel says of a process, from its state to the status that waitpid would give; proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return [_GONE, "0"]


def _oom_kills() -> int:
    """Processes that the kernel has ended for lack of memory since the machine started; 0 where it does not count."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0

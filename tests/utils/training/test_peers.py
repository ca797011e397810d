"""How the death of a process is found out, told and followed by the end of the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from utils import dist
from utils.training import peers
from utils.training.peers import EXIT_LOST_PEER, Peer, PeerWatch, describe_end
from utils.training.stop import ends_otherwise

# Of threads that end where the process would.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
SIGNALS = (signal.SIGKILL, signal.SIGSEGV)


@dataclass
class Watched:
    """A watch in this process over one other process, and what it came to."""

    watch: PeerWatch
    codes: list[int] = field(default_factory=list)

    def ends_with(self, seconds: float = 5) -> int | None:
        """The code that it ended this process with; None if it did not."""
        end = time.monotonic() + seconds
        while not self.codes and time.monotonic() < end:
            time.sleep(0.01)
        return self.codes[0] if self.codes else None


@pytest.fixture
def watch(monkeypatch):
    """Starts a watch over another process; the end of this process is noted in place of taking place."""
    watches: list[PeerWatch] = []
    monkeypatch.setattr(peers, "_SILENT_ONES_WAIT", 0.0)
    monkeypatch.setattr(peers, "_SPEAKER_WAITS", 0.0)
    monkeypatch.setattr(peers, "_TOGETHER_SECONDS", 0.3)
    monkeypatch.setattr(peers, "_LOOK_SECONDS", 0.02)

    def start(other: Peer, *, machine: str = "here") -> Watched:
        monkeypatch.setattr(dist, "world_size", lambda: 2)
        monkeypatch.setattr(dist, "gather_objects", lambda mine: [mine, other])
        monkeypatch.setattr(peers, "_machine", lambda: machine)
        watched = Watched(PeerWatch())

        def leave(code: int) -> None:
            watched.codes.append(code)
            sys.exit()  # ends the thread

        monkeypatch.setattr(os, "_exit", leave)
        watches.append(watched.watch)
        watched.watch.start(lambda: "It goes on from here")
        return watched

    yield start
    for one in watches:
        one.__exit__(None, None, None)
    for thread in threading.enumerate():
        if thread.name == "peers":
            thread.join(5)
    ends_otherwise.clear()


def test_ends_are_told_in_words():
    assert describe_end(None, lacks_memory=False).startswith("has ended: it was killed, or by an error of its own")
    assert describe_end(1, lacks_memory=False) == "has ended with code 1, by an error of its own, which it has printed"
    assert describe_end(-signal.SIGSEGV, lacks_memory=True) == "was ended by SIGSEGV"
    assert describe_end(143, lacks_memory=False) == describe_end(-signal.SIGTERM, lacks_memory=False)


def test_lack_of_memory_is_named_where_the_kernel_says_so():
    sure = describe_end(-signal.SIGKILL, lacks_memory=True)
    assert sure.startswith("was killed by SIGKILL (the kernel has ended a process for lack of memory in this time: ")
    assert "--workers or --batch_size" in sure
    guess = describe_end(-signal.SIGKILL, lacks_memory=False)
    assert guess == "was killed by SIGKILL (somebody did, or a system that is out of memory)"


def test_a_process_that_runs_has_no_code():
    assert peers._exit_code(os.getpid()) is None
    assert peers._is_alive(os.getpid())


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("NCCL error: remote process exited"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("connection"), False),
        (FileNotFoundError(2, "No such file or directory", "photo.jpg"), False),
    ],
)
def test_errors_of_broken_connections_are_told_from_others(error, is_one):
    assert peers._is_of_a_collective(error) == is_one


def test_one_process_watches_nobody(monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 1)
    monkeypatch.setattr(dist, "gather_objects", lambda mine: pytest.fail("there is nobody"))
    with PeerWatch() as alone:
        alone.start(str)
        alone.finish()


def another(pid: int, *, machine: str = "here") -> Peer:
    return Peer(rank=1, pid=pid, host="node", machine=machine)


# Processes of this machine are real ones, which the kernel tells of.


@pytest.fixture
def process():
    """A small process that ends with what it reads; without input it waits."""
    program = "import sys; sys.exit(int(sys.stdin.readline()))"
    started = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True)
    yield started
    started.kill()
    started.communicate()


def end(process: subprocess.Popen[str], code: int) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{code}\n")
    process.stdin.flush()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_killed_process_is_named_at_once_with_the_signal(watch, process, capfd, number):
    watched = watch(another(process.pid))
    began = time.monotonic()
    process.send_signal(number)
    assert watched.ends_with() == EXIT_LOST_PEER
    assert time.monotonic() - began < 2
    (line,) = capfd.readouterr().err.splitlines()
    how = describe_end(-number, lacks_memory=False)
    assert line == f"error: process 1 (pid {process.pid} on node) {how}, so the run ends. It goes on from here"
    assert ends_otherwise.is_set(), "a launcher's SIGTERM is no news now"


@pytest.mark.slow
def test_a_process_that_is_done_ends_nobody(watch, process):
    watched = watch(another(process.pid))
    end(process, 0)
    assert watched.ends_with(seconds=1) is None


@pytest.mark.slow
@pytest.mark.parametrize("code", [2, EXIT_LOST_PEER])
def test_a_process_that_has_said_why_is_followed_in_silence(watch, process, capfd, code):
    watched = watch(another(process.pid))
    end(process, code)
    assert watched.ends_with() == code
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_process_that_ends_by_an_error_is_named_unless_this_one_ends_too(watch, process, capfd):
    watched = watch(another(process.pid))
    end(process, 1)
    assert watched.ends_with() == EXIT_LOST_PEER
    assert f"process 1 (pid {process.pid} on node) has ended with code 1" in capfd.readouterr().err


@pytest.mark.slow
def test_processes_that_end_by_the_same_error_keep_their_own_codes(watch, process, monkeypatch):
    monkeypatch.setattr(peers, "_TOGETHER_SECONDS", 10)
    watched = watch(another(process.pid))
    end(process, 1)
    time.sleep(0.3)
    watched.watch.__exit__(ValueError, ValueError("the same"), None)
    assert watched.ends_with(seconds=1) is None


@pytest.mark.slow
def test_what_a_collective_raises_is_left_to_the_one_who_knows(watch, process, capfd):
    """Its traceback would come before the line."""
    watched = watch(another(process.pid))
    process.kill()
    assert watched.ends_with() == EXIT_LOST_PEER
    began = time.monotonic()
    watched.watch._ends_process.clear()
    watched.watch.__exit__(RuntimeError, RuntimeError("Connection closed by peer"), None)
    assert time.monotonic() - began >= peers._TOGETHER_SECONDS, "it waits for the thread to end the process"


# Other machines are heard of in the store of the process group, which is a real one.


@pytest.fixture
def store(monkeypatch) -> TCPStore:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(peers, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(peers, "_SILENT_SECONDS", 0.5)
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))


def far_away() -> Peer:
    return another(1234, machine="there")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_another_machine_that_falls_silent_is_named(watch, store, capfd):
    watched = watch(far_away())
    for number in range(5):  # alive for longer than a silence may last
        store.set("pixellm/beat/there", str(number))
        assert watched.ends_with(seconds=0.2) is None
    assert watched.ends_with() == EXIT_LOST_PEER
    says = (
        "error: process 1 (pid 1234 on node) has given no sign of life for 0 s, so the run ends. It goes on from here\n"
    )
    assert capfd.readouterr().err == says


def test_this_machine_gives_signs_of_life(watch, store):
    watch(far_away())
    until(lambda: store.check(["pixellm/beat/here"]))
    first = store.get("pixellm/beat/here")
    until(lambda: store.get("pixellm/beat/here") != first)


def test_what_another_machine_has_found_is_told_here_too(watch, store, capfd):
    watched = watch(far_away())
    store.set("pixellm/ended", '"process 5 (pid 7 on node) was ended by SIGSEGV"')
    assert watched.ends_with() == EXIT_LOST_PEER
    says = "error: process 5 (pid 7 on node) was ended by SIGSEGV, so the run ends. It goes on from here\n"
    assert capfd.readouterr().err == says
    assert store.get("pixellm/ended").decode().endswith('SIGSEGV"'), "and not told anew"


def test_a_store_that_cannot_be_reached_ends_the_run(watch, monkeypatch, capfd):
    def refuse() -> None:
        raise RuntimeError("connection refused")

    monkeypatch.setattr(peers, "_connect", refuse)
    assert watch(far_away()).ends_with() == EXIT_LOST_PEER
    assert "the process group's store has gone" in capfd.readouterr().err

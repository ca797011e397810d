"""Signals to a process: what is noted, what they end, and with which code."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from utils.training import stop
from utils.training.stop import Stopped, StopSignals, exit_code, launchers

Signals = signal.Signals


@contextmanager
def signals() -> Iterator[StopSignals]:
    """Of a run that trains."""
    with StopSignals() as noted:
        noted.begin(lambda: "It goes on from here")
        yield noted


def send(number: int) -> None:
    """To this very process; Python runs the handler before the next line."""
    os.kill(os.getpid(), number)


@pytest.fixture
def exits(monkeypatch) -> list[int]:
    """Codes with which a process would have ended at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Whatever has started these tests."""
    monkeypatch.setattr(stop, "launchers", list)


def test_codes_are_those_of_shells():
    assert (exit_code(signal.SIGTERM), exit_code(signal.SIGINT)) == (143, 130)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_the_first_update_a_signal_stops_at_once_and_without_promises(caplog, number):
    with caplog.at_level(logging.INFO), StopSignals() as early:
        with pytest.raises(Stopped) as stopped:
            send(number)
        assert stopped.value.number == number
        send(signal.SIGTERM)  # a launcher's, while what was held is released
        with pytest.raises(Stopped):  # in case that a library has lost the first one
            early.begin(str)
    assert caplog.messages == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_told(caplog, number):
    with caplog.at_level(logging.INFO), signals() as noted:
        assert noted.received == 0
        send(number)
        assert noted.received == number
        wait_for(lambda: caplog.messages)
    assert caplog.messages[0].startswith(f"{Signals(number).name}: the run ends; an update in hand is finished and ")
    assert ("Ctrl-C again" in caplog.messages[0]) == (number == signal.SIGINT)


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with signals():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_ctrl_c_ends_the_process_at_once(exits):
    with signals():
        send(signal.SIGINT)
        assert exits == []
        send(signal.SIGINT)
        assert exits == [130]


def test_a_launchers_sigterm_after_ctrl_c_changes_nothing(exits):
    with signals() as noted:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert noted.received == signal.SIGINT
    assert exits == []


def test_where_nothing_would_be_lost_a_signal_stops():
    with signals() as noted:
        noted.check()
        send(signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            noted.check()
    assert stopped.value.number == signal.SIGTERM
    assert not isinstance(stopped.value, Exception), "no handler of errors takes it for one"


def test_what_does_not_end_is_given_up_with_the_checkpoint_named(exits, capsys, monkeypatch):
    monkeypatch.setattr(stop, "_PATIENCE_SECONDS", 0.2)
    with signals():
        send(signal.SIGTERM)
        wait_for(lambda: exits)
    assert exits == [143]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "SIGTERM: what was in hand has not ended in 0 s and is given up. It goes on from here"
    )


def test_a_save_is_not_given_up(exits, monkeypatch):
    monkeypatch.setattr(stop, "_PATIENCE_SECONDS", 0.1)
    with signals() as noted:
        with noted.saving():
            send(signal.SIGTERM)
            time.sleep(0.4)
            assert exits == []
        wait_for(lambda: exits)
    assert exits == [143]


def test_a_process_that_ends_for_another_reason_does_not_promise_to_save(caplog, monkeypatch):
    """A launcher answers the death of one process with SIGTERM to the others."""
    ends = threading.Event()
    ends.set()
    monkeypatch.setattr(stop, "ends_otherwise", ends)
    with caplog.at_level(logging.INFO), signals():
        send(signal.SIGTERM)
        time.sleep(0.2)
    assert caplog.messages == []


def test_the_end_of_the_launcher_counts_as_sigterm(caplog, monkeypatch):
    gone = psutil.Process()
    monkeypatch.setattr(stop, "launchers", lambda: [gone])
    monkeypatch.setattr(stop, "_runs", lambda process: process is not gone)
    monkeypatch.setattr(stop, "_LOOK_SECONDS", 0.01)
    with caplog.at_level(logging.INFO), signals() as noted:
        wait_for(lambda: noted.received)
    assert noted.received == signal.SIGTERM
    assert "the launcher has ended" in caplog.messages


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("/usr/bin/python -u -m deepspeed.launcher.launch --world_info=x train_ds.py", True),
        ("/venv/bin/python3.11 /venv/bin/deepspeed train_ds.py", True),
        ("python /venv/bin/torchrun --nproc_per_node=2 train_ds.py", True),
        ("python -m torch.distributed.run train_ds.py", True),
        ("python train_ds.py --deepspeed_config configs/deepspeed.json", False),
        ("bash run_deepspeed.sh", False),
    ],
)
def test_launchers_are_told_from_other_parents(monkeypatch, command, is_one):
    class Parent:
        def cmdline(self) -> list[str]:
            return command.split()

    parent = Parent()
    monkeypatch.setattr(psutil.Process, "parents", lambda self: [parent])
    launchers.cache_clear()
    try:
        assert launchers() == ([parent] if is_one else [])
    finally:
        launchers.cache_clear()


def wait_for(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)

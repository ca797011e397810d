"""The one way to write ``main``: parse, say which flags have no effect, run, and turn bad input into one line.

A command imports its work inside its function, so that ``--help`` and bad flags need not wait for torch.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from model.errors import InputError
from model.outputs import is_full
from utils import dist

from .args import Parsed, parse, parse_command
from .log import report_input_error, setup_logging

logger = logging.getLogger(__name__)

ConfigType = TypeVar("ConfigType")
INTERRUPTED = 130  # what a shell gives a process that Ctrl-C has ended
PIPE_CLOSED = 141  # and one whose reader has left, as ``head`` does


def run_command(
    config_type: type[ConfigType],
    function: Callable[[Parsed[ConfigType]], int | None],
    description: str | None,
    argv: Sequence[str] | None,
) -> int:
    """Run a command line; the body of a script's ``main``.

    Args:
        config_type: its flags.
        function: what it does; it may return an exit code.
        description: for ``--help``.
        argv: default is this process's.
    Returns:
        0, the function's exit code, or 2 after bad input, which is told in one line.
    """
    return _guard(lambda: _run(function, parse(config_type, argv, description or "")))


def run_commands(
    commands: Mapping[str, tuple[type, Callable[[Parsed[Any]], int | None]]],
    description: str | None,
    argv: Sequence[str] | None,
) -> int:
    """The same for ``<command> --flag ...``.

    Args:
        commands: flags and function of each command.
    """

    def run() -> int:
        types = {name: config_type for name, (config_type, _) in commands.items()}
        command, parsed = parse_command(types, argv, description or "")
        return _run(commands[command][1], parsed)

    return _guard(run)


def _run(function: Callable[[Parsed[Any]], int | None], parsed: Parsed[Any]) -> int:
    for notice in parsed.notices():
        logger.info("%s", notice)
    return function(parsed) or 0


def _guard(run: Callable[[], int]) -> int:
    setup_logging()
    try:
        code = run()
        sys.stdout.flush()
        return _end(code)
    except InputError as err:
        return _end(report_input_error(err))
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return _end(PIPE_CLOSED)
    except OSError as err:
        told = _system_error(err)
        if told is None:
            raise
        # In a group, one process may meet it alone.
        return _end(report_input_error(dist.StoppedHere(told) if dist.is_initialized() else InputError(told)))
    finally:
        dist.leave()


def _end(code: int) -> int:
    """The exit code; where other processes may have ended, or wait in a collective, this one ends with it at once.

    To leave the process group is to wait for all of them under NCCL.
    """
    if code and dist.is_initialized() and dist.world_size() > 1:
        exit_at_once(code)
    return code


@contextmanager
def ending_at_an_interrupt() -> Iterator[None]:
    """While libraries and a model are loaded, Ctrl-C ends the process: Python would lose it here and there in imports.

    Nothing may be written meanwhile.
    """
    before = signal.signal(signal.SIGINT, lambda *_: exit_at_once(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def exit_at_once(code: int) -> NoReturn:
    """End the process without waiting for anything; threads of torch that still run when Python ends can abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _nobody_reads() -> bool:
    """Whether nobody reads standard output; then it is turned aside, or Python would complain at its end."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _system_error(err: OSError) -> str | None:
    """What the system refused of a file that the user named; None for anything else."""
    if is_full(err):
        return f"there was no room to write ({err}); make room, and run it again"
    if err.filename is None:
        return None
    return f"{err.filename} cannot be used ({err.strerror}); check the path, and what you may read there"

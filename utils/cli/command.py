"""The one way to write ``main``: parse, say which flags have no effect, run, and turn bad input into one line."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from model.errors import InputError
from utils import dist

from .args import Parsed, parse, parse_command
from .log import report_input_error, setup_logging

logger = logging.getLogger(__name__)

ConfigType = TypeVar("ConfigType")


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
        return run()
    except InputError as err:
        return report_input_error(err)
    except OSError as err:
        if err.errno != errno.ENAMETOOLONG:
            raise
        # Asking whether there is such a file raises it, wherever a name comes from.
        return report_input_error(InputError(f"{err.filename} is longer than a path can be; correct it"))
    finally:
        dist.leave()

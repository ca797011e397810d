"""Run Python programs in processes that need not import the libraries again: forks of one that has imported them.

Half of what a short training takes is imports. So tests start it here unless they are about a launcher or a start.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from .launch import Finished, start

_IMPORTED = ("train_ds", "merge_lora_weights_and_save_hf_model", "utils.training.trainer", "deepspeed", "peft")
_LIMIT_S = 240.0
_LOOK_S = 0.02


class ForkServer:
    """Hands command lines to a process that forks for each of them; made by ``fork_server``."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def python(
        self,
        *command: str | Path,
        processes: int = 1,
        largest_file: dict[int, int] | None = None,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Finished:
        """What ``python`` would do with a command line, in one process or in several of one group.

        Args:
            command: a script, or ``-m`` or ``--module`` and the name of one, or ``-c`` and code; then its arguments.
            largest_file: number of a process -> bytes beyond which no file of it can grow.
            environment: variables that differ from those of the tests.
            cwd: the working directory; the repository without it.
        Returns:
            the exit code of the first that ended with one but 0, as DeepSpeed's launcher does, and what all wrote.
        Raises:
            AssertionError: if it takes minutes; all of its processes are killed.
        """
        request = {
            "command": [str(part) for part in command],
            "processes": processes,
            "largest_file": {str(rank): size for rank, size in (largest_file or {}).items()},
            "environment": environment or {},
            "cwd": str(cwd or "."),
            "folder": str(self._folder),
        }
        stdin, stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        print(json.dumps(request), file=stdin, flush=True)
        answer = json.loads(stdout.readline())
        texts = [
            "".join((self._folder / f"{rank}.{name}").read_text(encoding="utf-8") for rank in range(processes))
            for name in ("stdout", "stderr")
        ]
        finished = Finished(next(filter(None, answer["codes"]), 0), *texts)
        if not answer["in_time"]:
            raise AssertionError(f"{command} did not end in {_LIMIT_S:.0f} s:\n{finished.text}")
        return finished


@contextmanager
def fork_server(repository: Path) -> Iterator[ForkServer]:
    """Start the process that forks; it ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        process = start([sys.executable, "-m", "tests.support.fork_server"], cwd=repository)
        try:
            yield ForkServer(process, Path(folder))
        finally:
            process.communicate()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries write to it while they are imported
    for name in _IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = {_fork(request, rank, port) for rank in range(request["processes"])}
        print(json.dumps(_wait(children)), file=answers, flush=True)


def _wait(children: set[int]) -> dict[str, Any]:
    """Exit codes in the order in which the children end, and whether they ended by themselves."""
    codes, deadline, in_time = [], time.monotonic() + _LIMIT_S, True
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            children.remove(child)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1]:
                _signal(children, signal.SIGTERM)  # as the launchers do
        elif in_time and time.monotonic() > deadline:
            in_time = False
            _signal(children, signal.SIGKILL)
        elif not child:
            time.sleep(_LOOK_S)
    return {"codes": codes, "in_time": in_time}


def _signal(children: set[int], number: int) -> None:
    for child in children:
        os.kill(child, number)


def _fork(request: dict[str, Any], rank: int, port: int) -> int:
    if child := os.fork():
        return child
    code: Any = 1
    try:
        os.setsid()  # a signal to its group is not one to the server
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{request['folder']}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ |= request["environment"]
        os.chdir(request["cwd"])
        if request["processes"] > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["processes"])}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if size := request["largest_file"].get(str(rank)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        _run(request["command"])
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*cast(Any, sys.exc_info()))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code or 0) if not isinstance(code, str) else 1)
    raise AssertionError


def _run(command: list[str]) -> None:
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    elif command[0] in ("-m", "--module"):  # of python, of deepspeed
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _serve()

"""Run command lines in processes of their own that need not import the libraries again: forks of one that has them."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from .launch import Finished, start

_IMPORTED = ("train_ds", "merge_lora_weights_and_save_hf_model", "utils.training.trainer", "deepspeed", "peft")


class ForkServer:
    """Hands command lines to a process that forks for each of them; made by ``fork_server``."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(
        self, module: str, *arguments: str | Path, processes: int = 1, largest_file: dict[int, int] | None = None
    ) -> Finished:
        """The ``main`` of a module, in one process or in several of one group.

        Args:
            largest_file: number of a process -> bytes beyond which no file of it can grow.
        Returns:
            the exit code of the first that ended with one but 0, as DeepSpeed's launcher does, and what all wrote.
        """
        request = {
            "module": module,
            "arguments": [str(part) for part in arguments],
            "processes": processes,
            "largest_file": {str(rank): size for rank, size in (largest_file or {}).items()},
            "folder": str(self._folder),
        }
        stdin, stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        print(json.dumps(request), file=stdin, flush=True)
        codes = json.loads(stdout.readline())
        texts = [
            "".join((self._folder / f"{rank}.{name}").read_text(encoding="utf-8") for rank in range(processes))
            for name in ("stdout", "stderr")
        ]
        return Finished(next(filter(None, codes), 0), *texts)

    def train(self, *arguments: str | Path, **options: Any) -> Finished:
        """``train_ds.py``; options as of ``run``."""
        return self.run("train_ds", *arguments, **options)

    def merge(self, *arguments: str | Path) -> Finished:
        """``merge_lora_weights_and_save_hf_model.py``."""
        return self.run("merge_lora_weights_and_save_hf_model", *arguments)


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
        codes = []
        while children:
            child, status = os.wait()
            children.remove(child)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1]:
                for other in children:  # as the launchers do
                    os.kill(other, signal.SIGTERM)
        print(json.dumps(codes), file=answers, flush=True)


def _fork(request: dict[str, Any], rank: int, port: int) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{request['folder']}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if request["processes"] > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["processes"])}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if size := request["largest_file"].get(str(rank)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        code = importlib.import_module(request["module"]).main(request["arguments"]) or 0
    except BaseException:
        sys.excepthook(*cast(Any, sys.exc_info()))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError


if __name__ == "__main__":
    _serve()

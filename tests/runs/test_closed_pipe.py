"""A command whose output is cut off, as by ``| head``, ends quietly, and no other broken pipe is taken for that."""

from __future__ import annotations

import sys

from tests.support.launch import start

# Prints when its standard input ends, when nobody may read any more; with "other" it breaks another pipe first.
_PROGRAM = """
import os, sys
from utils.cli.command import run_command
from utils.cli.env import NoFlags

def work(parsed):
    sys.stdin.read()
    if sys.argv[1] == "other":
        reads, writes = os.pipe()
        os.close(reads)
        os.write(writes, b"x")
    print("many lines")

sys.exit(run_command(NoFlags, work, "", []))
"""


def run_program(repository, which: str, *, unread: bool) -> tuple[int, str]:
    process = start([sys.executable, "-c", _PROGRAM, which], cwd=repository)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    if unread:
        process.stdout.close()
    process.stdin.close()
    told = process.stderr.read()
    return process.wait(timeout=60), told


def test_output_that_nobody_reads_ends_a_command_quietly(repository):
    assert run_program(repository, "own", unread=True) == (141, "")


def test_another_broken_pipe_is_told(repository):
    code, told = run_program(repository, "other", unread=False)
    assert code == 1
    assert "BrokenPipeError" in told

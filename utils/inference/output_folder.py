"""An output folder that grows line by line, so that a command that was stopped goes on in it.

``settings.json`` says what it was begun with. ``predictions.jsonl`` has a line for each question that is answered; of
several processes, each but the first has a file of its own, ``predictions.1.jsonl`` and so on, until they are put
together. The lines of questions that were answered together are written at once. Each of them has ``batch``: what the
batch is called, and at last its number of lines. A batch whose lines were torn by a kill is answered again as a whole,
which gives the same numbers.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from model.errors import InputError
from model.files import is_file, parse_json, read_bytes, read_object, write_text
from model.outputs import check_output_file, name_aside, sync

SETTINGS, ANSWERS = "settings.json", "predictions.jsonl"

Key = TypeVar("Key", bound=Hashable)
Line = TypeVar("Line", bound=Mapping[str, Any])


@contextmanager
def hold(output: Path, *, flag: str, writer: str, overwrite: bool) -> Iterator[dict[str, Any] | None]:
    """Have the folder for the block: made or taken up. Bad input before the first line leaves none behind.

    Args:
        flag: that names the folder.
        writer: the command that writes such folders.
        overwrite: set an earlier one aside.
    Yields:
        what its settings say; None of a fresh one, whose settings are the caller's to write.
    Raises:
        InputError: if it cannot be written, holds something else, or another process is at work in it.
    """
    place = f"{flag} {output}"
    check_output_file(output / SETTINGS, flag=flag)
    holds = min((path.name for path in output.iterdir()), default="") if output.is_dir() else ""
    if holds and not is_file(output / SETTINGS):
        raise InputError(f"{place} holds {holds}, which {writer} did not write; give another folder")
    if holds and overwrite:
        with _alone(output, place):
            output.rename(name_aside(output))
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output, place):
        begun = read_object(output / SETTINGS, remedy=anew(flag)) if is_file(output / SETTINGS) else None
        try:
            yield begun
        except InputError:
            if begun is None:
                _remove_without_lines(output)
            raise


def anew(flag: str) -> str:
    """What helps where a folder cannot be gone on with."""
    return f"give another {flag}, or --overwrite to set it aside and start anew"


def append(output: Path, lines: Sequence[Mapping[str, Any]], *, rank: int) -> None:
    """Add the lines of a batch to those of a process; whatever happens afterwards, the disk holds them."""
    file = output / (f"predictions.{rank}.jsonl" if rank else ANSWERS)
    with file.open("ab") as content:
        content.write(_text(lines).encode("utf-8", "backslashreplace"))
    sync(file)


def read_lines(output: Path, *, remedy: str) -> Iterator[tuple[str, Any]]:
    """Place and content of every whole line, of all processes; one without its end was torn.

    Raises:
        InputError: if one is not JSON.
    """
    for file in _files(output):
        if is_file(file):
            for number, text in enumerate(read_bytes(file, remedy=remedy).split(b"\n")[:-1], start=1):
                where = f"{file}:{number}"
                yield where, parse_json(text, where=where, remedy=remedy)


def in_whole_batches(found: Mapping[Key, Line]) -> dict[Key, Line]:
    """The lines without those of torn batches; a line that names no batch stands for itself."""
    present = Counter(tuple(line["batch"]) for line in found.values() if "batch" in line)
    return {
        key: line
        for key, line in found.items()
        if "batch" not in line or present[tuple(line["batch"])] == line["batch"][-1]
    }


def put_together(output: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write all lines into the one file, in place of those of several processes."""
    write_text(output / ANSWERS, _text(lines))
    for file in _files(output)[1:]:
        file.unlink()


def _files(output: Path) -> list[Path]:
    return [output / ANSWERS, *sorted(output.glob("predictions.*.jsonl"))]


def _remove_without_lines(output: Path) -> None:
    files = [file for file in _files(output) if is_file(file)]
    if any(file.stat().st_size for file in files):
        return
    for file in (*files, output / SETTINGS):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        output.rmdir()


def _text(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


@contextmanager
def _alone(folder: Path, place: str) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            _lock(handle, place)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, place: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{place} is being written by another process; wait for its end, or give another") from None

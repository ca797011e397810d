"""The output folder of scripts/predict.py: what was asked for, and a line for each question that is done.

``settings.json`` says what a run was begun with. ``predictions.jsonl`` grows line by line; of several processes, each
but the first has a file of its own, ``predictions.1.jsonl`` and so on, until they are put together.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, parse_json, read_bytes, read_object, write_json, write_text
from model.outputs import check_output_file, name_aside, sync
from model.values import Schema, Text, shorten
from utils.masks.rle import RunLengths

from .questions import Question

SETTINGS, ANSWERS = "settings.json", "predictions.jsonl"
_ANEW = "give another --output, or --overwrite to set it aside and start anew"


_Pair = Annotated[list[int], Field(min_length=2, max_length=2)]


class FoundTarget(TypedDict):
    """An object of an answer: ``area`` in pixels, ``bbox`` [x, y, width, height]."""

    phrase: str
    score: float
    area: int
    bbox: Annotated[list[int], Field(min_length=4, max_length=4)]
    segmentation: RunLengths


class Prediction(TypedDict):
    """A line of predictions.jsonl: a question with its answer, or with the error in its place.

    ``size`` is [height, width] of the image; in ``numbered``, ``[0]`` stands for the first target. Files are named from
    the output folder. ``batch`` is the number of the first question that was answered together with this one, and how
    many there were: a batch whose lines were torn is answered again as a whole, which gives the same numbers.
    """

    number: int
    id: NotRequired[int | str]
    image: str
    prompt: str | list[Text]
    error: NotRequired[str]
    size: NotRequired[_Pair]
    text: NotRequired[str]
    numbered: NotRequired[str]
    reason: NotRequired[str | None]
    targets: NotRequired[list[FoundTarget]]
    overlay: NotRequired[str]
    thumbnail: NotRequired[str]
    masks: NotRequired[list[str]]
    batch: NotRequired[_Pair]


FOUND = tuple(FoundTarget.__annotations__)
_PREDICTION = Schema(Prediction)


def digest(questions: Sequence[Question]) -> str:
    """Of images, prompts and ids, in their order."""
    listed = [(question.image, question.prompt, question.id) for question in questions]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@contextmanager
def output_of(
    output: Path, settings: dict[str, Any], *, questions: Sequence[Question], inputs: Sequence[Path], overwrite: bool
) -> Iterator[None]:
    """Have the folder for the block: made or taken up, its finished lines together in ``predictions.jsonl``.

    Args:
        settings: all that the answers depend on.
        inputs: files and folders of the user; the folder may not lie in one of them, nor one of them in it.
        overwrite: set an earlier one aside.
    Raises:
        InputError: if the folder cannot be written, holds something else, was begun with other settings, or another
            process is at work in it.
    """
    place = f"--output {output}"
    check_output_file(output / SETTINGS, flag="--output")
    _check_apart(output, inputs, place)
    holds = _first_name(output)
    if holds and not is_file(output / SETTINGS):
        raise InputError(f"{place} holds {holds}, which scripts/predict.py did not write; give another folder")
    if holds and overwrite:
        with _alone(output, place):
            output.rename(name_aside(output))
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output, place):
        if is_file(output / SETTINGS):
            _check_same(read_object(output / SETTINGS, remedy=_ANEW), settings, place)
        else:
            write_json(output / SETTINGS, settings)
        gather(output, questions)
        yield


def gather(output: Path, questions: Sequence[Question]) -> list[Prediction]:
    """Put the lines of all processes together, in the order of the questions, and return them.

    Raises:
        InputError: if a line cannot be read, or is about another question.
    """
    found = _whole_batches(output, questions)
    predictions = [found[number] for number in sorted(found)]
    write_text(output / ANSWERS, _lines(predictions))
    for file in _files(output)[1:]:
        file.unlink()
    return predictions


def numbers_done(output: Path, questions: Sequence[Question]) -> set[int]:
    """Of the questions that are answered; those with an error are to be tried again.

    Raises:
        InputError: as ``gather``.
    """
    return {number for number, one in _whole_batches(output, questions).items() if "error" not in one}


def append(output: Path, predictions: Sequence[Prediction], *, rank: int) -> None:
    """Add the lines of a batch to those of a process; whatever happens afterwards, the disk holds them."""
    answered = [one for one in predictions if "error" not in one]
    for one in answered:
        one["batch"] = [answered[0]["number"], len(answered)]
    file = output / (f"predictions.{rank}.jsonl" if rank else ANSWERS)
    with file.open("ab") as lines:
        lines.write(_lines(predictions).encode("utf-8", "backslashreplace"))
    sync(file)


def _files(output: Path) -> list[Path]:
    return [output / ANSWERS, *sorted(output.glob("predictions.*.jsonl"))]


def _whole_batches(output: Path, questions: Sequence[Question]) -> dict[int, Prediction]:
    """The lines by their numbers; of two, the later one counts."""
    found = {one["number"]: one for file in _files(output) for one in _read(file, questions)}
    present = Counter(one["batch"][0] for one in found.values() if "batch" in one)
    return {
        number: one
        for number, one in found.items()
        if "batch" not in one or present[one["batch"][0]] == one["batch"][1]
    }


def _read(file: Path, questions: Sequence[Question]) -> Iterator[Prediction]:
    """The whole lines; one without its end was torn when its process was killed."""
    if not is_file(file):
        return
    for place, text in enumerate(read_bytes(file, remedy=_ANEW).split(b"\n")[:-1], start=1):
        where = f"{file}:{place}"
        one = _PREDICTION.check(parse_json(text, where=where, remedy=_ANEW), where=where, remedy=_ANEW)
        number = one["number"]
        if not 0 <= number < len(questions) or questions[number].image != one["image"]:
            raise InputError(f"{where} is about no question of --input (number {number}, {one['image']}); {_ANEW}")
        yield one


def _lines(predictions: Sequence[Prediction]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in predictions)


def _first_name(folder: Path) -> str:
    """Of what a folder holds; empty without anything."""
    return min((path.name for path in folder.iterdir()), default="") if folder.is_dir() else ""


def _check_apart(output: Path, inputs: Sequence[Path], place: str) -> None:
    target = output.resolve()
    for path in {path.resolve() for path in inputs}:
        if path.is_relative_to(target):
            raise InputError(f"{place} holds {path}, which this command reads; give another folder")
        if path.is_dir() and target.is_relative_to(path):
            raise InputError(f"{place} lies in --input {path}, whose images it would join; give another folder")


def _check_same(begun: dict[str, Any], settings: dict[str, Any], place: str) -> None:
    for name, value in settings.items():
        if begun.get(name) == value:
            continue
        if name in ("model_files", "questions"):
            what = "other files of the model" if name == "model_files" else "other images or questions"
            raise InputError(f"{place} was begun with {what}; {_ANEW}")
        raise InputError(
            f"{place} was begun with --{name} {shorten(begun.get(name))}, now it is {shorten(value)}; give it as it "
            f"was to go on, or {_ANEW}"
        )


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

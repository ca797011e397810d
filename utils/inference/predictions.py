"""The lines of scripts/predict.py in its output folder, one for each question that is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import write_json
from model.values import Schema, Text, shorten
from utils.masks.rle import RunLengths

from . import output_folder
from .output_folder import SETTINGS, anew, hold, in_whole_batches, put_together, read_lines
from .questions import Question

_FLAG = "--output"
_ANEW = anew(_FLAG)

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
    place = f"{_FLAG} {output}"
    _check_apart(output, inputs, place)
    with hold(output, flag=_FLAG, writer="scripts/predict.py", overwrite=overwrite) as begun:
        if begun is None:
            write_json(output / SETTINGS, settings)
        else:
            _check_same(begun, settings, place)
        gather(output, questions)
        yield


def gather(output: Path, questions: Sequence[Question]) -> list[Prediction]:
    """Put the lines of all processes together, in the order of the questions, and return them.

    Raises:
        InputError: if a line cannot be read, or is about another question.
    """
    found = _whole_batches(output, questions)
    predictions = [found[number] for number in sorted(found)]
    put_together(output, predictions)
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
    output_folder.append(output, predictions, rank=rank)


def _whole_batches(output: Path, questions: Sequence[Question]) -> dict[int, Prediction]:
    """The lines by their numbers; of two, the later one counts."""
    return in_whole_batches({one["number"]: one for one in _read(output, questions)})


def _read(output: Path, questions: Sequence[Question]) -> Iterator[Prediction]:
    for where, content in read_lines(output, remedy=_ANEW):
        one = _PREDICTION.check(content, where=where, remedy=_ANEW)
        number = one["number"]
        if not 0 <= number < len(questions) or questions[number].image != one["image"]:
            raise InputError(f"{where} is about no question of --input (number {number}, {one['image']}); {_ANEW}")
        yield one


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

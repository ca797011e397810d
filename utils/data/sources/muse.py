"""MUSE: reasoning questions about one or many objects.

Shapes: M masks of one sample, H, W size of its photo.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import read_json
from model.photo_file import check_size
from model.values import Schema, Text
from utils.data import prompts
from utils.data.family import Download, Family, ValSets, find_any
from utils.data.packed import Packed
from utils.data.paths import DatasetPaths
from utils.data.records import SEG_MARK, RawSample, Turn
from utils.masks.rasterize import decode_segmentation

from .coco_photos import COCO_TERMS, TRAIN_2017, VAL_2017

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test_less", "test_many")
_VAL_PREFIX = "MultiReasonSeg|"
# Composed answers call an object by its category this often, as in the release.
_CATEGORY_SHARE = 0.1


@dataclass(frozen=True)
class MuseTarget:
    """An object of an answer.

    Attributes:
        rephrased_name: what the answer calls it ("the cup on the left").
        category_name: its class. Each stands in for the other where the file lacks one.
    """

    segmentation: Any
    rephrased_name: str
    category_name: str


@dataclass(frozen=True)
class MuseQuestion:
    """A question, its objects, and the answer where the file has one, with a ``{seg}`` per object."""

    text: str
    targets: tuple[MuseTarget, ...]
    answer: str | None


@dataclass(frozen=True)
class MuseImage:
    """A record of the file; ``hw`` is (H, W) as recorded there, ``number`` its place."""

    number: int
    path: Path
    hw: tuple[int, int]
    questions: tuple[MuseQuestion, ...]


class _Annotation(TypedDict):
    segmentation: Any  # checked when it is drawn
    rephrased_name: NotRequired[Text | None]
    category_name: NotRequired[Text | None]


class _Record(TypedDict):
    """A record of the file."""

    height: int
    width: int
    file_name: NotRequired[Text | None]
    coco_url: NotRequired[Text | None]
    questions: list[Text]
    answers: list[list[_Annotation]]
    text_answers: NotRequired[list[Text | None] | None]


_RECORD = Schema(_Record)


class MuseTrain:
    """The train file: one sample is one photo with all its questions, each a conversation of its own.

    Records and questions that cannot be used are left out, and so are photos without any question; the log says how
    many.

    Args:
        expand: draw from more wordings of the request for masks.

    Attributes:
        left_out: the records and questions that cannot be used, and why.

    Raises:
        MissingData: if the file does not exist.
        InputError: if it is not in MUSE's format, or has no usable question.
    """

    name = "multi_reason_seg"

    def __init__(self, paths: DatasetPaths, *, expand: bool) -> None:
        self._expand = expand
        file = paths.muse("train", asked_by=f"--dataset {self.name}")
        records = _records(file)
        problems: list[str] = []
        images = list(_usable_images(records, paths, file=file, problems=problems))
        if not images:
            raise InputError(
                f"{file} has no usable question in {len(records)} records; download it again. The first: {problems[0]}"
            )
        if problems:
            _warn_of_left_out(file, problems, num_records=len(records), num_dropped=len(records) - len(images))
        _log_size(self.name, images)
        self._images = Packed(images, where=file)
        self.left_out = tuple(f"{file}: {problem}" for problem in problems)

    def __len__(self) -> int:
        return len(self._images)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        image = self._images[index]
        words = []
        for question in image.questions:
            text = prompts.long_question(rng, question.text, expand=self._expand)
            words.append((text, question.answer or _compose_answer(rng, question.targets)))
        return _sample(self.name, image, words)


class MuseVal:
    """A file for evaluation, in one fixed wording; nothing is left out and ``rng`` is not used.

    The answers name every true object: they are what teacher-forced validation feeds in.

    Raises:
        MissingData: if the file does not exist.
        InputError: if a record is not in MUSE's format.
    """

    def __init__(self, paths: DatasetPaths, *, split: str, name: str) -> None:
        self.name = name
        file = paths.muse(split, asked_by=f"--val_dataset {name}")
        records = _records(file)
        images = (_parse_record(record, number, paths, file=file) for number, record in enumerate(records))
        self._images = Packed(images, where=file)
        _log_size(name, self._images)

    def __len__(self) -> int:
        return len(self._images)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        image = self._images[index]
        words = []
        for question in image.questions:
            phrases = [target.rephrased_name for target in question.targets]
            words.append((prompts.muse_eval_question(question.text), prompts.muse_eval_answer(phrases)))
        return _sample(self.name, image, words)


def _usable_images(
    records: Sequence[Any], paths: DatasetPaths, *, file: Path, problems: list[str]
) -> Iterator[MuseImage]:
    """Photos with the questions that training can use; every other record and question is added to ``problems``."""
    for number, record in enumerate(records):
        try:
            image = _parse_record(record, number, paths, file=file)
        except InputError as err:
            problems.append(str(err).removeprefix(f"{file}: "))
            continue
        found = [find_problem(question) for question in image.questions]
        problems += [f"question {place} of record {number} {problem}" for place, problem in enumerate(found) if problem]
        usable = tuple(question for question, problem in zip(image.questions, found, strict=True) if not problem)
        if usable:
            yield replace(image, questions=usable)


def _warn_of_left_out(file: Path, problems: Sequence[str], *, num_records: int, num_dropped: int) -> None:
    logger.warning(
        "%s: %d records or questions left out, and %d of %d photos with them; the first: %s",
        file, len(problems), num_dropped, num_records, problems[0],
    )  # fmt: skip


def _log_size(name: str, images: Collection[MuseImage] | Packed[MuseImage]) -> None:
    count = sum(len(image.questions) for image in images)
    logger.info("%s: %d images, %d questions", name, len(images), count)


def find_problem(question: MuseQuestion) -> str | None:
    """Why training cannot use a question; None when it can."""
    if question.answer:
        marks = question.answer.count(SEG_MARK)
        if marks != len(question.targets):
            return f"has {marks} {SEG_MARK} in its answer for {len(question.targets)} objects"
    elif not question.targets:
        return "has neither objects nor a text answer"
    return None


def _compose_answer(rng: np.random.Generator, targets: Sequence[MuseTarget]) -> str:
    phrases = [target.category_name if rng.random() < _CATEGORY_SHARE else target.rephrased_name for target in targets]
    return prompts.answer(rng, phrases, named=True)


def _sample(name: str, image: MuseImage, words: Sequence[tuple[str, str]]) -> RawSample:
    """One conversation per question; every question has masks of its own."""
    sample_id = f"{name}/{image.number}/{image.path.name}"
    conversations, masks = [], []
    for question, (text, answer) in zip(image.questions, words, strict=True):
        first = len(masks)
        masks += [
            decode_segmentation(target.segmentation, image.hw, where=f"{sample_id} ({target.rephrased_name})")
            for target in question.targets
        ]
        names = prompts.as_names([target.rephrased_name for target in question.targets])
        targets = tuple(range(first, len(masks)))
        conversations.append((Turn(text, answer, targets, names=names, has_target=bool(targets)),))
    stacked = np.stack(masks) if masks else np.zeros((0, *image.hw), dtype=bool)
    return RawSample(sample_id, image.path, tuple(conversations), stacked)


def _records(file: Path) -> list[Any]:
    records = read_json(file)
    if not isinstance(records, list) or not records:
        raise InputError(f"{file} is not in MUSE's format: expected a list of records; download it again")
    return records


def _parse_record(record: Any, number: int, paths: DatasetPaths, *, file: Path) -> MuseImage:
    where = f"{file}: record {number}"
    content = _RECORD.check(
        record,
        where=f"{where} is not in MUSE's format",
        remedy="Correct or remove it",
    )
    check_size(content["height"], content["width"], where=where)
    questions, answers = content["questions"], content["answers"]
    text_answers = content.get("text_answers") or [None] * len(questions)
    if not len(questions) == len(answers) == len(text_answers):
        raise InputError(
            f"{where} has {len(questions)} questions, {len(answers)} answers and "
            f"{len(text_answers)} text_answers; expected as many of each. Correct or remove the record"
        )
    if not content.get("file_name") and not content.get("coco_url"):
        raise InputError(f"{where} has neither file_name nor coco_url; expected one of them. Correct or remove it")
    parsed = tuple(
        MuseQuestion(text, tuple(_parse_target(annotation, where=where) for annotation in objects), answer)
        for text, objects, answer in zip(questions, answers, text_answers, strict=True)
    )
    return MuseImage(number, paths.muse_image(content), (content["height"], content["width"]), parsed)


def _parse_target(annotation: _Annotation, *, where: str) -> MuseTarget:
    category, rephrased = annotation.get("category_name"), annotation.get("rephrased_name")
    name = category or rephrased
    if not name:
        raise InputError(f"{where} has an object without category_name and rephrased_name. Correct or remove it")
    return MuseTarget(annotation["segmentation"], rephrased or name, name)


def _downloads(split: str) -> tuple[Download, ...]:
    annotations = Download(
        f"MUSE {split}",
        (lambda paths, flag: paths.muse(split, asked_by=flag),),
        "github.com/MaverickRen/PixelLM, README",
        "see the source",
    )
    photos = Download(
        "COCO photos of MUSE (train2017 and val2017, or train2014)",
        (_muse_photos,),
        "cocodataset.org, train2017.zip and val2017.zip",
        COCO_TERMS,
        archives=(TRAIN_2017, VAL_2017),
    )
    return annotations, photos


def _muse_photos(paths: DatasetPaths, flag: str) -> Path:
    """Which photos a file needs is written in it; that one of the folders has some is a good sign."""
    folders = [paths.muse_image(record).parent for record in (
        {"coco_url": "train2017/any.jpg"}, {"coco_url": "val2017/any.jpg"}, {"file_name": "any.jpg"}
    )]  # fmt: skip
    for folder in folders:
        if next(folder.glob("*.jpg"), None) is not None:
            return folder / "*.jpg"
    return find_any(folders[0], "*.jpg", flag)


FAMILY = Family(
    "multi_reason_seg",
    lambda options, part: MuseTrain(options.paths, expand=options.use_expand_question_list),
    lambda part: _downloads("train"),
    val_sets=ValSets(
        lambda paths, name: MuseVal(paths, split=name.removeprefix(_VAL_PREFIX), name=name),
        lambda name: _downloads(name.removeprefix(_VAL_PREFIX)),
        names=tuple(f"{_VAL_PREFIX}{split}" for split in SPLITS),
    ),
)

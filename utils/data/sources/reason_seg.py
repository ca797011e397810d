"""ReasonSeg: a question or phrase about one region, with pixels that are ignored.

Shapes: H, W size of the photo.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, parse_json, read_bytes, read_json
from model.values import Schema, Text
from utils.data import prompts
from utils.data.coco_format import Records
from utils.data.family import Download, Family, ValSets, find_any
from utils.data.names import check_name
from utils.data.options import DataOptions
from utils.data.packed import Packed
from utils.data.paths import DatasetPaths
from utils.data.photos import photo_hw
from utils.data.records import SEG_MARK, RawSample, Turn
from utils.masks.rasterize import paint_polygons

logger = logging.getLogger(__name__)

_PREFIX = "ReasonSeg|"
# The release validates on the first text of a photo; the benchmark counts every text of the test split.
_EVERY_TEXT = "|every_text"
VAL_SETS = ("val", "test", f"test{_EVERY_TEXT}")


class _Shape(TypedDict):
    label: Text
    points: Any  # checked when it is drawn


class _Record(TypedDict):
    """The file beside a photo."""

    text: list[Text]
    is_sentence: bool
    shapes: list[_Shape]


class _Explanation(TypedDict):
    image: Text
    outputs: Text


_RECORD, _EXPLANATIONS_FILE = Schema(_Record), Schema(Records[_Explanation])


@dataclass(frozen=True)
class ReasonRecord:
    """What is said about a photo.

    Attributes:
        texts: several ways to ask for the one region.
        is_sentence: the texts are sentences, which the benchmark calls long queries; otherwise phrases, short ones.
        has_target: a region is annotated; ignored ones may still cover all of it.
        target: (H, W) bool.
        ignore: (H, W) bool, or None when every pixel counts.
    """

    texts: tuple[str, ...]
    is_sentence: bool
    has_target: bool
    target: np.ndarray
    ignore: np.ndarray | None


class ReasonSegSource:
    """What training and evaluation share: the photos of some splits, and what is said about each."""

    def __init__(self, photos: Sequence[Path], *, name: str) -> None:
        self.name = name
        self._photos = Packed(map(str, photos))

    def __len__(self) -> int:
        return len(self._photos)

    def _read(self, index: int) -> tuple[Path, str, ReasonRecord]:
        """A photo, its sample id and its annotation."""
        photo = Path(self._photos[index])
        sample_id = f"{self.name}/{photo.name}"
        return photo, sample_id, read_record(photo, sample_id=sample_id)


class ReasonSegTrain(ReasonSegSource):
    """One sample is one photo with some of its texts, each a conversation of its own.

    Where the dataset explains an answer, the explanation replaces the mask in a share ``explanatory`` of the samples;
    in half of the others it follows the mask, on request. This is the released rule.

    Args:
        splits: folders, joined with ``_``.
        num_questions: texts per photo, at most.
        explanatory: -1 needs no explanations and gives none.
        expand: draw from more wordings.

    Raises:
        MissingData: if a split or the explanations do not exist.
        InputError: if the explanations are not in ReasonSeg's format.
    """

    def __init__(
        self, paths: DatasetPaths, *, splits: str, num_questions: int, explanatory: float, expand: bool
    ) -> None:
        name = f"ReasonSeg|{splits}"
        asked_by = f"--dataset reason_seg with --reason_seg_data {name}"
        photos = [photo for split in splits.split("_") for photo in paths.reason_seg_images(split, asked_by=asked_by)]
        super().__init__(photos, name=name)
        self._num_questions, self._explanatory, self._expand = num_questions, explanatory, expand
        self._explanations = {} if explanatory == -1 else _read_explanations(paths, asked_by=asked_by)
        logger.info("%s: %d images, %d of them explained", self.name, len(photos), len(self._explanations))

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        photo, sample_id, record = self._read(index)
        explanation = self._explanations.get(photo.name)
        text_only = explanation is not None and rng.random() < self._explanatory
        explained = explanation is not None and not text_only and rng.random() < 0.5
        conversations = []
        for position in rng.permutation(len(record.texts))[: self._num_questions]:
            text = record.texts[position]
            if explanation is not None and text_only:
                conversations.append((Turn(text, explanation, ()),))
                continue
            if record.is_sentence:
                question = prompts.long_question(rng, text, expand=self._expand)
                answer = prompts.bare_answer(rng)
            else:
                question = prompts.short_question(rng, [text], expand=self._expand)
                answer = prompts.answer(rng, [text], named=False)
            if explained:
                question, answer = f"{question} {prompts.explanation_request(rng)}", f"{answer} {explanation}"
            conversations.append((Turn(question, answer, (0,)),))
        return RawSample(sample_id, photo, tuple(conversations), record.target[None], record.ignore)


class ReasonSegVal(ReasonSegSource):
    """A split for evaluation in the released wording: each text is a question of its own; ``rng`` is not used.

    Args:
        every_text: ask all texts of a photo; otherwise the first one, as the release does.
    """

    def __init__(self, paths: DatasetPaths, *, split: str, name: str, every_text: bool) -> None:
        super().__init__(paths.reason_seg_images(split, asked_by=f"--val_dataset {name}"), name=name)
        self._every_text = every_text
        logger.info("%s: %d images", name, len(self))

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        photo, sample_id, record = self._read(index)
        texts = record.texts if self._every_text else record.texts[:1]
        conversations = tuple((_ask(text, record),) for text in texts)
        return RawSample(sample_id, photo, conversations, record.target[None], record.ignore)


def _ask(text: str, record: ReasonRecord) -> Turn:
    wording = prompts.reasoning_eval_question if record.is_sentence else prompts.referring_eval_question
    return Turn(
        wording(text),
        prompts.referring_eval_answer(1),
        (0,),
        names=prompts.as_names([text]),
        kind="long" if record.is_sentence else "short",
        has_target=record.has_target,
    )


def read_record(photo: Path, *, sample_id: str) -> ReasonRecord:
    """Read the annotation beside a photo: UTF-8, or Windows-1252 as some of the originals are.

    Larger regions are painted first, so that smaller ones lie on top.
    """
    file = photo.with_suffix(".json")
    if not is_file(file):
        raise InputError(f"{sample_id}: {file} does not exist; download the split again", reason="annotation missing")
    where = f"{sample_id}: {file} is not in ReasonSeg's format"
    remedy = "Correct it, or download the split again"
    data = read_bytes(file, remedy=remedy, reason="bad record")
    content = parse_json(_decode(data, where=where), where=f"{sample_id}: {file}", remedy=remedy, reason="bad record")
    record = _RECORD.check(content, where=where, remedy=remedy)
    texts = tuple(text.strip() for text in record["text"])
    if not texts or not all(texts):
        raise InputError(f"{where}: it has no text, or an empty one. {remedy}", reason="bad record")
    shapes = [shape for shape in record["shapes"] if shape["label"].lower() != "flag"]
    values = [2 if "ignore" in shape["label"].lower() else 1 for shape in shapes]
    painted = paint_polygons([shape["points"] for shape in shapes], values, photo_hw(photo), where=where)
    if (painted == 2).all():
        raise InputError(f"{sample_id}: {file} marks every pixel as ignored; remove it", reason="no pixel counts")
    ignore = painted == 2 if (painted == 2).any() else None
    return ReasonRecord(texts, record["is_sentence"], 1 in values, painted == 1, ignore)


def _decode(data: bytes, *, where: str) -> str:
    for encoding in ("utf-8", "cp1252"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    raise InputError(
        f"{where}: its text is neither UTF-8 nor Windows-1252. Download the split again", reason="bad record"
    )


def _read_explanations(paths: DatasetPaths, *, asked_by: str) -> dict[str, str]:
    """File name of a photo -> why its answer is what it is."""
    file = paths.reason_seg_explanations(asked_by=f"{asked_by} and --explanatory")
    records = _EXPLANATIONS_FILE.check(
        read_json(file),
        where=f"{file} is not in ReasonSeg's format",
        remedy="Download it again, or give --explanatory=-1",
    )
    return {record["image"]: record["outputs"].replace(SEG_MARK, "").strip() for record in records}


def _download(split: str) -> Download:
    return Download(
        f"ReasonSeg {split}",
        (
            lambda paths, flag: find_any(paths.reason_seg_images(split, asked_by=flag)[0].parent, "*.jpg", flag),
            lambda paths, flag: find_any(paths.reason_seg_images(split, asked_by=flag)[0].parent, "*.json", flag),
        ),
        "github.com/dvlab-research/LISA, Dataset",
        "see the source",
        full={"train": 239, "val": 200, "test": 779}.get(split, 0),
    )


_EXPLANATIONS = Download(
    "ReasonSeg explanations",
    (lambda paths, flag: paths.reason_seg_explanations(asked_by=flag),),
    "github.com/dvlab-research/LISA, Dataset",
    "see the source",
)


def _splits(part: str) -> list[str]:
    """``ReasonSeg|train_val`` -> ``["train", "val"]``."""
    splits = part.removeprefix(_PREFIX)
    if not part.startswith(_PREFIX) or not splits:
        check_name(part, flag="--reason_seg_data", known=[f"{_PREFIX}train", f"{_PREFIX}train_val"])
    return splits.split("_")


def _open(options: DataOptions, part: str) -> ReasonSegTrain:
    return ReasonSegTrain(
        options.paths,
        splits="_".join(_splits(part)),
        num_questions=options.num_classes_per_sample,
        explanatory=options.explanatory,
        expand=options.use_expand_question_list,
    )


def _downloads(part: str) -> list[Download]:
    return [_download(split) for split in _splits(part)]


def _open_val(paths: DatasetPaths, name: str) -> ReasonSegVal:
    return ReasonSegVal(paths, split=_val_split(name), name=name, every_text=name.endswith(_EVERY_TEXT))


def _val_split(name: str) -> str:
    return name.removeprefix(_PREFIX).removesuffix(_EVERY_TEXT)


def _extra_downloads(options: DataOptions) -> dict[str, Download]:
    return {} if options.explanatory == -1 else {f"--explanatory {options.explanatory}": _EXPLANATIONS}


FAMILY = Family(
    "reason_seg",
    _open,
    _downloads,
    part_flag="reason_seg_data",
    extra_downloads=_extra_downloads,
    val_sets=ValSets(
        _open_val,
        lambda name: [_download(_val_split(name))],
        names=tuple(f"{_PREFIX}{name}" for name in VAL_SETS),
    ),
)

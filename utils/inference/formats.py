"""Masks of many answers as other programs read them: COCO's annotations, and labelme's polygons."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from model.files import write_json
from utils.masks.outlines import polygons
from utils.masks.rle import decode_rles

from .predictions import FoundTarget, Prediction
from .questions import Question

_UNNAMED = "object"  # an answer may name nothing, as in "It is", and every program wants a name
_LABELME_VERSION = "5.5.0"  # the keys of this version, which later ones read


def by_photo(
    predictions: Sequence[Prediction], questions: Sequence[Question]
) -> Iterator[tuple[Question, list[Prediction]]]:
    """The first question about each photo, and all answers about it."""
    for _, group in groupby(predictions, key=lambda one: questions[one["number"]].photo):
        answers = list(group)
        yield questions[answers[0]["number"]], answers


def write_coco(path: Path, predictions: Sequence[Prediction], questions: Sequence[Question]) -> None:
    """COCO's instances format; a phrase is a category, and every photo that could be read is listed.

    Raises:
        InputError: if the file cannot be written.
    """
    phrases = sorted({_name(target) for one in predictions for target in one.get("targets", [])})
    categories = {phrase: number for number, phrase in enumerate(phrases, start=1)}
    images, annotations = [], []
    for question, answers in by_photo(predictions, questions):
        read = [one for one in answers if "error" not in one]
        if not read:
            continue
        height, width = read[0].get("size", [0, 0])
        image_id = question.photo + 1
        images.append({"id": image_id, "file_name": question.image, "height": height, "width": width})
        for one in read:
            for target in one.get("targets", []):
                of_target = {"id": len(annotations) + 1, "image_id": image_id, "category_id": categories[_name(target)]}
                annotations.append({**of_target, "iscrowd": 0, **target, "prompt": one["prompt"]})
    named = [{"id": number, "name": phrase} for phrase, number in categories.items()]
    write_json(path, {"images": images, "annotations": annotations, "categories": named}, compact=True)


def write_labelme(folder: Path, predictions: Sequence[Prediction], questions: Sequence[Question]) -> None:
    """A file of labelme for each photo, which it finds from there; the pieces of a mask share a ``group_id``."""
    for question, answers in by_photo(predictions, questions):
        read = [one for one in answers if "error" not in one]
        if not read:
            continue
        height, width = read[0].get("size", [0, 0])
        found = [(one["prompt"], target) for one in read for target in one.get("targets", [])]
        shapes = [shape for number, (prompt, target) in enumerate(found) for shape in _shapes(number, prompt, target)]
        path = folder / f"{question.stem}.json"
        content = {
            "version": _LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.relpath(question.path.resolve(), path.parent.resolve()),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        path.write_bytes(text.encode("utf-8", "backslashreplace"))  # in place: the end of a run writes all of them anew


def _shapes(number: int, prompt: str | list[str], target: FoundTarget) -> list[dict[str, Any]]:
    """The outlines of a mask; an empty one has none."""
    height, width = target["segmentation"]["size"]
    (mask,) = decode_rles([dict(target["segmentation"])], hw=(height, width))
    return [
        {
            "label": _name(target),
            "points": [list(point) for point in zip(outline[::2], outline[1::2], strict=True)],
            "group_id": number,
            "description": prompt if isinstance(prompt, str) else "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for outline in (polygons(mask) if mask.any() else [])
    ]


def _name(target: FoundTarget) -> str:
    return target["phrase"] or _UNNAMED

"""Objects and their parts in COCO's format: PACO-LVIS and PASCAL-Part.

Shapes: M masks of one sample, H, W size of its photo.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from model.files import read_json
from model.values import Schema
from utils.data import prompts
from utils.data.coco_format import Annotation, Instances
from utils.data.packed import Packed
from utils.data.paths import DatasetPaths
from utils.data.question_plan import QuestionPlan
from utils.data.records import RawSample
from utils.masks.rasterize import decode_segmentation

logger = logging.getLogger(__name__)

_INSTANCES = Schema(Instances)


@dataclass(frozen=True)
class PartsImage:
    """A photo and everything that is marked in it.

    Attributes:
        hw: (H, W) as recorded.
        things: (object, part or "") -> segmentations of all that bear this name in the photo.
    """

    path: str
    hw: tuple[int, int]
    things: dict[tuple[str, str], list[Any]]


class Parts:
    """One sample is one photo with some of its classes. One mask per class, covering all its instances.

    Args:
        file: COCO annotations with categories ``object`` or ``object:part``.
        find_image: ``file_name`` -> path of the photo.

    Raises:
        InputError: if the file is not in COCO's format, or has no annotation.
    """

    def __init__(self, name: str, file: Path, find_image: Callable[[str], Path], *, plan: QuestionPlan) -> None:
        self.name = name
        self._plan = plan
        where = f"{file} is not in COCO's format"
        content = _INSTANCES.check(read_json(file), where=where, remedy="Correct it, or download it again")
        self._images = Packed(_group_by_image(content, find_image, where=where), where=file)
        if not len(self._images):
            raise InputError(f"{file} has no annotation of any of its images; download it again")
        logger.info("%s: %d images", name, len(self._images))

    def __len__(self) -> int:
        return len(self._images)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        image = self._images[index]
        path = Path(image.path)
        sample_id = f"{self.name}/{path.name}"
        things = list(image.things)
        phrases = [prompts.part_name(rng, whole, part) if part else whole for whole, part in things]
        drawn, conversations = self._plan.ask(rng, phrases)
        masks = [
            np.logical_or.reduce(
                [
                    decode_segmentation(segmentation, image.hw, where=f"{sample_id} ({phrases[position]})")
                    for segmentation in image.things[things[position]]
                ]
            )
            for position in drawn
        ]
        return RawSample(sample_id, path, conversations, np.stack(masks))


def paco_lvis(paths: DatasetPaths, *, asked_by: str, plan: QuestionPlan) -> Parts:
    return Parts("paco_lvis", paths.paco(asked_by=asked_by), paths.coco_image, plan=plan)


def pascal_part(paths: DatasetPaths, *, asked_by: str, plan: QuestionPlan) -> Parts:
    return Parts("pascal_part", paths.pascal_part(asked_by=asked_by), paths.pascal_part_image, plan=plan)


def split_category(name: str) -> tuple[str, str]:
    """``bicycle_(object):top`` -> ("bicycle", "top"); what follows ``_(`` only tells homonyms apart."""
    whole, _, part = name.strip().partition(":")
    return _plain(whole), _plain(part)


def _plain(name: str) -> str:
    return name.split("_(")[0].replace("_", " ").strip()


def _group_by_image(content: Instances, find_image: Callable[[str], Path], *, where: str) -> Iterator[PartsImage]:
    """Photos with annotations, in the order of their ids.

    Raises:
        InputError: if an annotation has an unknown category, or no segmentation.
    """
    names = {category["id"]: split_category(category["name"]) for category in content["categories"]}
    of_image: dict[Any, list[Annotation]] = {}
    for number, annotation in enumerate(content["annotations"]):
        if annotation["category_id"] not in names or "segmentation" not in annotation:
            raise InputError(
                f"{where}: annotations[{number}] has no segmentation, or category_id {annotation['category_id']!r}, "
                "which categories do not have. Correct it, or download it again"
            )
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    for info in sorted(content["images"], key=lambda info: (str(type(info["id"])), info["id"])):
        things: dict[tuple[str, str], list[Any]] = {}
        for annotation in of_image.get(info["id"], ()):
            things.setdefault(names[annotation["category_id"]], []).append(annotation.get("segmentation"))
        if things:
            yield PartsImage(str(find_image(info["file_name"])), (info["height"], info["width"]), things)


PARTS: Mapping[str, Callable[..., Parts]] = {"pascal_part": pascal_part, "paco_lvis": paco_lvis}

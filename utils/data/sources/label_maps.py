"""Datasets with one class per pixel: ADE20K, COCO-Stuff and Mapillary Vistas.

Shapes: M masks of one sample, H, W size of its photo.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import read_json
from model.values import Schema, Text
from utils.data.packed import Packed
from utils.data.paths import DatasetPaths
from utils.data.photos import read_label_map
from utils.data.question_plan import QuestionPlan
from utils.data.records import NOTHING_TO_ASK, RawSample

logger = logging.getLogger(__name__)

_ASSETS = Path(__file__).resolve().parents[1] / "assets"


class _Label(TypedDict):
    readable: Text


class _MapillaryConfig(TypedDict):
    labels: list[_Label]


_MAPILLARY = Schema(_MapillaryConfig)


class LabelMaps:
    """One sample is one photo with some of its classes. One mask per class, covering all its instances.

    Pixels without a class are never asked about, and are background for every other class, as in the release.

    Args:
        pairs: photo and label map of each sample.
        classes: value in the label map -> name; all other values have no class.

    Raises:
        InputError: on access, if a photo has no class to ask about, or its label map cannot be read.
    """

    def __init__(
        self, name: str, pairs: Sequence[tuple[Path, Path]], classes: Mapping[int, str], *, plan: QuestionPlan
    ) -> None:
        self.name = name
        self._pairs = Packed((str(photo), str(label)) for photo, label in pairs)
        self._classes = dict(classes)
        self._plan = plan
        logger.info("%s: %d images, %d classes", name, len(self._pairs), len(self._classes))

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        photo, label = map(Path, self._pairs[index])
        sample_id = f"{self.name}/{photo.name}"
        values = read_label_map(label)
        present = [int(value) for value in np.flatnonzero(np.bincount(values.ravel())) if value in self._classes]
        if not present:
            raise InputError(f"{sample_id}: {label} shows no class that has a name", reason=NOTHING_TO_ASK)
        drawn, conversations = self._plan.ask(rng, [self._classes[value] for value in present])
        masks = np.stack([values == present[position] for position in drawn])
        return RawSample(sample_id, photo, conversations, masks)


def ade20k(paths: DatasetPaths, *, asked_by: str, plan: QuestionPlan) -> LabelMaps:
    """ADE20K's scene-parsing edition; value 0 is "other"."""
    pairs = [(photo, paths.ade20k_label(photo)) for photo in paths.ade20k_images(asked_by=asked_by)]
    return LabelMaps("ade20k", pairs, dict(enumerate(class_names("ade20k.txt"), start=1)), plan=plan)


def cocostuff(paths: DatasetPaths, *, asked_by: str, plan: QuestionPlan) -> LabelMaps:
    """COCO-Stuff without the 28 classes whose names have a hyphen ("wall-brick"), as in the release."""
    labels = paths.cocostuff_labels(asked_by=asked_by)
    pairs = [(paths.coco_image(f"train2017/{label.stem}.jpg"), label) for label in labels]
    classes = {value: name for value, name in enumerate(class_names("cocostuff.txt")) if "-" not in name}
    return LabelMaps("cocostuff", pairs, classes, plan=plan)


def mapillary(paths: DatasetPaths, *, asked_by: str, plan: QuestionPlan) -> LabelMaps:
    """Mapillary Vistas 2.0; its configuration file has the class names."""
    file = paths.mapillary_config(asked_by=asked_by)
    pairs = [(paths.mapillary_image(label), label) for label in paths.mapillary_labels(asked_by=asked_by)]
    content = _MAPILLARY.check(
        read_json(file),
        where=f"{file} is not the configuration of Mapillary Vistas 2.0",
        remedy="Download the dataset again",
    )
    names = [label["readable"].strip().lower() for label in content["labels"]]
    classes = {value: name for value, name in enumerate(names) if name != "unlabeled"}
    return LabelMaps("mapillary", pairs, classes, plan=plan)


def class_names(asset: str) -> list[str]:
    return (_ASSETS / asset).read_text(encoding="utf-8").splitlines()


LABEL_MAPS: Mapping[str, Callable[..., LabelMaps]] = {"ade20k": ade20k, "cocostuff": cocostuff, "mapillary": mapillary}

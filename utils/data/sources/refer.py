"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg.

Shapes: M masks of one sample, H, W size of its photo.
"""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError

from .. import prompts
from ..masks import decode_segmentation
from ..paths import DatasetPaths, read_json
from ..records import RawSample, Turn

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "testA", "testB")


@dataclass(frozen=True)
class Expression:
    """What somebody calls an object."""

    text: str
    ann_id: int


@dataclass(frozen=True)
class ReferImage:
    """A photo with the expressions of one split.

    Attributes:
        hw: (H, W) as recorded in instances.json.
    """

    path: Path
    hw: tuple[int, int]
    expressions: tuple[Expression, ...]


class ReferSource:
    """What training and evaluation share: the index of one split, and its masks."""

    def __init__(self, paths: DatasetPaths, dataset: str, *, split: str, name: str, asked_by: str) -> None:
        self.name = name
        self._dataset = dataset
        self._images, self._segmentations = _read_split(paths, dataset, split=split, asked_by=asked_by)
        count = sum(len(image.expressions) for image in self._images)
        logger.info("%s: %d images, %d expressions", name, len(self._images), count)

    def __len__(self) -> int:
        return len(self._images)

    def _sample(
        self, image: ReferImage, groups: Sequence[Sequence[Expression]], words: Sequence[tuple[str, str]]
    ) -> RawSample:
        """One conversation per group of expressions; an object named twice has one mask."""
        ann_ids = list(dict.fromkeys(expression.ann_id for group in groups for expression in group))
        masks = [
            decode_segmentation(self._segmentations[ann_id], image.hw, where=f"{self._dataset} ann_id {ann_id}")
            for ann_id in ann_ids
        ]
        conversations = tuple(
            (Turn(question, answer, tuple(ann_ids.index(expression.ann_id) for expression in group)),)
            for group, (question, answer) in zip(groups, words, strict=True)
        )
        return RawSample(f"{self.name}/{image.path.name}", image.path, conversations, np.stack(masks))


class ReferTrain(ReferSource):
    """The train split: one sample is one photo with some of its expressions, dealt to a few questions.

    Args:
        num_classes_per_sample: questions per photo, at most.
        num_classes_per_question: expressions per question, at most.
        expand: draw from more question wordings.
    """

    def __init__(
        self,
        paths: DatasetPaths,
        dataset: str,
        *,
        num_classes_per_sample: int,
        num_classes_per_question: int,
        expand: bool,
    ) -> None:
        asked_by = f"--dataset refer_seg with --refer_seg_data {dataset}"
        super().__init__(paths, dataset, split="train", name=dataset, asked_by=asked_by)
        self._num_questions = num_classes_per_sample
        self._per_question = num_classes_per_question
        self._expand = expand

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        image = self._images[index]
        groups, words = [], []
        for chosen in deal(rng, len(image.expressions), num_groups=self._num_questions, group_size=self._per_question):
            group = [image.expressions[position] for position in chosen]
            phrases = [expression.text for expression in group]
            groups.append(group)
            question = prompts.short_question(rng, phrases, expand=self._expand)
            words.append((question, prompts.answer(rng, phrases, named=False)))
        return self._sample(image, groups, words)


class ReferVal(ReferSource):
    """A split for evaluation: every expression is a conversation in the released wording; ``rng`` is not used."""

    def __init__(self, paths: DatasetPaths, dataset: str, *, split: str, name: str) -> None:
        super().__init__(paths, dataset, split=split, name=name, asked_by=f"--val_dataset {name}")

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        image = self._images[index]
        words = [
            (prompts.referring_eval_question(expression.text), prompts.REFERRING_EVAL_ANSWER)
            for expression in image.expressions
        ]
        return self._sample(image, [[expression] for expression in image.expressions], words)


def deal(rng: np.random.Generator, count: int, *, num_groups: int, group_size: int) -> list[list[int]]:
    """Draw at most ``num_groups * group_size`` of ``count`` items and deal them to groups, as the release does.

    Every group gets one first; each further item goes to a random group that has room.
    """
    order = rng.permutation(count)[: num_groups * group_size].tolist()
    groups = [[item] for item in order[:num_groups]]
    for item in order[num_groups:]:
        with_room = [group for group in groups if len(group) < group_size]
        with_room[rng.integers(len(with_room))].append(item)
    return groups


def in_split(of_ref: str, wanted: str) -> bool:
    """The released rule: testA is any split with an A (testAB too), test is any test split."""
    if wanted in ("train", "val"):
        return of_ref == wanted
    return "test" in of_ref if wanted == "test" else wanted[-1] in of_ref


def _read_split(
    paths: DatasetPaths, dataset: str, *, split: str, asked_by: str
) -> tuple[list[ReferImage], dict[int, Any]]:
    """The photos of a split in the order of their ids, and the segmentation of every ann_id in it."""
    refs_file = paths.refer_refs(dataset, asked_by=asked_by)
    instances_file = paths.refer_instances(dataset, asked_by=asked_by)
    refs, instances = read_refs(refs_file), read_json(instances_file)
    try:
        chosen = [ref for ref in refs if in_split(ref["split"], split)]
        if not chosen:
            found = ", ".join(sorted({ref["split"] for ref in refs})) or "none"
            raise InputError(f"{asked_by}: {refs_file} has no expression of split {split}; its splits: {found}")
        infos = {info["id"]: info for info in instances["images"]}
        segmentations = {annotation["id"]: annotation["segmentation"] for annotation in instances["annotations"]}
        for ref in chosen:
            for table, key in ((segmentations, "ann_id"), (infos, "image_id")):
                if ref[key] not in table:
                    raise InputError(
                        f"{dataset}: ref_id {ref['ref_id']} names {key} {ref[key]}, which {instances_file} does not "
                        f"have; {refs_file.name} and instances.json belong together, download both again"
                    )
        images = _group_by_image(chosen, infos, paths, dataset)
        return images, {ref["ann_id"]: segmentations[ref["ann_id"]] for ref in chosen}
    except (AttributeError, KeyError, TypeError) as err:
        raise InputError(
            f"{refs_file} or {instances_file} is not in RefCOCO's format ({type(err).__name__}: {err}); "
            "download both again"
        ) from err


def _group_by_image(
    refs: Sequence[dict[str, Any]], infos: dict[int, dict[str, Any]], paths: DatasetPaths, dataset: str
) -> list[ReferImage]:
    expressions: dict[int, list[Expression]] = {}
    for ref in refs:
        for sentence in ref["sentences"]:
            expression = Expression(sentence["sent"].strip().lower(), ref["ann_id"])
            expressions.setdefault(ref["image_id"], []).append(expression)
    return [
        ReferImage(
            paths.refer_image(dataset, info["file_name"]), (info["height"], info["width"]), tuple(expressions[image_id])
        )
        for image_id, info in sorted(infos.items())
        if image_id in expressions
    ]


def read_refs(path: Path) -> list[dict[str, Any]]:
    """Read a refs file: a pickle of lists, dicts, strings and numbers, and nothing else.

    Raises:
        InputError: if it holds anything that could run code, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="utf-8").load()
    except Exception as err:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"{path} cannot be read ({type(err).__name__}: {err}); delete it and download it from the dataset's "
            "own site"
        ) from err


def _encode_latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes into protocol 2 for the bytes of a numpy scalar."""
    return text.encode("latin1")


_NUMPY_SCALAR = np.int64(0).__reduce__()[0]
_PLAIN_TYPES = {
    **{("builtins", plain.__name__): plain for plain in (bool, dict, float, frozenset, int, list, set, str, tuple)},
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "scalar"): _NUMPY_SCALAR,
    ("numpy._core.multiarray", "scalar"): _NUMPY_SCALAR,
    ("_codecs", "encode"): _encode_latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    """A pickle may name any function for the reader to call; this one knows plain types only."""

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as Python 2 called it
        if (module, name) not in _PLAIN_TYPES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name} but should hold plain data only")
        return _PLAIN_TYPES[module, name]

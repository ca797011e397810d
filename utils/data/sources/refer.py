"""Referring expressions: RefCLEF, RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO.

Shapes: M masks of one sample, H, W size of its photo.
"""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import read_json
from model.photo_file import check_size
from model.values import Schema, Text
from utils.data import prompts
from utils.data.coco_format import Identifier, Photo, Records
from utils.data.family import Download, Family, ValSets, find_any
from utils.data.packed import Packed
from utils.data.paths import REFER_SPLIT_BY, DatasetPaths, MissingData
from utils.data.question_plan import Conversations, QuestionPlan
from utils.data.records import RawSample, Turn
from utils.masks.rasterize import decode_segmentation

from .coco_photos import COCO_2014

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "testA", "testB")
_FURTHER_SPLITS = {"refclef": ("testC",)}
# Expressions per question of the multi-referring sets, in turn, as the release groups them.
MULTI_GROUP_SIZES = (6, 5, 4)


class _Sentence(TypedDict):
    sent: Text


class _Ref(TypedDict):
    """What refers to one thing in a photo; in gRefCOCO to several, or none."""

    ref_id: Identifier
    image_id: Identifier
    ann_id: Annotated[list[int], BeforeValidator(lambda ids: ids if isinstance(ids, list) else [ids])]
    split: Text
    sentences: list[_Sentence]


class _Annotation(TypedDict):
    id: Identifier
    segmentation: Any


class _Instances(TypedDict):
    images: Records[Photo]
    annotations: Records[_Annotation]


_REFS, _INSTANCES = Schema(Records[_Ref]), Schema(_Instances)
_AGAIN = "Download it again: both files belong together"


@dataclass(frozen=True)
class Expression:
    """A phrase that refers to something in a photo.

    Attributes:
        targets: indices into ``ReferImage.segmentations``: one; several in gRefCOCO, whose mask is their union; or
            none, when the photo shows nothing of the kind.
    """

    text: str
    targets: tuple[int, ...]


@dataclass(frozen=True)
class ReferImage:
    """A photo with the expressions of one split.

    Attributes:
        hw: (H, W) as recorded in instances.json.
        segmentations: of the objects that the expressions refer to, as stored there.
        ann_ids: of each segmentation, for messages.
    """

    path: str
    hw: tuple[int, int]
    expressions: tuple[Expression, ...]
    segmentations: tuple[Any, ...]
    ann_ids: tuple[int, ...]


class ReferSource:
    """What training and evaluation share: the index of one split, and its masks.

    Raises:
        MissingData: if a file does not exist, or has no expression of the split.
        InputError: if a file is damaged.
    """

    def __init__(self, paths: DatasetPaths, dataset: str, *, split: str, name: str, asked_by: str) -> None:
        self.name = name
        self._dataset = dataset
        images = _read_split(paths, dataset, split=split, asked_by=asked_by)
        self._images = Packed(images, where=f"{dataset}'s instances.json")
        logger.info("%s: %d images", name, len(self._images))

    def __len__(self) -> int:
        return len(self._images)

    def _sample(self, image: ReferImage, expressions: Sequence[Expression], conversations: Conversations) -> RawSample:
        """The masks of some expressions, in this order."""
        path = Path(image.path)
        sample_id = f"{self.name}/{path.name}"
        decoded = {
            target: decode_segmentation(
                image.segmentations[target],
                image.hw,
                where=f"{sample_id} ({self._dataset} ann_id {image.ann_ids[target]})",
            )
            for target in dict.fromkeys(target for expression in expressions for target in expression.targets)
        }
        check_size(*image.hw, where=sample_id)  # where nothing has been drawn, nothing has been checked
        masks = np.zeros((len(expressions), *image.hw), dtype=bool)
        for mask, expression in zip(masks, expressions, strict=True):
            for target in expression.targets:
                mask |= decoded[target]
        return RawSample(sample_id, path, conversations, masks)


class ReferTrain(ReferSource):
    """The train split: one sample is one photo with some of its expressions, dealt to a few questions."""

    def __init__(self, paths: DatasetPaths, dataset: str, *, plan: QuestionPlan) -> None:
        asked_by = f"--dataset refer_seg with --refer_seg_data {dataset}"
        super().__init__(paths, dataset, split="train", name=dataset, asked_by=asked_by)
        self._plan = plan

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        image = self._images[index]
        drawn, conversations = self._plan.ask(rng, [expression.text for expression in image.expressions])
        return self._sample(image, [image.expressions[position] for position in drawn], conversations)


class ReferVal(ReferSource):
    """A split for evaluation: all expressions of a photo in the released wording; ``rng`` is not used.

    Args:
        group_sizes: expressions per question, used in turn; the last question of a photo takes what is left.
    """

    def __init__(
        self, paths: DatasetPaths, dataset: str, *, split: str, name: str, group_sizes: Sequence[int] = (1,)
    ) -> None:
        super().__init__(paths, dataset, split=split, name=name, asked_by=f"--val_dataset {name}")
        self._group_sizes = tuple(group_sizes)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        image = self._images[index]
        conversations = []
        sizes, first = cycle(self._group_sizes), 0
        while first < len(image.expressions):
            group = image.expressions[first : first + next(sizes)]
            targets = tuple(range(first, first + len(group)))
            conversations.append((_ask(group, targets, is_generalized=self._dataset == "grefcoco"),))
            first += len(group)
        return self._sample(image, image.expressions, tuple(conversations))


def _ask(group: Sequence[Expression], targets: tuple[int, ...], *, is_generalized: bool) -> Turn:
    """A question for the masks of some expressions; the text of each is its name."""
    texts = [expression.text for expression in group]
    num_objects = sum(len(expression.targets) for expression in group)
    kind = ""
    if is_generalized and num_objects:  # the mask of an expression is a union, which does not say of how many
        kind = "one-object" if num_objects == 1 else "several-objects"
    return Turn(
        prompts.referring_eval_question(prompts.join_words(texts)),
        prompts.referring_eval_answer(len(group)),
        targets,
        names=prompts.as_names(texts),
        kind=kind,
        has_target=num_objects > 0,
    )


def in_split(of_ref: str, wanted: str) -> bool:
    """The released rule: testA is any split with an A (testAB too), test is any test split."""
    if wanted in ("train", "val"):
        return of_ref == wanted
    return "test" in of_ref if wanted == "test" else wanted[-1] in of_ref


def _read_split(paths: DatasetPaths, dataset: str, *, split: str, asked_by: str) -> list[ReferImage]:
    """The photos of a split with their expressions and masks, in the order of their ids."""
    refs_file = paths.refer_refs(dataset, asked_by=asked_by)
    instances_file = paths.refer_instances(dataset, asked_by=asked_by)
    refs = _REFS.check(
        read_refs(refs_file) if refs_file.suffix == ".p" else read_json(refs_file),
        where=f"{refs_file} is not in RefCOCO's format",
        remedy=_AGAIN,
    )
    where = f"{instances_file} is not in RefCOCO's format"
    instances = _INSTANCES.check(read_json(instances_file), where=where, remedy=_AGAIN)
    chosen = [ref for ref in refs if in_split(ref["split"], split)]
    if not chosen:
        found = ", ".join(sorted({ref["split"] for ref in refs})) or "none"
        problem = f"has no expression of split {split} (its splits: {found})"
        raise MissingData(refs_file, problem, asked_by, advice="Download it again, or name another split")
    infos = {info["id"]: info for info in instances["images"]}
    segmentations = {annotation["id"]: annotation["segmentation"] for annotation in instances["annotations"]}
    of_image: dict[int, list[_Ref]] = {}
    for ref in chosen:
        missing = [f"ann_id {ann_id}" for ann_id in _ann_ids(ref, dataset) if ann_id not in segmentations]
        missing += [f"image_id {ref['image_id']}"] if ref["image_id"] not in infos else []
        if missing:
            raise InputError(
                f"{dataset}: ref_id {ref['ref_id']} names {missing[0]}, which {instances_file} does not "
                f"have; {refs_file.name} and instances.json belong together, download both again"
            )
        of_image.setdefault(ref["image_id"], []).append(ref)
    return [
        _make_image(infos[image_id], of_image[image_id], segmentations, paths, dataset) for image_id in sorted(of_image)
    ]


def _ann_ids(ref: _Ref, dataset: str) -> list[int]:
    """The annotations that a ref refers to; in gRefCOCO -1 means none."""
    return [ann_id for ann_id in ref["ann_id"] if dataset != "grefcoco" or ann_id != -1]


def _make_image(
    info: Photo,
    refs: Sequence[_Ref],
    segmentations: dict[int, Any],
    paths: DatasetPaths,
    dataset: str,
) -> ReferImage:
    ann_ids = list(dict.fromkeys(ann_id for ref in refs for ann_id in _ann_ids(ref, dataset)))
    expressions = tuple(
        Expression(sentence["sent"].strip().lower(), tuple(map(ann_ids.index, _ann_ids(ref, dataset))))
        for ref in refs
        for sentence in ref["sentences"]
    )
    return ReferImage(
        str(paths.refer_image(dataset, info["file_name"])),
        (info["height"], info["width"]),
        expressions,
        tuple(segmentations[ann_id] for ann_id in ann_ids),
        tuple(ann_ids),
    )


def read_refs(path: Path) -> Any:
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


_NUMPY_SCALAR: Any = np.int64(0).__reduce__()[0]  # numpy's stubs call it text


def _plain_number(dtype: np.dtype, data: bytes) -> int | float | bool:
    return _NUMPY_SCALAR(dtype, data).item()


_PLAIN_TYPES = {
    **{("builtins", plain.__name__): plain for plain in (bool, dict, float, frozenset, int, list, set, str, tuple)},
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "scalar"): _plain_number,
    ("numpy._core.multiarray", "scalar"): _plain_number,
    ("_codecs", "encode"): _encode_latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    """Loads plain types only: a pickle can make its reader call any function."""

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as Python 2 called it
        if (module, name) not in _PLAIN_TYPES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name} but should hold plain data only")
        return _PLAIN_TYPES[module, name]


_REFER_REPOSITORY = "github.com/lichengunc/refer (its own host is gone; web.archive.org has the files)"


def _downloads(dataset: str) -> tuple[Download, ...]:
    is_generalized = dataset == "grefcoco"
    annotations = Download(
        f"{dataset} annotations",
        (
            lambda paths, flag: paths.refer_refs(dataset, asked_by=flag),
            lambda paths, flag: paths.refer_instances(dataset, asked_by=flag),
        ),
        "github.com/henghuiding/gRefCOCO" if is_generalized else _REFER_REPOSITORY,
        "see the source" if is_generalized else "Apache-2.0, says the repository",
    )
    photos = COCO_2014
    if dataset == "refclef":
        photos = Download(
            "SAIAPR TC-12 photos",
            (lambda paths, flag: find_any(paths.refer_image("refclef", "any.jpg").parent, "**/*.jpg", flag),),
            _REFER_REPOSITORY,
            "see imageclef.org/SIAPRdata",
        )
    return annotations, photos


def _open_val(paths: DatasetPaths, name: str) -> ReferVal:
    dataset, _, split = name.split("|")
    sizes = MULTI_GROUP_SIZES if dataset.startswith("multi") else (1,)
    return ReferVal(paths, dataset.removeprefix("multi"), split=split, name=name, group_sizes=sizes)


_VAL_NAMES = tuple(
    f"{name}|{by}|{split}" for name, by in REFER_SPLIT_BY.items() for split in (*SPLITS, *_FURTHER_SPLITS.get(name, ()))
)

FAMILY = Family(
    "refer_seg",
    lambda options, part: ReferTrain(options.paths, part, plan=options.question_plan),
    _downloads,
    part_flag="refer_seg_data",
    known_parts=tuple(REFER_SPLIT_BY),
    val_sets=ValSets(
        _open_val,
        lambda name: _downloads(name.split("|")[0].removeprefix("multi")),
        names=(*_VAL_NAMES, *(f"multi{name}" for name in _VAL_NAMES)),
    ),
)

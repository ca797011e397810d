"""Write the toy world as a ``--dataset_dir``: MUSE records, RefCOCO references, and the pictures of both.

A picture and what is asked about it depend only on (seed, split, index): a larger world begins with the
pictures of a smaller one.
"""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from model.drawing import write_image
from model.files import write_json
from utils.data.records import Turn
from utils.masks.outlines import polygons, uncompressed_rle

from .parallel import OrderedMap
from .questions import MAX_TARGETS, ask_questions, referring_phrases, short_name
from .scene import DEFAULT_STYLE, Scene, SceneStyle, ToyObject, draw_scene
from .shapes import SHAPES

logger = logging.getLogger(__name__)

JPEG_QUALITY = 92
IMAGES = Path("refer_seg/images/mscoco/images")
# Number of targets -> how often to ask for so many, where a scene offers it.
_MIXED_COUNTS = {1: 0.2, 2: 0.3, 3: 0.22, 4: 0.15, 5: 0.08, MAX_TARGETS: 0.05}
_FEW_COUNTS = {1: 0.34, 2: 0.38, 3: 0.28}
_MANY_COUNTS = {4: 0.5, 5: 0.33, MAX_TARGETS: 0.17}
_CROWDED_STYLE = SceneStyle(num_objects=(4, 6), num_colors=(4, 6), num_shapes=(2, 3), num_textures=(1, 3))

# As in the original set: every sixth MUSE training record has no text_answers, every third names a train2014
# file.
_NO_TEXT_EVERY, _TRAIN2014_EVERY = 6, 3
# Every fifth MUSE annotation is a list of polygons, the others are uncompressed run-length codes.
_POLYGON_EVERY = 5
_MAX_REFS_PER_IMAGE = 3
_MIN_SENTENCES, _MAX_SENTENCES = 2, 3
# Out of every ten RefCOCO pictures.
_REFCOCO_SPLITS = ("train",) * 7 + ("val", "testA", "testB")


@dataclass(frozen=True)
class MuseSplit:
    """One MUSE file.

    Attributes:
        stream: number of its random stream; image ids start after ``first_id``.
        style: of its scenes; one in ``crowded_every`` is crowded instead, if that is not 0.
        count_weights: number of targets -> how often a question has so many.
        min_questions, max_questions: per picture.
    """

    name: str
    stream: int
    first_id: int
    style: SceneStyle
    count_weights: dict[int, float]
    min_questions: int = 3
    max_questions: int = 5
    crowded_every: int = 0


MUSE_SPLITS = (
    MuseSplit("train", 0, 0, DEFAULT_STYLE, _MIXED_COUNTS, crowded_every=3),
    MuseSplit("val", 1, 100_000, DEFAULT_STYLE, _MIXED_COUNTS, crowded_every=3),
    MuseSplit("test_less", 2, 200_000, DEFAULT_STYLE, _FEW_COUNTS),
    MuseSplit("test_many", 3, 300_000, _CROWDED_STYLE, _MANY_COUNTS, min_questions=2),
)
_REFCOCO_STREAM, _REFCOCO_FIRST_ID = 4, 400_000


def draw_muse_item(split: MuseSplit, index: int, *, seed: int) -> tuple[Scene, list[Turn]]:
    """Scene number ``index`` of a split, and the questions about it."""
    rng = np.random.default_rng([seed, split.stream, index])
    crowded = split.crowded_every > 0 and index % split.crowded_every == 0
    style = _CROWDED_STYLE if crowded else split.style
    while True:
        scene = draw_scene(rng, style)
        wanted = int(rng.integers(split.min_questions, split.max_questions + 1))
        turns = ask_questions(scene, rng, num_questions=wanted, count_weights=split.count_weights)
        if len(turns) >= split.min_questions:
            return scene, turns


def _annotation(item: ToyObject, *, annotation_id: int, image_id: int, as_polygons: bool) -> dict:
    ys, xs = np.nonzero(item.mask)
    x, y = int(xs.min()), int(ys.min())
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": SHAPES.index(item.shape) + 1,
        "bbox": [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
        "area": item.area,
        "iscrowd": 0,
        "segmentation": polygons(item.mask) if as_polygons else uncompressed_rle(item.mask),
    }


def _write_muse_item(index: int, *, root: Path, split: MuseSplit, seed: int) -> dict:
    """Write one picture and return its MUSE record."""
    scene, turns = draw_muse_item(split, index, seed=seed)
    image_id = split.first_id + index + 1
    is_train = split.name == "train"
    if is_train and index % _TRAIN2014_EVERY == 0:
        folder, name = "train2014", f"COCO_train2014_{image_id:012d}.jpg"
        where = {"file_name": name}
    else:
        folder, name = "train2017" if is_train else "val2017", f"{image_id:012d}.jpg"
        where = {"coco_url": f"toy-world/{folder}/{name}"}
    write_image(root / IMAGES / folder / name, scene.image, jpeg_quality=JPEG_QUALITY)
    annotations = []
    for offset, item in enumerate(scene.objects):
        number = image_id * 10 + offset
        as_polygons = number % _POLYGON_EVERY == 0
        annotation = _annotation(item, annotation_id=number, image_id=image_id, as_polygons=as_polygons)
        annotations.append({**annotation, "category_name": item.shape, "rephrased_name": short_name(item)})
    height, width = scene.image.shape[:2]
    record = {
        **where,
        "height": height,
        "width": width,
        "id": image_id,
        "ann_list": annotations,
        "questions": [turn.question for turn in turns],
        "answers": [[annotations[i] for i in turn.targets] for turn in turns],
    }
    if not is_train or index % _NO_TEXT_EVERY != _NO_TEXT_EVERY - 1:
        record["text_answers"] = [turn.answer for turn in turns]
    return record


def _write_muse_split(root: Path, split: MuseSplit, count: int, *, seed: int, ordered_map: OrderedMap) -> None:
    work = partial(_write_muse_item, root=root, split=split, seed=seed)
    records = list(ordered_map(work, range(count)))
    write_json(root / "muse" / f"muse_{split.name}.json", records, compact=True)
    targets = [len(answer) for record in records for answer in record["answers"]]
    mean = sum(targets) / max(len(targets), 1)
    logger.info("MUSE %s: %d images, %d questions, %.2f targets each", split.name, count, len(targets), mean)


def _reference(annotation: dict, phrases: list[str], *, file_name: str, split: str) -> dict:
    """One entry of refs(unc).p: an annotation with the phrases that mean it."""
    number = annotation["id"]
    sentences = [
        {"sent_id": number * 10 + i, "sent": phrase, "raw": phrase, "tokens": phrase.split()}
        for i, phrase in enumerate(phrases)
    ]
    return {
        "ref_id": number,
        "ann_id": number,
        "category_id": annotation["category_id"],
        "image_id": annotation["image_id"],
        "file_name": file_name,
        "split": split,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _write_refcoco_item(index: int, *, root: Path, seed: int) -> tuple[dict, list[dict], list[dict]]:
    """Write one picture and return its image entry, annotations and references."""
    rng = np.random.default_rng([seed, _REFCOCO_STREAM, index])
    scene = draw_scene(rng)
    image_id = _REFCOCO_FIRST_ID + index + 1
    stem = f"COCO_train2014_{image_id:012d}"
    write_image(root / IMAGES / "train2014" / f"{stem}.jpg", scene.image, jpeg_quality=JPEG_QUALITY)
    height, width = scene.image.shape[:2]
    annotations = [
        _annotation(item, annotation_id=image_id * 10 + offset, image_id=image_id, as_polygons=True)
        for offset, item in enumerate(scene.objects)
    ]
    split = _REFCOCO_SPLITS[index % len(_REFCOCO_SPLITS)]
    refs = []
    for offset in sorted(rng.permutation(len(scene.objects))[:_MAX_REFS_PER_IMAGE].tolist()):
        phrases = referring_phrases(scene, offset)
        if len(phrases) >= _MIN_SENTENCES:
            count = rng.integers(_MIN_SENTENCES, _MAX_SENTENCES + 1)
            chosen = [phrases[i] for i in rng.permutation(len(phrases))[:count]]
            name = f"{stem}_{offset}.jpg"
            refs.append(_reference(annotations[offset], chosen, file_name=name, split=split))
    return {"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width}, annotations, refs


def _write_refcoco(root: Path, count: int, *, seed: int, ordered_map: OrderedMap) -> None:
    """Write refs(unc).p, a protocol-2 pickle of lists, dicts, strings and integers, and instances.json."""
    images, annotations, refs = [], [], []
    work = partial(_write_refcoco_item, root=root, seed=seed)
    for image, its_annotations, its_refs in ordered_map(work, range(count)):
        images.append(image)
        annotations += its_annotations
        refs += its_refs
    folder = root / "refer_seg" / "refcoco"
    categories = [{"id": i + 1, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "instances.json", {"info": {}, "licenses": [], **instances}, compact=True)
    # A pickle says which strings are one object, which depends on who made them; JSON forgets that.
    (folder / "refs(unc).p").write_bytes(pickle.dumps(json.loads(json.dumps(refs)), protocol=2))
    sentences = sum(len(ref["sentences"]) for ref in refs)
    logger.info("RefCOCO: %d images, %d references, %d sentences", count, len(refs), sentences)


def write_dataset(
    root: Path, *, seed: int, num_train: int, num_val: int, num_test: int, num_refer: int, ordered_map: OrderedMap
) -> None:
    """Write the whole tree under ``root``, which becomes a ``--dataset_dir``.

    Args:
        num_train, num_val: MUSE pictures; num_test: pictures of each of the two test files.
        num_refer: RefCOCO pictures.
        ordered_map: who draws; the files do not depend on it.
    """
    folders = [IMAGES / name for name in ("train2014", "train2017", "val2017")]
    for folder in (*folders, Path("muse"), Path("refer_seg/refcoco")):
        (root / folder).mkdir(parents=True, exist_ok=True)
    counts = {"train": num_train, "val": num_val, "test_less": num_test, "test_many": num_test}
    for split in MUSE_SPLITS:
        _write_muse_split(root, split, counts[split.name], seed=seed, ordered_map=ordered_map)
    _write_refcoco(root, num_refer, seed=seed, ordered_map=ordered_map)

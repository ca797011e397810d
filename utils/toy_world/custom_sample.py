"""Drawn photos with the same masks in every format that scripts/convert_to_custom.py reads.

scripts/make_custom_sample.py lists the files.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from model.drawing import write_image
from model.files import write_json, write_text
from model.outputs import output_folder
from model.rle import encode_rle
from utils.masks.outlines import polygons

from .scene import Scene, ToyObject, draw_scene
from .shapes import SHAPES

_VALUES = {shape: value for value, shape in enumerate(SHAPES, 1)}
TEMPLATES = {
    "questions": ["Segment {names}.", "Where {is|are} {names}?", "Find [every {singular}]."],
    "answers": ["Of course: [{name} {seg}].", "Here {is|are} [{name} {seg}]."],
}


def make_sample(out: str, *, num: int, seed: int) -> None:
    """Draw the photos and write their masks in every format; an earlier sample in the folder is replaced.

    Args:
        out: folder to make.
        num: photos.
        seed: every photo follows from it.
    Raises:
        InputError: if the folder holds anything else, or cannot be written.
    """
    with output_folder(out, kind="custom sample") as root:
        _write_sample(root, num=num, seed=seed)
    print(f"{out}: {num} photos")


def _write_sample(root: Path, *, num: int, seed: int) -> None:
    instances: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    instances["categories"] = [{"id": value, "name": shape} for shape, value in _VALUES.items()]
    scenes = [draw_scene(np.random.default_rng([seed, index])) for index in range(num)]
    for index, scene in enumerate(scenes):
        name = f"{index:04d}"
        write_image(root / "images" / f"{name}.jpg", scene.image)
        _write_pngs(root, index, scene)
        height, width = scene.image.shape[:2]
        instances["images"].append({"id": index, "file_name": f"{name}.jpg", "height": height, "width": width})
        for item in scene.objects:
            number = len(instances["annotations"])
            annotation = {"id": number, "image_id": index, "category_id": _VALUES[item.shape], "iscrowd": 0}
            instances["annotations"].append({**annotation, "segmentation": polygons(item.mask)})
        write_json(root / "labelme" / f"{name}.json", _labelme(scene, f"../images/{name}.jpg"))
    write_json(root / "instances.json", instances)
    write_json(root / "templates.json", TEMPLATES)
    write_json(root / "classes.json", {str(value): shape for shape, value in _VALUES.items()})
    lines = [json.dumps(_record(scene, index)) for index, scene in enumerate(scenes[:4])]
    write_text(root / "handwritten.jsonl", "\n".join(lines) + "\n")


def _write_pngs(root: Path, index: int, scene: Scene) -> None:
    labels = np.zeros(scene.image.shape[:2], dtype=np.uint8)
    seen: Counter[str] = Counter()
    for item in scene.objects:
        labels[item.mask] = _VALUES[item.shape]
        seen[_name(item)] += 1
        write_image(root / _object_file(index, item, seen[_name(item)]), item.mask.astype(np.uint8) * 255)
    write_image(root / f"masks/{index:04d}.png", labels)


def _labelme(scene: Scene, image_path: str) -> dict[str, Any]:
    shapes = [
        {
            "label": _name(item),
            "shape_type": "polygon",
            "points": np.reshape(polygon, (-1, 2)).tolist(),
            "group_id": number,  # an object may show in several parts
            "flags": {},
        }
        for number, item in enumerate(scene.objects)
        for polygon in polygons(item.mask)
    ]
    height, width = scene.image.shape[:2]
    size = {"imageHeight": height, "imageWidth": width}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": None, **size}


def _record(scene: Scene, index: int) -> dict[str, Any]:
    """The four kinds of target, one after the other."""
    item = scene.objects[-1]
    count = sum(_name(other) == _name(item) for other in scene.objects)
    target, name = (
        ([{"polygon": polygon} for polygon in polygons(item.mask)], f"the {_name(item)} on the right"),
        ({"rle": encode_rle(item.mask)}, f"the {_name(item)} on the right"),
        ({"png": f"masks/{index:04d}.png", "value": _VALUES[item.shape]}, f"every {item.shape}"),
        ({"png": _object_file(index, item, count)}, f"the {_name(item)} on the right"),
    )[index]
    turn = {"question": f"Please show me {name}.", "answer": "Here you are: {seg}.", "targets": [target]}
    thanks = {"question": "Is it alive?", "answer": "No, it is drawn."}
    return {"image": f"images/{index:04d}.jpg", "turns": [turn, thanks]}


def _object_file(index: int, item: ToyObject, number: int) -> str:
    return f"objects/{index:04d}/{_name(item).replace(' ', '_')}_{number}.png"


def _name(item: ToyObject) -> str:
    return f"{item.color} {item.shape}"

"""Annotations of other tools, read as named shapes per photo: label PNGs, COCO instances, labelme."""

from __future__ import annotations

import base64
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from PIL import Image
from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, is_folder, read_json
from model.photo_file import check_size
from model.rle import encode_rle
from model.text.conversation import IMAGE_MARK
from model.values import Finite, Schema, Text, shorten

from .coco_format import Instances
from .photos import photo_hw, read_label_map
from .records import SEG_MARK

logger = logging.getLogger(__name__)

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_NUMBER = re.compile(r"[_\- ]\d+$")  # cup_2.png is a second cup
_CIRCLE_CORNERS = 64

Shape = Mapping[str, Any]  # as a record has it; the path of a PNG is absolute here


class _LabelmeShape(TypedDict):
    label: Text
    points: list[Annotated[list[Finite], Field(min_length=2, max_length=2)]]
    shape_type: NotRequired[Text | None]
    group_id: NotRequired[Any]
    mask: NotRequired[Text | None]


class _Labelme(TypedDict):
    imagePath: Text
    imageHeight: NotRequired[int | None]
    imageWidth: NotRequired[int | None]
    shapes: list[_LabelmeShape]


_NAME, _INSTANCES, _LABELME = Schema(Text), Schema(Instances), Schema(_Labelme)


@dataclass(frozen=True)
class NamedShape:
    """A shape of a photo.

    Attributes:
        part_of: tells the objects of a photo apart; None where the annotation does not.
    """

    name: str
    shape: Shape
    part_of: Hashable = None


@dataclass(frozen=True)
class NamedShapes:
    """A photo and the shapes that an annotation has for it.

    Attributes:
        hw: (H, W) of the photo according to the annotation; None where it does not say.
        problem: why its annotation cannot be read; empty when it can.
    """

    image: Path
    hw: tuple[int, int] | None
    shapes: Sequence[NamedShape]
    problem: str = ""


def read_mask_folder(images: Path, masks: Path, classes: Mapping[int, str]) -> Iterator[NamedShapes]:
    """Photos with ``<masks>/<photo>.png`` of label values, or with a folder ``<masks>/<photo>/`` of a PNG per object.

    Args:
        classes: value -> name, for label values. Files of a folder are named by their object: ``red_cup_2.png``.
    Raises:
        InputError: if there is no folder of photos, or no photo in it.
    """
    left_out: Counter[int] = Counter()
    for image in _list(images, PHOTO_SUFFIXES):
        of_photo = masks / f"{image.stem}.png"
        if is_file(of_photo):
            try:
                values = np.unique(read_label_map(of_photo)).tolist()
            except InputError as err:
                yield NamedShapes(image, None, (), problem=str(err))
                continue
            left_out.update(value for value in values if value not in classes and value != 0)
            used = [value for value in values if value in classes]
            named = [NamedShape(classes[value], {"png": str(of_photo), "value": value}) for value in used]
        else:
            files = sorted((masks / image.stem).glob("*.png"))
            names = [clean_name(_NUMBER.sub("", file.stem), where=str(file)) for file in files]
            named = [NamedShape(name, {"png": str(file)}, file.name) for name, file in zip(names, files, strict=True)]
        yield NamedShapes(image, None, named)
    if left_out:
        counts = ", ".join(f"{value} (in {count} photos)" for value, count in sorted(left_out.items()))
        logger.warning("label values that --classes does not name were left out: %s", counts)


def read_coco(annotations: Path, images: Path) -> Iterator[NamedShapes]:
    """Photos of a COCO instances file.

    Raises:
        InputError: if the file cannot be read or is not in COCO's format.
    """
    where, remedy = f"{annotations} is not in COCO's instances format", "Correct the file"
    content = _INSTANCES.check(read_json(annotations, remedy="check the path"), where=where, remedy=remedy)
    names = {
        category["id"]: clean_name(category["name"], where=f"{annotations}: categories[{number}]")
        for number, category in enumerate(content["categories"])
    }
    of_photo: dict[Any, list[NamedShape]] = {info["id"]: [] for info in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        photo, category = annotation["image_id"], annotation["category_id"]
        if photo not in of_photo or category not in names:
            raise InputError(
                f"{where}: annotations[{number}] names image_id {photo!r} and category_id {category!r}; expected ids "
                f"that images and categories have. {remedy}"
            )
        segmentation = annotation.get("segmentation") or []
        parts = segmentation if isinstance(segmentation, list) else [segmentation]
        shapes = [{"rle" if isinstance(part, Mapping) else "polygon": part} for part in parts]
        of_photo[photo] += [NamedShape(names[category], shape, number) for shape in shapes]
    for info in content["images"]:
        yield NamedShapes(images / info["file_name"], (info["height"], info["width"]), of_photo[info["id"]])


def read_labelme(folder: Path) -> Iterator[NamedShapes]:
    """Photos of a folder of labelme files; polygons, rectangles, circles and masks have an area and are used.

    Raises:
        InputError: if there is no file, or one is not in labelme's format.
    """
    left_out: Counter[str] = Counter()
    for file in _list(folder, (".json",)):
        where = f"{file} is not in labelme's format"
        content = _LABELME.check(read_json(file, remedy="save it again"), where=where, remedy="Save it again")
        image, hw = file.parent / content["imagePath"].replace("\\", "/"), None
        height, width = content.get("imageHeight"), content.get("imageWidth")
        if height and width:
            check_size(height, width, where=str(file))
            hw = (height, width)
        named = []
        for number, shape in enumerate(content["shapes"]):
            place = f"{file}: shapes[{number}]"
            converted = _labelme_shape(shape, hw, image, where=place)
            if converted is None:
                left_out[shape.get("shape_type") or ""] += 1
            else:
                group = shape.get("group_id")
                part_of = number if group is None else f"group {group}"
                named.append(NamedShape(clean_name(shape["label"], where=place), converted, part_of))
        yield NamedShapes(image, hw, named)
    if left_out:
        counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(left_out.items()))
        logger.warning("shapes without area were left out: %s", counts)


def _labelme_shape(shape: _LabelmeShape, hw: tuple[int, int] | None, image: Path, *, where: str) -> Shape | None:
    """A shape of a record; None if the kind encloses no area."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "polygon":
        return {"polygon": [value for point in points for value in point]}
    if kind not in ("rectangle", "circle", "mask"):
        return None
    if len(points) != 2:
        raise InputError(f"{where}: a {kind} has {len(points)} points; expected 2. Save the file again")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return {"polygon": [x0, y0, x1, y0, x1, y1, x0, y1]}
    if kind == "circle":  # center, and a point on the circle
        radius, steps = math.hypot(x1 - x0, y1 - y0), np.arange(_CIRCLE_CORNERS) * 2 * math.pi / _CIRCLE_CORNERS
        corners = np.stack([x0 + radius * np.cos(steps), y0 + radius * np.sin(steps)], axis=1)
        return {"polygon": corners.round(2).ravel().tolist()}
    whole = np.zeros(hw or photo_hw(image, upright=True), dtype=bool)
    if not (0 <= x0 < whole.shape[1] and 0 <= y0 < whole.shape[0]):
        raise InputError(
            f"{where}: its mask begins at ({shorten(x0)}, {shorten(y0)}), outside of the photo, which is "
            f"{whole.shape[0]} x {whole.shape[1]} (height x width). Save the file again"
        )
    cut = _labelme_mask(shape.get("mask"), where=where)
    target = whole[int(y0) : int(y0) + cut.shape[0], int(x0) : int(x0) + cut.shape[1]]
    target |= cut[: target.shape[0], : target.shape[1]]
    return {"rle": encode_rle(whole)}


def _labelme_mask(text: str | None, *, where: str) -> np.ndarray:
    """A mask is a PNG of the box around it, as text: (h, w) bool."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text or "")), formats=["PNG"]) as image:
            check_size(image.height, image.width, where=where)
            values = np.asarray(image)
    except Exception as err:  # Pillow's decoders raise nearly anything for damaged data
        raise InputError(f"{where}: its mask cannot be decoded ({err}). Save the file again") from err
    if values.ndim != 2:
        raise InputError(f"{where}: its mask has colors; expected one number per pixel. Save the file again")
    return values > 0


def read_classes(text: str) -> dict[int, str]:
    """The value of ``--classes`` -> value of a label and its name."""
    try:
        if text.endswith(".json"):
            pairs = read_json(Path(text), remedy="check the path").items()
        else:
            pairs = [pair.split("=", 1) for pair in text.split(",") if pair]
        return {int(value): clean_name(name, where=f"value {value}") for value, name in pairs}
    except (AttributeError, ValueError) as err:
        raise InputError(f"--classes {text} cannot be read ({err}); expected '1=cat,2=dog' or a JSON file") from err


def clean_name(name: str, *, where: str) -> str:
    """``traffic_light`` -> ``traffic light``.

    Raises:
        InputError: if questions cannot be asked about it: it is empty, or has a mark with a meaning of its own.
    """
    cleaned = " ".join(name.replace("_", " ").split())
    _NAME.check(cleaned, where=f"{where}: the class name", remedy="Choose another name")
    marks = [mark for mark in (SEG_MARK, IMAGE_MARK) if mark in cleaned]
    if marks or not cleaned:
        found = f"contains {marks[0]}" if marks else "is empty"
        raise InputError(f"{where}: the class name {shorten(name)} {found}; choose another name")
    return cleaned


def _list(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    if not is_folder(folder):
        raise InputError(f"{folder} is not a folder; expected one of {', '.join(suffixes)} files")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if not files:
        raise InputError(f"{folder} holds no {', '.join(suffixes)} file")
    return files

"""What the page hands out: pictures, masks and COCO annotations of one answer, made in memory at the photo's size."""

from __future__ import annotations

import base64
import io
import json
import re
import secrets
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from model.drawing import overlay
from model.errors import InputError
from model.rle import encode_rle
from model.values import NonNegativeInt, Schema, Share, Text

from .session import Photo, Session, Turn, encode_png

_STEM_LETTERS = 40
What = Literal["overlay", "cutout", "masks", "coco"]


class Asked(TypedDict):
    """What the browser sends.

    Attributes:
        turn: number of the answer.
        hidden: numbers of targets that are left out.
        names: of targets, in place of their phrases, by their numbers.
        threshold: probability above which a pixel belongs to a mask.
        opacity: share of the color in a tinted pixel.
        outline: whether masks have one.
    """

    what: What
    turn: NonNegativeInt
    hidden: Annotated[list[NonNegativeInt], Field(max_length=10_000)]
    names: Annotated[dict[Annotated[str, Field(max_length=10)], Text], Field(max_length=10_000)]
    threshold: Share
    opacity: Share
    outline: bool


_ASKED = Schema(Asked)


@dataclass(frozen=True)
class _Masks:
    """The visible targets of an answer: their numbers, names, and (M, H, W) bool masks."""

    numbers: list[int]
    names: list[str]
    masks: np.ndarray


def make_download(session: Session, asked: Any) -> dict[str, str]:
    """The file that the browser asks for.

    Nothing is written on the server: the file goes to the one browser that asked, inside its answer.

    Args:
        asked: an ``Asked``, which is not trusted.
    Returns:
        ``name``, ``url`` (a data URI) and ``id``, which no other download has.
    Raises:
        InputError: if it is none, there is no such answer, or all its targets are hidden.
    """
    request = _ASKED.check(asked, where="the download", remedy="load the page again")
    photo, turn = session.turn(request["turn"])
    visible = _visible(photo, turn, request)
    ending, media, make = _MAKERS[request["what"]]
    data = base64.b64encode(make(photo, turn, visible, request)).decode("ascii")
    name = f"{safe_stem(PurePath(photo.name).stem, 'photo')}_{ending}"
    return {"name": name, "url": f"data:{media};base64,{data}", "id": secrets.token_hex(8)}


def safe_stem(text: str, otherwise: str) -> str:
    """The letters, digits, dashes and underscores of a text: a part of a file name on every system."""
    kept = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", text)).strip("_")
    return kept[:_STEM_LETTERS].rstrip("_") or otherwise


def _visible(photo: Photo, turn: Turn, request: Asked) -> _Masks:
    numbers = [number for number in range(len(turn.targets)) if number not in set(request["hidden"])]
    if not numbers:
        raise InputError("there is no visible mask to download; show one first")
    masks = np.zeros((len(numbers), *photo.size), dtype=bool)
    for place, number in enumerate(numbers):
        masks[place] = turn.targets[number].mask(request["threshold"])
    names = [request["names"].get(str(number), "").strip() or turn.targets[number].phrase for number in numbers]
    return _Masks(numbers, names, masks)


def _overlay(photo: Photo, turn: Turn, visible: _Masks, request: Asked) -> bytes:
    picture = overlay(
        photo.pixels(), visible.masks, alpha=request["opacity"], numbers=visible.numbers, outline=request["outline"]
    )
    return encode_png(picture)


def _cutout(photo: Photo, turn: Turn, visible: _Masks, request: Asked) -> bytes:
    """What is in a mask; everything else is transparent, and black, so that nothing of it is in the file."""
    inside = np.any(visible.masks, axis=0)
    alpha = inside.astype(np.uint8) * 255
    return encode_png(np.dstack([photo.pixels() * inside[..., None], alpha]))


def _mask_files(photo: Photo, turn: Turn, visible: _Masks, request: Asked) -> bytes:
    """A zip of one PNG for each mask, 255 where the target is, else 0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, name, mask in zip(visible.numbers, visible.names, visible.masks, strict=True):
            archive.writestr(f"{number}_{safe_stem(name, 'target')}.png", encode_png(mask.astype(np.uint8) * 255))
    return buffer.getvalue()


def _coco(photo: Photo, turn: Turn, visible: _Masks, request: Asked) -> bytes:
    """Annotations of COCO; targets of one name are of one category."""
    names = [name or f"target {number}" for number, name in zip(visible.numbers, visible.names, strict=True)]
    categories = {name: place for place, name in enumerate(dict.fromkeys(names), start=1)}
    annotations = [
        {
            "id": place,
            "image_id": 1,
            "category_id": categories[name],
            "segmentation": encode_rle(mask),
            "area": int(mask.sum()),
            "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
            "iscrowd": 0,
            "score": turn.targets[number].score,
        }
        for place, (number, name, mask) in enumerate(zip(visible.numbers, names, visible.masks, strict=True), start=1)
    ]
    content = {
        "images": [{"id": 1, "file_name": photo.name, "height": photo.size[0], "width": photo.size[1]}],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }
    return json.dumps(content, ensure_ascii=False).encode("utf-8")


_Make = Callable[[Photo, Turn, _Masks, Asked], bytes]
# End of the file's name, media type, and what makes the file.
_MAKERS: dict[What, tuple[str, str, _Make]] = {
    "overlay": ("overlay.png", "image/png", _overlay),
    "cutout": ("cutout.png", "image/png", _cutout),
    "masks": ("masks.zip", "application/zip", _mask_files),
    "coco": ("coco.json", "application/json", _coco),
}

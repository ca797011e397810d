"""COCO segmentations -> masks.

Shapes: H, W size of the photo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from model.errors import InputError


def decode_segmentation(segmentation: Any, hw: tuple[int, int], *, where: str) -> np.ndarray:
    """Rasterize a segmentation as an annotation file stores it.

    Args:
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]``; run lengths ``{"size": [H, W], "counts": ...}``,
            compressed (str or bytes) or not (list); or a list of run lengths. The parts of a list are united;
            an empty list is an empty mask.
        hw: (H, W).
        where: dataset and annotation, for messages.
    Returns:
        (H, W) bool.
    Raises:
        InputError: if it is none of these, encloses no area, or belongs to another size.
    """
    if min(hw) < 1:
        raise InputError(f"{where}: the photo is recorded as height x width {hw[0]} x {hw[1]}; correct the annotation")
    if isinstance(segmentation, Mapping):
        return _decode_rle(segmentation, hw, where=where)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, (str, bytes)):
        raise _unknown(segmentation, where)
    mask = np.zeros(hw, dtype=bool)
    for part in segmentation:
        if isinstance(part, Mapping):
            mask |= _decode_rle(part, hw, where=where)
        else:
            mask |= _decode_polygon(part, hw, where=where)
    return mask


def _decode_polygon(polygon: Any, hw: tuple[int, int], *, where: str) -> np.ndarray:
    try:
        points = np.asarray(polygon, dtype=float)
    except (TypeError, ValueError) as err:
        raise _unknown(polygon, where) from err
    if points.ndim != 1:
        raise _unknown(polygon, where)
    if len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise InputError(
            f"{where}: a polygon has {len(points)} numbers; expected x, y of 3 points or more, all finite. "
            "Correct or remove the annotation"
        )
    corners = points.reshape(-1, 2)
    # On one line: no area. (The shoelace formula would also refuse a bow tie, whose halves cancel.)
    if np.linalg.matrix_rank(corners - corners[0], tol=1e-3) < 2:
        raise InputError(
            f"{where}: a polygon of {len(corners)} points encloses no area; correct or remove the annotation"
        )
    return coco_mask.decode(coco_mask.frPyObjects([points.tolist()], *hw))[:, :, 0].astype(bool)


def _decode_rle(code: Mapping[str, Any], hw: tuple[int, int], *, where: str) -> np.ndarray:
    if "size" not in code or "counts" not in code:
        raise _unknown(code, where)
    if list(code["size"]) != list(hw):
        raise InputError(
            f"{where}: the mask's size is {list(code['size'])}, the photo's {list(hw)} (height, width); "
            "the annotation belongs to another version of the photo"
        )
    counts = code["counts"]
    try:
        runs = _decompress(counts) if isinstance(counts, (str, bytes)) else [int(run) for run in counts]
    except (IndexError, TypeError, ValueError) as err:
        raise InputError(f"{where}: its run lengths cannot be read; download the annotations again") from err
    # pycocotools does not notice runs that end early: it returns whatever was in memory behind them.
    if sum(runs) != hw[0] * hw[1] or any(run < 0 for run in runs):
        raise InputError(
            f"{where}: its run lengths cover {sum(runs)} pixels, expected {hw[0]} x {hw[1]} = {hw[0] * hw[1]}; "
            "download the annotations again"
        )
    return coco_mask.decode(coco_mask.frPyObjects({"size": list(hw), "counts": runs}, *hw)).astype(bool)


def _decompress(text: str | bytes) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character; from the fourth run on, differences to the run before last."""
    data = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    position = 0
    while position < len(data):
        value, shift, more = 0, 0, True
        while more:
            bits = data[position] - 48
            value |= (bits & 0x1F) << shift
            more = bool(bits & 0x20)
            position, shift = position + 1, shift + 5
        if bits & 0x10:  # the sign
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def _unknown(found: Any, where: str) -> InputError:
    shown = repr(found)
    return InputError(
        f"{where}: the segmentation {shown[:80]}{'...' if len(shown) > 80 else ''} is not in COCO's format; expected "
        'polygons [[x, y, x, y, x, y, ...], ...] or run lengths {"size": [H, W], "counts": ...}'
    )

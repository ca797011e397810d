"""COCO segmentations -> masks.

Shapes: H, W size of the photo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from model.errors import InputError

_FIXED = 1 << 16  # OpenCV counts in 65536ths of a pixel


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
        InputError: if it is none of these, encloses no area, or is recorded for another size.
    """
    if min(hw) < 1:
        raise InputError(
            f"{where}: the photo is recorded as height x width {hw[0]} x {hw[1]}; correct the annotation",
            reason="photo without size",
        )
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


def paint_polygons(
    polygons: Sequence[Sequence[Sequence[float]]], values: Sequence[int], hw: tuple[int, int]
) -> np.ndarray:
    """Paint polygons one over the other, largest area first, outlines included; coordinates are cut to whole pixels.

    Args:
        polygons: each a list of [x, y].
        values: what each is painted with, 1 to 255.
    Returns:
        (H, W) uint8, 0 where there is no polygon.
    Raises:
        ValueError: if a polygon is no list of [x, y].
    """
    corners = [np.asarray(polygon, dtype=float) for polygon in polygons]
    if any(points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all() for points in corners):
        raise ValueError("a polygon is not a list of [x, y]")
    areas = [np.count_nonzero(_paint(np.zeros(hw, dtype=np.uint8), points, 1)) for points in corners]
    painted = np.zeros(hw, dtype=np.uint8)
    for index in sorted(range(len(corners)), key=lambda index: -areas[index]):
        _paint(painted, corners[index], values[index])
    return painted


def _paint(image: np.ndarray, points: np.ndarray, value: int) -> np.ndarray:
    corners = points.astype(np.int32)
    cv2.polylines(image, [corners], isClosed=True, color=value)
    image[_inside(corners, image.shape)] = value
    return image


def _inside(corners: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, the filling of a polygon: on each row from one edge to the next, both ends rounded.

    Gives what cv2.fillPoly of OpenCV up to 4.10 gives, with which the masks of the release were made; later versions
    round otherwise and differ by a pixel here and there.
    """
    height, width = hw
    rows, columns = [], []
    for start, end in zip(np.roll(corners, 1, axis=0).tolist(), corners.tolist(), strict=True):
        (x0, y0), (x1, y1) = start, end
        half = _FIXED // 2
        if y0 == y1:
            continue
        if not all(0 <= x < width and 0 <= y < height for x, y in (start, end)):
            _, clipped_start, clipped_end = cv2.clipLine((0, 0, width, height), start, end)
            half = 0  # edges that leave the photo are rounded down
            if clipped_start[1] != clipped_end[1]:
                (x0, y0), (x1, y1) = clipped_start, clipped_end
        slope = int((x1 - x0) * _FIXED / (y1 - y0))
        row = np.arange(min(start[1], end[1]), max(start[1], end[1]))
        anchor_x, anchor_y = (x0, y0) if start[1] < end[1] else (x1, y1)
        rows.append(row)
        columns.append((anchor_x * _FIXED + (row - anchor_y) * slope + half) // _FIXED)
    steps = np.zeros((height, width + 1), dtype=np.int32)  # +1 where a run of pixels begins, -1 behind its end
    if rows:
        row, column = np.concatenate(rows), np.concatenate(columns)
        order = np.lexsort((column, row))
        row, left, right = row[order][::2], column[order][::2], column[order][1::2]
        seen = (row >= 0) & (row < height) & (right >= 0) & (left < width)
        np.add.at(steps, (row[seen], left[seen].clip(min=0)), 1)
        np.add.at(steps, (row[seen], right[seen].clip(max=width - 1) + 1), -1)
    return steps.cumsum(axis=1)[:, :width] > 0


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
            "Correct or remove the annotation",
            reason="bad polygon",
        )
    corners = points.reshape(-1, 2)
    # On one line: no area. (The shoelace formula would also refuse a bow tie, whose halves cancel.)
    if np.linalg.matrix_rank(corners - corners[0], tol=1e-3) < 2:
        raise InputError(
            f"{where}: a polygon of {len(corners)} points encloses no area; correct or remove the annotation",
            reason="bad polygon",
        )
    return coco_mask.decode(coco_mask.frPyObjects([points.tolist()], *hw)[0]).astype(bool)


def _decode_rle(code: Mapping[str, Any], hw: tuple[int, int], *, where: str) -> np.ndarray:
    if "size" not in code or "counts" not in code:
        raise _unknown(code, where)
    if list(code["size"]) != list(hw):
        raise InputError(
            f"{where}: the mask's size is {list(code['size'])}, the photo's {list(hw)} (height, width); "
            "the annotation belongs to another version of the photo",
            reason="mask of another size",
        )
    counts = code["counts"]
    try:
        runs = _decompress(counts) if isinstance(counts, (str, bytes)) else [int(run) for run in counts]
    except (IndexError, TypeError, ValueError) as err:
        raise InputError(
            f"{where}: its run lengths cannot be read; download the annotations again", reason="bad run lengths"
        ) from err
    # pycocotools does not notice runs that end early: it returns whatever was in memory behind them.
    if sum(runs) != hw[0] * hw[1] or any(run < 0 for run in runs):
        raise InputError(
            f"{where}: its run lengths cover {sum(runs)} pixels, expected {hw[0]} x {hw[1]} = {hw[0] * hw[1]}; "
            "download the annotations again",
            reason="bad run lengths",
        )
    uncompressed: Any = {"size": list(hw), "counts": runs}  # read by pycocotools, but missing in its stubs
    return coco_mask.decode(coco_mask.frPyObjects(uncompressed, *hw)).astype(bool)


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
        'polygons [[x, y, x, y, x, y, ...], ...] or run lengths {"size": [H, W], "counts": ...}',
        reason="unknown mask format",
    )

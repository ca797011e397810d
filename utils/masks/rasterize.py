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
from model.photo_file import check_size
from model.values import shorten

from .runs import read_runs, unknown_format

# What a polygon may be. pycocotools crashes on corners far away, and takes memory for every pixel of an outline.
_REACH = 10  # times the longer side of the photo, in both directions from its corner
_MOST_NUMBERS = 100_000
_LONGEST_OUTLINE = 10_000_000  # pixels
_FIXED = 1 << 16  # OpenCV counts in 65536ths of a pixel


def decode_segmentation(segmentation: Any, hw: tuple[int, int], *, where: str) -> np.ndarray:
    """Rasterize a segmentation as an annotation file stores it.

    Args:
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]``; run lengths ``{"size": [H, W], "counts": ...}``,
            compressed (str or bytes) or not (list); or a list of run lengths. The parts of a list are united;
            an empty list is an empty mask.
        hw: (H, W) as recorded.
        where: dataset and annotation, for messages.
    Returns:
        (H, W) bool.
    Raises:
        InputError: if it is none of these, encloses no area, reaches too far out of the photo or is recorded for
            another size; or if no photo has the recorded size.
    """
    check_size(*hw, where=where)
    if isinstance(segmentation, Mapping):
        return _decode_rle(segmentation, hw, where=where)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, (str, bytes)):
        raise unknown_format(segmentation, where)
    mask = np.zeros(hw, dtype=bool)
    for part in segmentation:
        if isinstance(part, Mapping):
            mask |= _decode_rle(part, hw, where=where)
        else:
            mask |= _decode_polygon(part, hw, where=where)
    return mask


def paint_polygons(polygons: Sequence[Any], values: Sequence[int], hw: tuple[int, int], *, where: str) -> np.ndarray:
    """Paint polygons one over the other, largest area first, outlines included; coordinates are cut to whole pixels.

    Args:
        polygons: each a list of [x, y].
        values: what each is painted with, 1 to 255.
        hw: (H, W).
        where: annotation, for messages.
    Returns:
        (H, W) uint8, 0 where there is no polygon.
    Raises:
        InputError: if a polygon is no list of [x, y], or reaches too far out of the photo.
    """
    check_size(*hw, where=where)
    corners = [_read_pairs(polygon, hw, where=where) for polygon in polygons]
    areas = [np.count_nonzero(_paint(np.zeros(hw, dtype=np.uint8), points, 1)) for points in corners]
    painted = np.zeros(hw, dtype=np.uint8)
    for index in sorted(range(len(corners)), key=lambda index: -areas[index]):
        _paint(painted, corners[index], values[index])
    return painted


def _paint(image: np.ndarray, points: np.ndarray, value: int) -> np.ndarray:
    corners = points.astype(np.int32)
    cv2.polylines(image, [corners], isClosed=True, color=value)
    rows, inside = _inside(corners, image.shape)
    image[rows][inside] = value
    return image


def _inside(corners: np.ndarray, hw: tuple[int, int]) -> tuple[slice, np.ndarray]:
    """The h rows of a photo that a polygon crosses, and (h, W) bool, its filling there.

    On each row it goes from one edge to the next, both ends rounded.

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
    first, last = np.clip([corners[:, 1].min(), corners[:, 1].max()], 0, height).tolist()
    steps = np.zeros((last - first, width + 1), dtype=np.int32)  # +1 where a run of pixels begins, -1 behind its end
    if rows:
        row, column = np.concatenate(rows), np.concatenate(columns)
        order = np.lexsort((column, row))
        row, left, right = row[order][::2], column[order][::2], column[order][1::2]
        seen = (row >= 0) & (row < height) & (right >= 0) & (left < width)
        np.add.at(steps, (row[seen] - first, left[seen].clip(min=0)), 1)
        np.add.at(steps, (row[seen] - first, right[seen].clip(max=width - 1) + 1), -1)
    return slice(first, last), steps.cumsum(axis=1, out=steps)[:, :width] > 0


def _decode_polygon(polygon: Any, hw: tuple[int, int], *, where: str) -> np.ndarray:
    if not isinstance(polygon, Sequence) or isinstance(polygon, (str, bytes)):
        raise unknown_format(polygon, where)
    if len(polygon) < 6 or len(polygon) % 2:
        raise InputError(
            f"{where}: a polygon has {len(polygon)} numbers; expected x, y of 3 points or more. "
            "Correct or remove the annotation",
            reason="bad polygon",
        )
    corners = _check_corners(polygon, hw, where=where)
    # On one line: no area. (The shoelace formula would also refuse a bow tie, whose halves cancel.)
    if np.linalg.matrix_rank(corners - corners[0], tol=1e-3) < 2:
        raise InputError(
            f"{where}: a polygon of {len(corners)} points encloses no area; correct or remove the annotation",
            reason="bad polygon",
        )
    return coco_mask.decode(coco_mask.frPyObjects([corners.ravel().tolist()], *hw)[0]).astype(bool)


def _read_pairs(polygon: Any, hw: tuple[int, int], *, where: str) -> np.ndarray:
    """A list of [x, y] -> (corners, 2) float."""
    is_list = isinstance(polygon, Sequence) and len(polygon) > 0
    if not is_list or not all(isinstance(point, Sequence) and len(point) == 2 for point in polygon):
        raise InputError(
            f"{where}: a polygon is {shorten(polygon)}; expected a list of [x, y]. Correct or remove the annotation",
            reason="bad polygon",
        )
    return _check_corners([number for point in polygon for number in point], hw, where=where)


def _check_corners(numbers: Sequence[Any], hw: tuple[int, int], *, where: str) -> np.ndarray:
    """x, y, x, y, ... -> (corners, 2) float, which pycocotools and OpenCV can draw."""
    problem = ""
    corners = np.zeros((0, 2))
    reach = _REACH * max(hw)
    if len(numbers) > _MOST_NUMBERS:
        problem = f"has {len(numbers)} numbers; expected {_MOST_NUMBERS} at most"
    elif not set(map(type, numbers)) <= {int, float}:  # a truth value is no coordinate
        wrong = next(number for number in numbers if type(number) not in (int, float))
        problem = f"has the coordinate {shorten(wrong)}; expected numbers"
    elif not all(-reach <= number <= reach for number in numbers):
        wrong = next(number for number in numbers if not -reach <= number <= reach)
        problem = f"has the coordinate {shorten(wrong)}, and the photo is {hw[0]} x {hw[1]} (height x width); expected "
        problem += f"numbers within {_REACH} times its size"
    else:
        corners = np.array(numbers, dtype=float).reshape(-1, 2)
        length = np.abs(np.diff(corners, axis=0)).max(axis=1).sum()
        if length > _LONGEST_OUTLINE:
            problem = f"is {length:.0f} pixels around; expected {_LONGEST_OUTLINE} at most"
    if problem:
        raise InputError(f"{where}: a polygon {problem}. Correct or remove the annotation", reason="bad polygon")
    return corners


def _decode_rle(code: Mapping[str, Any], hw: tuple[int, int], *, where: str) -> np.ndarray:
    runs = read_runs(code, hw, where=where)
    uncompressed: Any = {"size": list(hw), "counts": runs.tolist()}  # read by pycocotools, but missing in its stubs
    return coco_mask.decode(coco_mask.frPyObjects(uncompressed, *hw)).astype(bool)

"""Where the numbers of masks go, so that each can be read and none hides what it names; no torch.

Shapes: M masks, H, W size of a picture in pixels, h, w the same in cells of a coarse grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Point = tuple[int, int]  # x, y in pixels
Cell = tuple[int, int]  # row, column

_CELLS = 320  # of the grid, along the longer side
_LARGEST_SHARE = 0.15  # of a mask, which a badge on it may cover


@dataclass(frozen=True)
class Badge:
    """A round sign with a number.

    Attributes:
        number: of the mask.
        center: of the sign.
        points_to: a point of the mask, where the sign stands beside it; None where it stands on it.
    """

    number: int
    center: Point
    points_to: Point | None


def place_badges(masks: np.ndarray, order: Sequence[int], *, radius: int, num_rows: int) -> list[Badge]:
    """Find a place for the number of every mask that is painted, the last one first.

    A number stands where its mask is seen and widest; beside a mask that it would hide. Numbers keep off each other,
    and off small masks, as long as there is room.

    Args:
        masks: (M, H, W) bool.
        order: in which they are painted, the empty ones left out; a later one covers those before it.
        radius: of a badge, in pixels.
        num_rows: of the picture, from the top, that have room for numbers.
    """
    height, width = masks.shape[1:]
    step = -(-max(height, width) // _CELLS)
    reach = radius / step
    grid = (max(1, width // step), max(1, height // step))
    coarse = [cv2.resize(mask.astype(np.float32), grid, interpolation=cv2.INTER_AREA) > 0 for mask in masks]
    is_small = [np.pi * reach**2 > _LARGEST_SHARE * mask.sum() for mask in coarse]
    allowed = _within(grid, reach, num_rows=num_rows // step)
    small = np.zeros_like(allowed)
    for mask in (mask for mask, its in zip(coarse, is_small, strict=True) if its):
        small |= mask
    hides_none = _distance_to(small) > reach
    clearance = np.full(allowed.shape, np.inf)  # to the next badge
    covered = np.zeros_like(allowed)
    badges = []
    for number in reversed(order):
        mask, free = coarse[number], allowed & (clearance > 2 * reach + 1)
        choices = (free & hides_none, free)
        on = [] if is_small[number] else [_place_on(mask, covered, choice, reach) for choice in choices]
        beside = [_place_beside(mask, choice, reach) for choice in choices]
        place = next((place for place in (*on, *beside) if place), None) or _crowded_place(mask, allowed, clearance)
        pointed = None if mask[place] else _best(np.where(mask, -_distance_from(place, mask.shape), -np.inf))
        badges.append(Badge(number, _pixel(place, step), _pixel(pointed, step) if pointed else None))
        clearance = np.minimum(clearance, _distance_from(place, mask.shape))
        covered |= mask
    return badges


def _within(grid: tuple[int, int], reach: float, *, num_rows: int) -> np.ndarray:
    """(h, w) bool: where a badge is whole; the middle of a side that is too short for one."""
    columns, rows = grid
    margin = int(np.ceil(reach)) + 1
    allowed = np.zeros((rows, columns), dtype=bool)
    rows = max(1, min(rows, num_rows))
    top, left = min(margin, (rows - 1) // 2), min(margin, (columns - 1) // 2)
    allowed[top : rows - top, left : columns - left] = True
    return allowed


def _place_on(mask: np.ndarray, covered: np.ndarray, free: np.ndarray, reach: float) -> Cell | None:
    """The widest free place, best where no smaller mask lies above."""
    for region, least in ((mask & ~covered, reach), (mask, 1)):
        depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        depth = np.where(free, depth, 0)
        if depth.max() >= least:
            return _best(depth)
    return None


def _place_beside(mask: np.ndarray, free: np.ndarray, reach: float) -> Cell | None:
    """The nearest free place where the mask is seen whole."""
    distance = _distance_to(mask)
    beside = free & (distance > reach + 1)
    return _best(np.where(beside, -distance, -np.inf)) if beside.any() else None


def _crowded_place(mask: np.ndarray, allowed: np.ndarray, clearance: np.ndarray) -> Cell:
    """As far from other badges as the mask lets it."""
    region = mask & allowed if (mask & allowed).any() else allowed
    return _best(np.where(region, clearance, -1))


def _distance_to(region: np.ndarray) -> np.ndarray:
    if not region.any():
        return np.full(region.shape, np.inf)
    return cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 5)


def _distance_from(place: Cell, hw: tuple[int, ...]) -> np.ndarray:
    rows, columns = np.ogrid[: hw[0], : hw[1]]
    return np.hypot(rows - place[0], columns - place[1])


def _best(values: np.ndarray) -> Cell:
    row, column = np.unravel_index(values.argmax(), values.shape)
    return int(row), int(column)


def _pixel(cell: Cell, step: int) -> Point:
    """The middle of a cell."""
    row, column = cell
    return column * step + step // 2, row * step + step // 2

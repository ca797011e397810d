"""Outlines of the toy shapes, and their antialiased coverage.

Outlines live in a unit system (y down, center at the origin) and are scaled so that every shape of one radius
covers about the area of a circle of that radius: "large" then means the same for a star and for a square.
"""

from __future__ import annotations

import cv2
import numpy as np

SUPERSAMPLING = 4
# Equal areas would blow the ring up to twice a circle's width; its outer radius is what people call its size.
RING_OUTER, RING_INNER = 1.12, 0.58


def _regular(corners: int, start_degrees: float, inner: float | None = None) -> np.ndarray:
    """Corners of a regular polygon (or of a star, when ``inner`` gives the radius of its notches): (P, 2)."""
    count = corners if inner is None else 2 * corners
    angle = np.radians(start_degrees) + 2 * np.pi * np.arange(count) / count
    radius = np.ones(count)
    if inner is not None:
        radius[1::2] = inner
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _with_unit_circle_area(outline: np.ndarray) -> np.ndarray:
    x, y = outline[:, 0], outline[:, 1]
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    return outline * np.sqrt(np.pi / area)


_CIRCLE = _regular(72, 0)

# Outer outline first, then holes. The factors keep spiky shapes from becoming too wide for their neighbors.
_OUTLINES: dict[str, list[np.ndarray]] = {
    "circle": [_CIRCLE],
    "square": [_with_unit_circle_area(_regular(4, 45)) * 0.98],
    "triangle": [_with_unit_circle_area(_regular(3, -90)) * 0.92],
    "star": [_with_unit_circle_area(_regular(5, -90, inner=0.44)) * 0.90],
    "ring": [_CIRCLE * RING_OUTER, _CIRCLE * RING_INNER],
}
SHAPES: tuple[str, ...] = tuple(_OUTLINES)


def coverage(
    shape: str, image_hw: tuple[int, int], *, center: tuple[float, float], radius: float, rotation: float
) -> np.ndarray:
    """How much of each pixel a shape covers.

    Args:
        shape: one of ``SHAPES``.
        image_hw: (H, W) of the picture.
        center: (x, y) in pixels; radius in pixels; rotation in radians, clockwise as seen.
    Returns:
        (H, W) float32 in 0..1.
    """
    cos, sin = np.cos(rotation), np.sin(rotation)
    turn = np.array([[cos, sin], [-sin, cos]])
    outlines = [outline @ turn * radius + center for outline in _OUTLINES[shape]]
    corners = np.concatenate(outlines)
    height, width = image_hw
    x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, (width, height))
    full = np.zeros(image_hw, np.float32)
    if x1 <= x0 or y1 <= y0:
        return full
    canvas = np.zeros(((y1 - y0) * SUPERSAMPLING, (x1 - x0) * SUPERSAMPLING), np.uint8)
    # Pixel i of the fine canvas has its center at i + 0.5; fillPoly counts centers as integers. Its even-odd
    # rule cuts out the holes.
    fine = [np.round((outline - (x0, y0)) * SUPERSAMPLING - 0.5).astype(np.int32) for outline in outlines]
    cv2.fillPoly(canvas, fine, 255)
    small = cv2.resize(canvas, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_AREA)
    full[y0:y1, x0:x1] = small.astype(np.float32) / 255
    return full

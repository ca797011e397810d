"""Random scenes: a picture, its objects, and the exact visible pixels of each.

Coordinates are pixels with (x, y) to the right and down; masks are (H, W) bool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .painting import BACKGROUNDS, COLORS, TEXTURES, background, paint_object, photograph
from .shapes import SHAPES, coverage

SIZES: tuple[str, ...] = ("small", "large")

MIN_SIDE, MAX_SIDE = 120, 192
# Radii are shares of the longer side: what stays constant when the longer side is resized for the network.
_RADIUS_RANGE = {"small": (0.095, 0.11), "large": (0.15, 0.18)}
_MIN_VISIBLE_SHARE = 0.6
_MIN_VISIBLE_PIXELS = 90
_MAX_COVERED_SHARE = 0.5  # of the picture, counted before occlusion
_PLACEMENT_TRIES = 25


@dataclass(frozen=True)
class SceneStyle:
    """What a scene may look like; each range is inclusive.

    Few kinds of colors and shapes among many objects give questions with many targets.
    """

    num_objects: tuple[int, int] = (2, 4)
    num_colors: tuple[int, int] = (3, 5)
    num_shapes: tuple[int, int] = (2, 3)
    num_textures: tuple[int, int] = (1, 3)


DEFAULT_STYLE = SceneStyle()


@dataclass(frozen=True)
class ToyObject:
    """One object as a person sees it.

    Attributes:
        mask: (H, W) bool, the visible pixels.
        center: (x, y) mean of the visible pixels, as shares of width and height.
        visible_share: visible pixels over pixels of the whole shape.
    """

    shape: str
    color: str
    texture: str
    size: str
    mask: np.ndarray
    center: tuple[float, float]
    visible_share: float

    @property
    def area(self) -> int:
        """Visible pixels."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) uint8 RGB and its objects.

    They are in the order of their colors in ``COLORS``, those of equal color in the order of ``SHAPES``.
    """

    image: np.ndarray
    objects: tuple[ToyObject, ...]


@dataclass(frozen=True)
class _Placed:
    """A shape with a place but without paint; ``covers`` is (H, W) float32 in 0..1, before occlusion."""

    shape: str
    size: str
    center: tuple[float, float]
    radius: float
    covers: np.ndarray

    @property
    def solid(self) -> np.ndarray:
        return self.covers >= 0.5


@dataclass(frozen=True)
class _Seen:
    """A placed shape with its visible pixels; the other fields as in ``ToyObject``."""

    placed: _Placed
    mask: np.ndarray
    center: tuple[float, float]
    visible_share: float


def _draw_between(bounds: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def _draw_image_hw(rng: np.random.Generator) -> tuple[int, int]:
    """Landscape, portrait or square."""
    long_side = _draw_between((152, MAX_SIDE), rng)
    short_side = int(np.clip(round(long_side * rng.uniform(0.64, 0.9)), MIN_SIDE, long_side))
    kind = rng.choice(3, p=(0.45, 0.3, 0.25))
    return ((short_side, long_side), (long_side, short_side), (long_side, long_side))[kind]


def _try_place(
    shape: str, size: str, image_hw: tuple[int, int], others: list[_Placed], rng: np.random.Generator
) -> _Placed | None:
    """Put one shape on top of the others without hiding too much of any of them, or give up."""
    height, width = image_hw
    radius = max(image_hw) * rng.uniform(*_RADIUS_RANGE[size])
    rotation = np.radians(rng.uniform(-20, 20))
    for _ in range(_PLACEMENT_TRIES):
        x = rng.uniform(1.15 * radius, width - 1.15 * radius)
        y = rng.uniform(1.15 * radius, height - 1.15 * radius)
        # Cheap test first: deep overlaps are never kept.
        if any(np.hypot(x - o.center[0], y - o.center[1]) < 0.72 * (radius + o.radius) for o in others):
            continue
        covers = coverage(shape, image_hw, center=(x, y), radius=radius, rotation=rotation)
        return _Placed(shape, size, (x, y), radius, covers)
    return None


def _visible_masks(placed: list[_Placed]) -> list[np.ndarray]:
    """Visible pixels of each shape, given from back to front: list of (H, W) bool."""
    masks: list[np.ndarray] = []
    free = np.ones(placed[0].covers.shape, bool)
    for item in reversed(placed):
        masks.append(item.solid & free)
        free &= ~item.solid
    return masks[::-1]


def _mask_center(mask: np.ndarray) -> tuple[float, float]:
    (height, width), pixels = mask.shape, mask.sum()
    x = mask.sum(axis=0) @ (np.arange(width) + 0.5) / pixels
    y = mask.sum(axis=1) @ (np.arange(height) + 0.5) / pixels
    return float(x / width), float(y / height)


def _look(placed: list[_Placed]) -> list[_Seen] | None:
    """What a person sees of the shapes, or None if some shape shows too little."""
    seen = []
    for item, mask in zip(placed, _visible_masks(placed), strict=True):
        pixels, whole = int(mask.sum()), int(item.solid.sum())
        if pixels < max(_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_SHARE * whole):
            return None
        seen.append(_Seen(item, mask, _mask_center(mask), pixels / whole))
    return seen


def _draw_layout(style: SceneStyle, rng: np.random.Generator) -> list[_Seen]:
    """Shapes in place, from back to front."""
    num_objects = _draw_between(style.num_objects, rng)
    while True:
        image_hw = _draw_image_hw(rng)
        shapes = rng.choice(SHAPES, size=_draw_between(style.num_shapes, rng), replace=False)
        placed: list[_Placed] = []
        for _ in range(num_objects):
            item = _try_place(str(rng.choice(shapes)), str(rng.choice(SIZES)), image_hw, placed, rng)
            if item is None:
                break
            placed.append(item)
        covered = sum(float(item.covers.sum()) for item in placed)
        if len(placed) < num_objects or covered > _MAX_COVERED_SHARE * image_hw[0] * image_hw[1]:
            continue
        seen = _look(placed)
        if seen is not None:
            return seen


def _draw_colors(layout: list[_Seen], style: SceneStyle, rng: np.random.Generator) -> list[str]:
    """One color per shape, from a small palette while it lasts; equal shapes get different ones."""
    palette = rng.choice(COLORS, size=_draw_between(style.num_colors, rng), replace=False).tolist()
    taken: set[tuple[str, str]] = set()
    drawn = []
    for item in layout:
        shape = item.placed.shape
        free = [color for color in palette if (color, shape) not in taken]
        free = free or [color for color in COLORS if (color, shape) not in taken]
        drawn.append(str(rng.choice(free)))
        taken.add((drawn[-1], shape))
    return drawn


def draw_scene(rng: np.random.Generator, style: SceneStyle = DEFAULT_STYLE) -> Scene:
    """Draw one scene; equal generators give equal scenes.

    Two objects of a scene never share both color and shape, so that the name of an object in an answer is its
    own.
    """
    layout = _draw_layout(style, rng)
    textures = rng.choice(TEXTURES, size=_draw_between(style.num_textures, rng), replace=False)
    canvas = background(str(rng.choice(BACKGROUNDS)), layout[0].mask.shape, rng)
    objects = []
    for item, color in zip(layout, _draw_colors(layout, style, rng), strict=True):
        placed, texture = item.placed, str(rng.choice(textures))
        paint_object(
            canvas,
            placed.covers,
            color=color,
            texture=texture,
            center=placed.center,
            radius=placed.radius,
            rng=rng,
        )
        look = (placed.shape, color, texture, placed.size)
        objects.append(ToyObject(*look, item.mask, item.center, item.visible_share))
    objects.sort(key=lambda item: (COLORS.index(item.color), SHAPES.index(item.shape)))
    return Scene(photograph(canvas, rng), tuple(objects))

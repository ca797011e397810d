"""Paint: backgrounds, textured and shaded objects, and the camera that photographs them.

Images are (H, W, 3) float32 RGB in 0..1 until the camera turns them into uint8.
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np

# Hue in degrees and saturation; brightness is drawn per object between the last two numbers.
_COLOR_HSV: dict[str, tuple[float, float, float, float]] = {
    "red": (0, 0.92, 0.72, 0.92),
    "orange": (27, 0.98, 0.90, 1.00),
    "yellow": (53, 0.90, 0.86, 1.00),
    "green": (125, 0.80, 0.50, 0.76),
    "blue": (225, 0.88, 0.66, 0.92),
    "purple": (276, 0.78, 0.52, 0.74),
}
COLORS: tuple[str, ...] = tuple(_COLOR_HSV)
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")
BACKGROUNDS: tuple[str, ...] = ("gradient", "clouds", "wood", "tiles")
# Colors that are too bright for a light pattern to be seen on them.
_DARK_ACCENT_COLORS = frozenset({"orange", "yellow"})


def object_color(color: str, rng: np.random.Generator) -> np.ndarray:
    """One RGB triple (3,) of a named color, with a little variation in hue and more in brightness."""
    hue, saturation, dark, bright = _COLOR_HSV[color]
    hue += rng.uniform(-4, 4)
    value = rng.uniform(dark, bright)
    rgb = colorsys.hsv_to_rgb(hue % 360 / 360, saturation * rng.uniform(0.93, 1.0), value)
    return np.array(rgb, np.float32)


def _noise(image_hw: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in 0..1 whose features are about 1 / cells of the picture: (H, W)."""
    coarse = rng.random((max(cells[0], 2), max(cells[1], 2)), dtype=np.float32)
    return np.clip(cv2.resize(coarse, image_hw[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)


def _pale_color(rng: np.random.Generator) -> np.ndarray:
    """A background color: any hue, but clearly less saturated than every object."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.02, 0.22), rng.uniform(0.4, 0.9))
    return np.array(rgb, np.float32)


def background(kind: str, image_hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A picture without objects: (H, W, 3) in 0..1.

    Raises:
        ValueError: if ``kind`` is none of ``BACKGROUNDS``.
    """
    height, width = image_hw
    x = np.arange(width, dtype=np.float32)[None]  # (1, W)
    y = np.arange(height, dtype=np.float32)[:, None]  # (H, 1)
    first = _pale_color(rng)
    # The second color is a relative of the first: no background draws edges as strong as an object's.
    second = np.clip(first * rng.uniform(0.62, 0.85) + _pale_color(rng) * 0.12, 0, 1)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        ramp = x / width * math.cos(angle) + y / height * math.sin(angle)
        mix = (ramp - ramp.min()) / np.ptp(ramp)
    elif kind == "clouds":
        mix = sum(_noise(image_hw, (n, n), rng) * weight for n, weight in ((4, 0.5), (9, 0.3), (20, 0.2)))
    elif kind == "wood":
        plank = height / rng.integers(3, 7)
        grain = _noise(image_hw, (70, 4), rng) * 0.6 + _noise(image_hw, (24, 3), rng) * 0.4
        shade_of_plank = rng.random(16, dtype=np.float32)[(y // plank).astype(int) % 16]
        mix = 0.55 * grain + 0.35 * shade_of_plank + 0.35 * (y % plank < 1.5)
    elif kind == "tiles":
        side = rng.uniform(22, 48)
        column, row = (x // side).astype(int) % 16, (y // side).astype(int) % 16
        grout = ((x % side) < 2) | ((y % side) < 2)
        mix = 0.45 * rng.random((16, 16), dtype=np.float32)[row, column] + 0.5 * grout
    else:
        raise ValueError(f"unknown background {kind!r}; known: {', '.join(BACKGROUNDS)}")
    mix = np.clip(mix, 0, 1, dtype=np.float32)[..., None]
    return first + (second - first) * mix


def _pattern(texture: str, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """Share of the accent color, 0..1, at object coordinates (u, v) in pixels."""
    if texture == "plain":
        return np.zeros_like(u)
    a, b = 2 * math.pi / period * u, 2 * math.pi / period * v
    # The factors soften the step from one tone to the other to about a pixel.
    if texture == "striped":
        return np.clip(0.5 + 1.8 * np.sin(a), 0, 1)
    if texture == "dotted":
        return np.clip(1.6 * (np.cos(a) + np.cos(b)) - 0.7, 0, 1)
    raise ValueError(f"unknown texture {texture!r}; known: {', '.join(TEXTURES)}")


def paint_object(
    canvas: np.ndarray,
    coverage: np.ndarray,
    *,
    color: str,
    texture: str,
    center: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> None:
    """Paint one object onto the canvas, with its drop shadow, pattern, shading and rim.

    Args:
        canvas: (H, W, 3) float32 in 0..1, changed in place.
        coverage: (H, W) in 0..1.
        center: (x, y) in pixels; radius in pixels.
    """
    height, width = coverage.shape
    reach = 1.7 * radius + 12  # the spikiest outline, and the shadow beyond it
    x0, y0 = max(int(center[0] - reach), 0), max(int(center[1] - reach), 0)
    x1, y1 = min(int(center[0] + reach) + 2, width), min(int(center[1] + reach) + 2, height)
    alpha, view = coverage[y0:y1, x0:x1], canvas[y0:y1, x0:x1]

    move = np.array([[1, 0, rng.uniform(1.5, 4)], [0, 1, rng.uniform(1.5, 4)]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, move, alpha.shape[::-1]), (0, 0), rng.uniform(1.5, 3))
    view *= 1 - rng.uniform(0.2, 0.45) * shadow[..., None]

    x = (np.arange(x0, x1) + 0.5 - center[0]).astype(np.float32)[None]  # (1, w)
    y = (np.arange(y0, y1) + 0.5 - center[1]).astype(np.float32)[:, None]  # (h, 1)
    angle = rng.uniform(0, math.pi)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    base = object_color(color, rng)
    accent = base * 0.35 if color in _DARK_ACCENT_COLORS else base * 0.2 + 0.8
    period = min(max(0.62 * radius, 11), 17) * rng.uniform(0.92, 1.08)
    paint = base + (accent - base) * _pattern(texture, u, v, period)[..., None]

    light = rng.uniform(-math.pi, 0)  # from above, as in most photos
    toward_light = (x * math.cos(light) + y * math.sin(light)) / radius
    inner = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    shade = (1 + rng.uniform(0.06, 0.2) * toward_light) * (1 - rng.uniform(0.25, 0.5) * (alpha - inner))
    view += (np.clip(paint * shade[..., None], 0, 1) - view) * alpha[..., None]


def photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vignette, slight blur and sensor noise: (H, W, 3) float in 0..1 -> uint8."""
    height, width = canvas.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    image = canvas * (1 - rng.uniform(0, 0.12) * (x**2 + y**2))[..., None]
    sigma = rng.uniform(0, 0.7)
    if sigma > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.004, 0.02)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)

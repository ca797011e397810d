"""Masks over a photo, with outlines and numbers, and pictures as files. Images are (H, W, 3) uint8 RGB; no torch.

Shapes: M masks, H, W size of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from .errors import InputError
from .files import write_bytes
from .outputs import check_output_file

Color = tuple[int, int, int]

# Neighbors in the list differ in hue as well as in lightness, so that they stay apart on any photo.
PALETTE: tuple[Color, ...] = (
    (230, 57, 70),
    (46, 134, 222),
    (255, 190, 11),
    (6, 167, 125),
    (150, 80, 235),
    (251, 111, 21),
    (0, 206, 209),
    (241, 91, 181),
    (132, 204, 22),
    (29, 53, 135),
    (198, 140, 83),
    (190, 225, 255),
    (122, 28, 62),
    (170, 255, 195),
    (84, 101, 38),
    (255, 173, 173),
    (20, 90, 96),
    (128, 128, 128),
)
PAPER, INK = (255, 255, 255), (35, 35, 40)
FILL = 0.3  # share of the color in a tinted pixel: what it tints keeps its own color
READABLE_SIDE = 800  # pixels of the longer side that outlines and numbers need


def overlay(
    image: np.ndarray, masks: np.ndarray, *, colors: Sequence[Color] = PALETTE, alpha: float = FILL
) -> np.ndarray:
    """Tint every mask, draw its outline, and number it from 0, as chat's text and files do.

    Args:
        image: (H, W, 3) uint8 RGB, not changed.
        masks: (M, H, W) bool; empty masks get no number.
        colors: taken in turn, from the start again when there are more masks.
        alpha: share of the color in a tinted pixel, 0 to 1.
    Returns:
        (H, W, 3) uint8 RGB.
    Raises:
        ValueError: if the masks are not bool or not of the image's size.
    """
    if masks.dtype != bool or masks.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks must be bool (M, {image.shape[:2]}), got {masks.dtype} {masks.shape}")
    picture = image.copy()
    # Small objects are painted last: they would vanish below larger ones that overlap them.
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    thickness = max(1, round(max(image.shape[:2]) / 250))
    for index in order:
        mask, color = masks[index], colors[index % len(colors)]
        tinted = picture[mask] * (1 - alpha) + np.array(color) * alpha
        picture[mask] = tinted.round().astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        # A white rim below the color shows the outline on objects of the same color.
        cv2.drawContours(picture, outlines, -1, PAPER, thickness + 2, cv2.LINE_AA)
        cv2.drawContours(picture, outlines, -1, color, thickness, cv2.LINE_AA)
    for index in order:
        if masks[index].any():
            _draw_number(picture, masks[index], number=index, color=colors[index % len(colors)])
    return picture


def _draw_number(picture: np.ndarray, mask: np.ndarray, *, number: int, color: Color) -> None:
    """Write into ``picture`` at the point of the mask that is farthest from its edge."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    text, font, scale = str(number), cv2.FONT_HERSHEY_SIMPLEX, max(0.35, max(mask.shape) / 1000)
    thickness = max(1, round(2 * scale))
    (width, height), _ = cv2.getTextSize(text, font, scale, thickness)
    radius = round(0.75 * max(width, height)) + 2
    # The whole badge stays inside the picture.
    x = int(np.clip(x, radius, max(radius, mask.shape[1] - 1 - radius)))
    y = int(np.clip(y, radius, max(radius, mask.shape[0] - 1 - radius)))
    dark = np.dot(color, (0.299, 0.587, 0.114)) < 140
    ink = PAPER if dark else INK
    cv2.circle(picture, (x, y), radius, color, cv2.FILLED, cv2.LINE_AA)
    cv2.circle(picture, (x, y), radius, ink, 1, cv2.LINE_AA)
    origin = (x - width // 2, y + height // 2)
    cv2.putText(picture, text, origin, font, scale, ink, thickness, cv2.LINE_AA)


def annotate(
    image: np.ndarray, masks: np.ndarray, *, colors: Sequence[Color] = PALETTE, alpha: float = FILL
) -> np.ndarray:
    """``overlay`` for the eye: a small photo is enlarged first, so that outlines and numbers have room.

    Args:
        image, masks, colors, alpha: as of ``overlay``.
    Returns:
        (h, w, 3) uint8 RGB, the photo itself if there are no masks.
    """
    if len(masks) and max(image.shape[:2]) < READABLE_SIDE:
        image, masks = fit(image, masks, side=READABLE_SIDE)
    return overlay(image, masks, colors=colors, alpha=alpha)


def fit(image: np.ndarray, masks: np.ndarray, *, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image and its (M, H, W) bool masks so that the longer side is ``side`` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    resized_masks = np.zeros((len(masks), size[1], size[0]), dtype=bool)
    for index, mask in enumerate(masks):
        resized_masks[index] = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
    return resized, resized_masks


def check_picture(path: str | Path, *, flag: str = "", inputs: Iterable[str | Path] = ()) -> None:
    """Refuse a picture that could not be written, before it is made; arguments as of ``check_output_file``.

    Raises:
        InputError: if the suffix names no format, or nothing can be written there.
    """
    _check_format(Path(path), place=f"{flag} {path}".strip())
    check_output_file(path, flag=flag, inputs=inputs)


def _check_format(path: Path, *, place: str) -> None:
    if not cv2.haveImageWriter(f"x{path.suffix}"):
        raise InputError(f"{place} cannot be written: {path.suffix!r} is no known picture format; use .png or .jpg")


def write_image(path: str | Path, image: np.ndarray, *, jpeg_quality: int = 95) -> None:
    """Write a picture, complete or not at all; folders above are made.

    Args:
        path: its suffix names the format.
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 gray.
        jpeg_quality: 0 to 100; other formats do not read it.
    Raises:
        InputError: if the suffix names no format, or nothing can be written there.
    """
    path = Path(path)
    _check_format(path, place=str(path))
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if path.suffix.lower() in (".jpg", ".jpeg") else []
    encoded, data = cv2.imencode(path.suffix, pixels, options)
    if not encoded:
        raise InputError(f"cannot write {path}: a picture {image.shape} does not fit the format; use .png")
    write_bytes(path, data.tobytes())  # cv2.imwrite cannot write to names with accents on every system

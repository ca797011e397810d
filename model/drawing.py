"""Masks over a photo, with outlines and numbers, and pictures as files. Images are (H, W, 3) uint8 RGB; no torch.

Shapes: M masks, H, W size of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .badges import Badge, place_badges
from .errors import InputError
from .files import write_bytes
from .outputs import check_output_file

Color = tuple[int, int, int]

# They stay apart for color-blind people, too, above all the first eight. A search made the least distance (CIEDE2000)
# large in normal vision and in that without one kind of cone. Black or white can be read on each.
PALETTE: tuple[Color, ...] = (
    (190, 30, 45),
    (68, 92, 214),
    (254, 207, 14),
    (7, 159, 119),
    (82, 8, 140),
    (240, 109, 8),
    (135, 240, 245),
    (235, 121, 235),
    (0, 60, 60),
    (120, 105, 120),
    (195, 225, 165),
    (165, 165, 180),
    (90, 15, 15),
    (135, 165, 90),
    (165, 45, 150),
    (60, 90, 15),
    (135, 0, 75),
    (75, 120, 90),
)
PAPER, INK = (255, 255, 255), (35, 35, 40)
FILL = 0.2  # share of the color in a tinted pixel: what it tints keeps its own color
READABLE_SIDE = 800  # pixels of the longer side that outlines and numbers need


def overlay(
    image: np.ndarray,
    masks: np.ndarray,
    *,
    colors: Sequence[Color] = PALETTE,
    alpha: float = FILL,
    numbers: Sequence[int] | None = None,
    outline: bool = True,
) -> np.ndarray:
    """Tint every mask, draw its outline, and number it from 0, as chat's text and files do.

    Lines and numbers follow the size of the image. Specks have a thin line alone. A strip names the empty masks.

    Args:
        image: (H, W, 3) uint8 RGB, not changed.
        masks: (M, H, W) bool.
        colors: taken in turn, from the start again when there are more masks.
        alpha: share of the color in a tinted pixel, 0 to 1.
        numbers: of the masks, from 0, where some are left out; a mask has the color of its number.
        outline: draw outlines.
    Returns:
        (H, W, 3) uint8 RGB.
    Raises:
        ValueError: if the masks are not bool or not of the image's size.
    """
    if masks.dtype != bool or masks.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks must be bool (M, {image.shape[:2]}), got {masks.dtype} {masks.shape}")
    areas = masks.sum(axis=(1, 2))
    # Small objects are painted last: they would vanish below larger ones that overlap them.
    order = [index for index in np.argsort(-areas, kind="stable").tolist() if areas[index]]
    named = list(range(len(masks))) if numbers is None else numbers
    own = [colors[number % len(colors)] for number in named]
    picture = _tint(image, masks, order, colors=own, alpha=alpha)
    for index in order if outline else []:
        _outline(picture, masks[index], own[index])
    text_size = max(9, round(max(image.shape[:2]) / 40))
    empty = [named[index] for index in np.flatnonzero(areas == 0).tolist()]
    strip = round(1.6 * text_size) if empty else 0
    badges = place_badges(masks, order, radius=_radius(text_size), num_rows=image.shape[0] - strip)
    badges = [replace(badge, number=named[badge.number]) for badge in badges]
    picture = _draw_badges(picture, badges, colors, text_size=text_size)
    return _name_empty(picture, empty, text_size=text_size, height=strip) if empty else picture


def _tint(
    image: np.ndarray, masks: np.ndarray, order: Sequence[int], *, colors: Sequence[Color], alpha: float
) -> np.ndarray:
    """Each pixel takes the color of its topmost mask alone: many tints, one over the other, would hide the photo.

    Args:
        colors: one for each mask.
    """
    picture, top = image.copy(), np.full(image.shape[:2], -1)
    if not order:
        return picture
    for index in order:
        top[masks[index]] = index
    tinted = top >= 0
    mixed = image[tinted] * (1 - alpha) + np.array(colors)[top[tinted]] * alpha
    picture[tinted] = mixed.round().astype(np.uint8)
    return picture


def _outline(picture: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Draw the edge of a mask, with a rim that shows it on objects of the same color."""
    thickness = max(1, round(max(mask.shape) / 280))
    found, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in found]
    # A thick line would cover, and outweigh, what is tiny against the line or against the rest of the mask.
    least = max((6 * thickness) ** 2, 0.02 * max(areas))
    thick = [contour for contour, area in zip(found, areas, strict=True) if area >= least]
    is_hole = tree[0, :, 3] >= 0
    specks = [contour for contour, area, hole in zip(found, areas, is_hole, strict=True) if area < least and not hole]
    cv2.drawContours(picture, specks, -1, color, max(1, thickness // 3), cv2.LINE_AA)
    cv2.drawContours(picture, thick, -1, ink_on(color), thickness + 2 * max(1, thickness // 3), cv2.LINE_AA)
    cv2.drawContours(picture, thick, -1, color, thickness, cv2.LINE_AA)


def ink_on(color: Color) -> Color:
    """What can be read on it: of the two, the one with more contrast, as WCAG 2 defines it."""
    luminance = np.dot((np.array(color) / 255) ** 2.2, (0.2126, 0.7152, 0.0722))
    return PAPER if luminance < 0.217 else INK


def _radius(text_size: int) -> int:
    """Of a badge that holds two digits."""
    return round(0.85 * text_size)


def _draw_badges(
    picture: np.ndarray, badges: Sequence[Badge], colors: Sequence[Color], *, text_size: int
) -> np.ndarray:
    radius, line = _radius(text_size), max(1, text_size // 9)
    for badge in badges:
        color = colors[badge.number % len(colors)]
        if badge.points_to is not None:
            cv2.line(picture, badge.center, badge.points_to, ink_on(color), 3 * line, cv2.LINE_AA)
            cv2.line(picture, badge.center, badge.points_to, color, line, cv2.LINE_AA)
        cv2.circle(picture, badge.center, radius, color, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, badge.center, radius, ink_on(color), line, cv2.LINE_AA)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for badge in badges:
        text = str(badge.number)
        font = ImageFont.load_default(text_size if len(text) < 3 else round(0.75 * text_size))
        draw.text(badge.center, text, ink_on(colors[badge.number % len(colors)]), font, anchor="mm")
    return np.array(canvas)


def _name_empty(picture: np.ndarray, empty: Sequence[int], *, text_size: int, height: int) -> np.ndarray:
    """Say in a strip at the bottom which masks are empty."""
    font = ImageFont.load_default(text_size)
    what = "empty mask" if len(empty) == 1 else "empty masks"
    text = f"{' '.join(f'[{number}]' for number in empty)} {what}"
    if font.getlength(text) > picture.shape[1] - text_size:
        text = f"{len(empty)} {what}"
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    top = picture.shape[0] - height
    draw.rectangle((0, top, font.getlength(text) + text_size, picture.shape[0]), PAPER)
    draw.text((text_size // 2, top + height // 2), text, INK, font, anchor="lm")
    return np.array(canvas)


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

"""Pictures of masks: overlays with outlines and numbers, and contact sheets. Images are (H, W, 3) uint8 RGB.

Shapes: M masks, H, W size of an image in pixels.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.errors import InputError
from model.files import write_bytes
from model.outputs import check_output_file

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

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
_RED = np.array([255, 0, 0])
_MARGIN, _CAPTION_GAP, _CAPTION_SIZE = 16, 8, 15
_PAPER, _INK = (255, 255, 255), (35, 35, 40)
_PLAIN_SIGNS = str.maketrans("‘’“”–—", "''\"\"--")  # noqa: RUF001 (these are the signs to replace)


def overlay(
    image: np.ndarray, masks: np.ndarray, *, colors: Sequence[Color] = PALETTE, alpha: float = 0.5
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
        cv2.drawContours(picture, outlines, -1, _PAPER, thickness + 2, cv2.LINE_AA)
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
    ink = _PAPER if dark else _INK
    cv2.circle(picture, (x, y), radius, color, cv2.FILLED, cv2.LINE_AA)
    cv2.circle(picture, (x, y), radius, ink, 1, cv2.LINE_AA)
    origin = (x - width // 2, y + height // 2)
    cv2.putText(picture, text, origin, font, scale, ink, thickness, cv2.LINE_AA)


def released_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture that the release's chat.py writes per target: 0.5 * image + 0.5 * red where the mask is.

    Args:
        image: (H, W, 3) uint8 RGB, not changed.
        mask: (H, W) bool.
    """
    picture = image.copy()
    # Cut, not rounded, as the release does when it assigns floats to a uint8 array.
    picture[mask] = (0.5 * image[mask] + 0.5 * _RED).astype(np.uint8)
    return picture


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


def contact_sheet(panels: Sequence[np.ndarray], *, columns: int, captions: Sequence[str] | None = None) -> np.ndarray:
    """Lay pictures out row by row, each with its caption below; returns (H, W, 3) uint8 RGB.

    Args:
        panels: (h, w, 3) uint8 RGB each, of any sizes; none is resized.
        columns: pictures per row.
        captions: one per panel, wrapped to the width of the widest panel; line breaks are kept.
    Raises:
        ValueError: without panels, or with another number of captions.
    """
    captions = [""] * len(panels) if captions is None else captions
    if not panels or len(captions) != len(panels):
        raise ValueError(f"a sheet needs a caption per panel and a panel, got {len(captions)}, {len(panels)}")
    font = ImageFont.load_default(_CAPTION_SIZE)
    cell_width = max(panel.shape[1] for panel in panels)
    texts = [_wrap(caption, font=font, width=cell_width) for caption in captions]
    rows = [range(start, min(start + columns, len(panels))) for start in range(0, len(panels), columns)]
    picture_heights = [max(panels[index].shape[0] for index in row) for row in rows]
    text_heights = [max(_text_height(texts[index], font) for index in row) for row in rows]
    sheet_height = sum(picture_heights) + sum(text_heights) + _MARGIN * (len(rows) + 1)
    sheet_width = columns * (cell_width + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (sheet_width, sheet_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for row, picture_height, text_height in zip(rows, picture_heights, text_heights, strict=True):
        for column, index in enumerate(row):
            x = _MARGIN + column * (cell_width + _MARGIN)
            sheet.paste(Image.fromarray(panels[index]), (x, y))
            draw.multiline_text((x, y + picture_height + _CAPTION_GAP), texts[index], _INK, font)
        y += picture_height + text_height + _MARGIN
    return np.asarray(sheet)


def _text_height(text: str, font: Font) -> int:
    if not text:
        return 0
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    return round(box[3]) + _CAPTION_GAP


def _wrap(text: str, *, font: Font, width: int) -> str:
    """Break lines so that they are about ``width`` pixels wide at most."""
    lines = []
    for paragraph in _printable(text).split("\n"):
        # Letters differ in width: the paragraph's own mean, and a little room for lines of wide letters.
        letters = 0.94 * width * len(paragraph) / max(1.0, font.getlength(paragraph))
        lines.extend(textwrap.wrap(paragraph.strip(), max(1, int(letters))) or [""])
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Pillow's own font knows little more than ASCII: drop accents, write the rest as question marks."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_PLAIN_SIGNS))
    kept = (sign for sign in decomposed if not unicodedata.combining(sign))
    return "".join(kept).encode("ascii", "replace").decode()


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

"""Pictures of the release, and contact sheets. Images are (H, W, 3) uint8 RGB.

Shapes: M masks, H, W size of an image in pixels.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.drawing import INK, PAPER

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_RED = np.array([255, 0, 0])
_MARGIN, _CAPTION_GAP, _CAPTION_SIZE = 16, 8, 15
_PLAIN_SIGNS = str.maketrans("‘’“”–—", "''\"\"--")  # noqa: RUF001 (these are the signs to replace)


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
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for row, picture_height, text_height in zip(rows, picture_heights, text_heights, strict=True):
        for column, index in enumerate(row):
            x = _MARGIN + column * (cell_width + _MARGIN)
            sheet.paste(Image.fromarray(panels[index]), (x, y))
            draw.multiline_text((x, y + picture_height + _CAPTION_GAP), texts[index], INK, font)
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

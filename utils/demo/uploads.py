"""A file from a stranger's browser: the pixels of a photo, or one friendly line.

Names are shown; no path is made of them.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from model.errors import InputError
from model.files import is_file
from model.photo_file import open_photo, read_image
from model.values import is_encodable

from .flags import DemoConfig

_LONGEST_NAME = 80  # characters that are shown
_USE = "use a JPEG, PNG or WebP file"
# What strangers drop on the page, by the first bytes of the file.
_OTHER_FILES = (
    (re.compile(rb"%PDF"), "a PDF document; take a picture of the page, or export it as PNG"),
    (re.compile(rb"\s*(<\?xml|<!doctype svg|<svg)", re.IGNORECASE), "an SVG drawing; export it as PNG"),
    (re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE), f"a web page; save the picture itself, and {_USE}"),
    (re.compile(rb"....ftyp(heic|heix|hevc|mif1|msf1)", re.DOTALL), "an HEIC photo; export it as JPEG"),
    (re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL), "a video; take a picture of one frame"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf"), f"an archive or an office document; {_USE}"),
)


@dataclass(frozen=True)
class Upload:
    """A photo that was read.

    Attributes:
        name: as it may be shown: one line of bounded length, without folders.
        pixels: (H, W, 3) uint8 RGB, upright.
        note: what the user should know of it, or None.
    """

    name: str
    pixels: np.ndarray
    note: str | None = None


def read_upload(path: Any, name: Any, *, folder: Path, config: DemoConfig) -> Upload:
    """Read an uploaded photo.

    Args:
        path: where the browser says that the upload lies; it is not trusted.
        name: what the user's file is called; it is shown and nothing else.
        folder: of all uploads.
        config: its limits.
    Raises:
        InputError: if the path lies elsewhere, or the file is no photo within the limits; one line that names no path
            of the server.
    """
    shown = shown_name(name)
    file = _inside(path, folder)
    if file is None:
        raise InputError(f"{shown} is not here any more; choose the photo again")
    size = file.stat().st_size
    if size == 0:
        raise InputError(f"{shown} is empty; choose another photo")
    if size > config.max_bytes:
        raise InputError(
            f"{shown} has {size / 2**20:.1f} MB, and this page takes {config.max_upload} MB at most; make the photo "
            "smaller"
        )
    frames = _check_header(file, shown, config)
    try:
        pixels = _first_frame(file) if frames > 1 else read_image(file)
    except Exception as err:  # readers of formats raise nearly anything for damaged files
        raise InputError(f"{shown} is damaged and cannot be shown; choose another photo") from err
    note = f"{shown} is animated; its first frame is used" if frames > 1 else None
    return Upload(shown, pixels, note)


def shown_name(name: Any) -> str:
    """What may be shown of a file's name: one line, the last part, of bounded length.

    It still has to be escaped where it becomes HTML.
    """
    text = name if isinstance(name, str) and is_encodable(name) else ""
    last = re.split(r"[/\\]", text)[-1]
    letters = "".join(letter for letter in last if unicodedata.category(letter)[0] != "C").strip()
    if len(letters) > _LONGEST_NAME:
        stem, suffix = os.path.splitext(letters)
        suffix = suffix[:8]
        letters = f"{stem[: _LONGEST_NAME - len(suffix) - 1]}…{suffix}"
    return letters if letters.strip(". ") else "the photo"


def _inside(path: Any, folder: Path) -> Path | None:
    """The file, if it is one, and lies in the folder with all links followed."""
    if not isinstance(path, str) or not is_encodable(path) or "\0" in path or not is_file(path):
        return None
    file = Path(os.path.realpath(path))
    return file if file.is_relative_to(os.path.realpath(folder)) else None


def _check_header(file: Path, shown: str, config: DemoConfig) -> int:
    """Hold the size in the header to the limits, before anything is decoded; returns the number of frames."""
    try:
        with open_photo(file) as photo:
            width, height = photo.size
            frames = int(getattr(photo, "n_frames", 1)) if photo.format in ("GIF", "WEBP", "PNG") else 1
    except InputError as err:
        if "header claims" in str(err):
            raise InputError(f"{shown} claims to be larger than any photo; {_USE}") from err
        raise InputError(_refusal(file, shown)) from err
    except Exception as err:  # as above: the frames of a damaged file are counted by its format's reader
        raise InputError(_refusal(file, shown)) from err
    if max(width, height) > config.max_side or width * height > config.max_pixels:
        raise InputError(
            f"{shown} is {width} x {height} pixels, and this page takes {config.max_side:,} per side and "
            f"{config.max_pixels / 1e6:.3g} million together at most; make the photo smaller"
        )
    return frames


def _refusal(file: Path, shown: str) -> str:
    with file.open("rb") as opened:
        head = opened.read(512)
    for beginning, what in _OTHER_FILES:
        if beginning.match(head):
            return f"{shown} is {what}"
    return f"{shown} is not a photo, or it is damaged; {_USE}"


def _first_frame(file: Path) -> np.ndarray:
    with Image.open(file) as photo:
        first = next(ImageSequence.Iterator(photo)).convert("RGBA")
    paper = Image.new("RGBA", first.size, "white")
    return np.asarray(Image.alpha_composite(paper, first).convert("RGB"))

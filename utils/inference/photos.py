"""The photo that a user names: found, or refused with what to type instead."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from model.errors import InputError
from model.files import is_file, is_folder
from model.photo_file import open_photo

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_LOOKED_THROUGH = 10_000  # entries of a folder: to compare a name with a million others takes minutes


def photo_path(text: str) -> Path:
    """The file of a photo, as it was typed, pasted or dropped on the terminal; nothing is read.

    ``~`` stands for the home folder. Quotes and backslashes, which a shell would take off, are taken off where no file
    has them in its name.

    Raises:
        InputError: if there is no such file; it names a folder's pictures, names that are nearly the same, or the
            command that downloads a web address.
    """
    if not text.strip():
        raise InputError("no image was named; give the path of a picture, such as photo.jpg")
    for name in _readings(text):
        if is_file(name):
            return Path(name)
    name = os.path.expanduser(text.strip())
    if re.match(r"(?:https?|ftp)://", name):
        raise InputError(
            f"image {name} is a web address; download it first (curl -LO {shlex.quote(name)}), and give the file's name"
        )
    if is_folder(name):
        first = next(iter(sorted(_pictures(name))), None)
        example = f"give a picture in it, for example {Path(name, first)}" if first else "there is no picture in it"
        raise InputError(f"image {name} is a folder; {example}")
    if os.path.exists(name):
        raise InputError(f"image {name} is not a file; give the path of a picture")
    folder, last = os.path.split(name)
    close = difflib.get_close_matches(last, _pictures(folder or "."), n=2)
    remedy = f"did you mean {' or '.join(str(Path(folder, one)) for one in close)}?" if close else "check the path"
    raise InputError(f"image {name} does not exist; {remedy}", reason="image missing")


def check_photo(text: str) -> Path:
    """The same, and the header of the file is read.

    Raises:
        InputError: as ``photo_path``, and if the file is no picture.
    """
    path = photo_path(text)
    open_photo(path).close()
    return path


def _readings(text: str) -> Iterator[str]:
    """What a text may mean as a file name, most literal first."""
    yield text
    yield os.path.expanduser(text.strip())
    if text.startswith("file://"):
        yield unquote(urlsplit(text.strip()).path)
    with suppress(ValueError):  # a quote that is not closed
        words = shlex.split(text)
        if len(words) == 1:
            yield os.path.expanduser(words[0])


def _pictures(folder: str) -> list[str]:
    """Names of the pictures in a folder, which need not exist."""
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        names = [entry.name for entry in itertools.islice(entries, _LOOKED_THROUGH)]
        return [name for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    return []

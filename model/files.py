"""Files and folders that users name: read or refused in one line, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import InputError
from .outputs import output_file


def read_json(path: Path, *, remedy: str = "download it again from its source") -> Any:
    """What a JSON file holds.

    Args:
        remedy: what the user can do about a bad file, for the message.
    Raises:
        InputError: if it does not exist, or is not JSON in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as err:
        raise InputError(f"{path} does not exist; {remedy}") from err
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is not valid JSON ({err}); {remedy}") from err
    except (OSError, ValueError) as err:  # ValueError: a name with a zero byte
        raise InputError(f"{path} cannot be read ({err}); {remedy}") from err
    return parse_json(text, where=str(path), remedy=remedy)


def parse_json(content: str | bytes, *, where: str, remedy: str, reason: str = "other") -> Any:
    """What JSON text says.

    Args:
        content: bytes are UTF-8.
        where: names the text in messages.
        remedy: what the user can do.
        reason: as of ``InputError``.
    Raises:
        InputError: if it is not JSON in UTF-8.
    """
    try:
        return json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
    except (ValueError, RecursionError) as err:  # RecursionError: nested without end
        raise InputError(f"{where} is not valid JSON ({err}); {remedy}", reason=reason) from err


def read_object(path: Path, *, remedy: str = "the folder is not a model folder") -> dict[str, Any]:
    """The JSON object of a settings file, such as a model folder's config.json.

    Args:
        remedy: what it means, or what the user can do, if there is no such file.
    Raises:
        InputError: if it does not exist, is not JSON in UTF-8, or holds something else.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; {remedy}")
    content = read_json(path, remedy="copy it again from its source")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write JSON, complete or not at all; folders above are made.

    Args:
        compact: without line breaks and spaces, for files that programs read.
    Raises:
        InputError: if nothing can be written there.
    """
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    write_text(path, json.dumps(content, ensure_ascii=False, **layout) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for text, in UTF-8.

    Half of a surrogate pair, which stands for a byte of a file name that is not UTF-8, is written as its escape,
    which JSON reads back.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same for bytes."""
    with output_file(path) as partial:
        partial.write_bytes(content)

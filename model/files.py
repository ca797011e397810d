"""Files and folders that users name: read or refused in one line, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from .errors import InputError
from .outputs import output_file
from .values import Schema


class ShardIndex(TypedDict):
    """What is read of an ``*.index.json``."""

    weight_map: dict[str, str]


_INDEX = Schema(ShardIndex)


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; no, if the name is one that no file can have.

    Nothing else is ever opened for reading: a pipe keeps its reader waiting, and a device goes on without end.
    """
    return os.path.isfile(path)  # Path.is_file raises for a name that is too long


def is_folder(path: str | Path) -> bool:
    """The same for a folder."""
    return os.path.isdir(path)


def read_bytes(path: Path, *, remedy: str, reason: str = "other") -> bytes:
    """What a file holds.

    Args:
        remedy: what the user can do about a bad file, for the message.
        reason: as of ``InputError``.
    Raises:
        InputError: if there is no such file, or it cannot be read.
    """
    if not is_file(path):
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise InputError(f"{path} {problem}; {remedy}", reason=reason)
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"{path} cannot be read ({err}); {remedy}", reason=reason) from err


def read_json(path: Path, *, remedy: str = "download it again from its source") -> Any:
    """What a JSON file holds.

    Args:
        remedy: as of ``read_bytes``.
    Raises:
        InputError: if there is no such file, or it is not JSON in UTF-8.
    """
    return parse_json(read_bytes(path, remedy=remedy), where=str(path), remedy=remedy)


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


def read_object(path: Path, *, remedy: str = "give a whole model folder, or copy it again") -> dict[str, Any]:
    """The JSON object of a settings file, such as a model folder's config.json.

    Args:
        remedy: as of ``read_bytes``.
    Raises:
        InputError: if it does not exist, is not JSON in UTF-8, or holds something else.
    """
    content = read_json(path, remedy=remedy)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a JSON object; {remedy}")
    return content


def read_shard_names(index: Path) -> list[str]:
    """The files that an ``*.index.json`` of weights names, sorted.

    Raises:
        InputError: if it is no such index.
    """
    found = _INDEX.check(read_object(index), where=str(index), remedy="Copy it again from its source")
    return sorted(set(found["weight_map"].values()))


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

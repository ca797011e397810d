"""Files and folders that users name: found or refused in one line, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError


def resolve_folder(name: str, *, flag: str = "") -> Path:
    """A local folder as it is, a hub id through the local cache or the network.

    Args:
        flag: names the folder in messages.
    Raises:
        InputError: if it is neither a local folder nor reachable on the hub.
    """
    path, place = Path(name).expanduser(), f"{flag} {name}".strip()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise InputError(
            f"{place}: no such folder; give a folder or a hub id such as openai/clip-vit-large-patch14-336"
        )
    from huggingface_hub import snapshot_download  # where data are read without a model, none of it is needed

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.msgpack", "*.h5", "*.onnx"]))
    except Exception as err:
        raise InputError(
            f"{place}: neither a local folder nor reachable on the hub ({type(err).__name__}). "
            f"Download it where there is a network (hf download {name}) and give the folder."
        ) from err


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


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a settings file, such as a model folder's config.json.

    Raises:
        InputError: if it does not exist, is not JSON in UTF-8, or holds something else.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; the folder is not a model folder")
    content = read_json(path, remedy="copy it again from its source")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write in; it takes ``folder``'s place only if everything went well.

    What ``folder`` held is removed after that, never before. The caller has checked that it may be.

    Raises:
        InputError: if nothing can be written there.
    """
    folder = folder.resolve()  # of a link, the folder that it leads to is replaced
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as err:
        raise InputError(f"{folder} cannot be written ({err.strerror}); choose another folder") from err
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replaced = folder.parent / f".{folder.name}.replaced-{os.getpid()}"
    if folder.exists():
        folder.rename(replaced)
    try:
        partial.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write JSON, complete or not at all; folders above are made.

    Args:
        compact: without line breaks and spaces, for files that programs read.
    """
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, ensure_ascii=False, **layout) + "\n", encoding="utf-8")
    partial.replace(path)

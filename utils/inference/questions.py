"""What is asked about which image: a folder, an image, a glob or JSON lines."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, is_folder, parse_json, read_bytes
from model.values import Schema, Text

from .answer import picture_stem
from .photos import PICTURE_SUFFIXES

Prompt = str | list[str]
_FilledText = Annotated[Text, Field(min_length=1)]


@dataclass(frozen=True)
class Question:
    """One question about one image, or the names of things in it.

    Attributes:
        number: its place; questions about an image stand together.
        photo: number of the image.
        image: as the input names it; in a folder, its path from there.
        path: where it is.
        prompt: the question, or a list of names.
        stem: what the names of its output files begin with; no other question has it.
        id: of its line, if that has one.
    """

    number: int
    photo: int
    image: str
    path: Path
    prompt: Prompt
    stem: str
    id: int | str | None = None


@dataclass(frozen=True)
class _Asked:
    """An image and what it is asked."""

    image: str
    path: Path
    stem: str
    prompts: Sequence[Prompt]
    id: int | str | None = None


class _Line(TypedDict):
    """Of a file of JSON lines."""

    image: Annotated[str, Field(min_length=1)]
    prompt: NotRequired[_FilledText | Annotated[list[_FilledText], Field(min_length=1)]]
    id: NotRequired[int | Text]


_LINE = Schema(_Line)


def read_questions(source: str, prompts: Sequence[Prompt]) -> list[Question]:
    """All questions of an input, those about an image together.

    Args:
        source: a folder (images in it and in folders below it, by their suffixes; hidden ones are left out), an image,
            a glob, or a file of JSON lines (``image``, and if wanted ``prompt`` and ``id``).
        prompts: asked about every image whose line has no prompt of its own.
    Raises:
        InputError: if there is no image or no question, a line cannot be read, or not one of the images exists.
    """
    asked = list(_asked(os.path.expanduser(source), prompts))
    if not any(is_file(one.path) for one in asked):
        raise InputError(
            f"--input {source} names {len(asked)} images, but none of them exists, such as {asked[0].path}; check the "
            "paths: those in a file of JSON lines start from its folder"
        )
    photos: dict[Path, list[_Asked]] = {}
    for one in asked:
        photos.setdefault(one.path, []).append(one)
    questions: list[Question] = []
    taken: set[str] = set()
    for photo, (path, group) in enumerate(photos.items()):
        first = _untaken(group[0].stem, taken)
        pairs = [(one, prompt) for one in group for prompt in one.prompts]
        for place, (one, prompt) in enumerate(pairs):
            stem = _untaken(f"{first}_{place + 1}", taken) if place else first
            questions.append(Question(len(questions), photo, one.image, path, prompt, stem, one.id))
    return questions


def _untaken(stem: str, taken: set[str]) -> str:
    """The stem, with a number if a file of another question has it already, on file systems without capitals too."""
    found, number = stem, 1
    while found.casefold() in taken:
        number += 1
        found = f"{stem}-{number}"
    taken.add(found.casefold())
    return found


def _asked(source: str, prompts: Sequence[Prompt]) -> Iterator[_Asked]:
    if is_file(source) and Path(source).suffix.lower() in (".jsonl", ".json"):
        yield from _of_lines(Path(source), prompts)
        return
    if not prompts:
        raise InputError("--prompt is missing; give a question, or names of things as --targets")
    if is_folder(source):
        names = sorted(_images_below(source))
        if not names:
            raise InputError(f"--input {source} has no image; expected files that end in {', '.join(PICTURE_SUFFIXES)}")
        for name in names:
            stem = Path(name).with_name(picture_stem(name)).as_posix()
            yield _Asked(Path(name).as_posix(), Path(source, name), stem, prompts)
        return
    files = [source] if is_file(source) else sorted(filter(is_file, glob.glob(source, recursive=True)))
    if not files:
        is_glob = glob.has_magic(source)
        problem = "matches no file" if is_glob else "does not exist"
        remedy = "check the pattern, and put it in quotes" if is_glob else "check the path"
        raise InputError(f"--input {source} {problem}; {remedy}")
    for name in files:
        yield _Asked(name, Path(name), picture_stem(name), prompts)


def _images_below(folder: str) -> Iterator[str]:
    def stop(err: OSError) -> NoReturn:
        raise err

    for root, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith("."):
                yield os.path.relpath(os.path.join(root, name), folder)


def _of_lines(file: Path, prompts: Sequence[Prompt]) -> Iterator[_Asked]:
    remedy = 'expected lines such as {"image": "photo.jpg", "prompt": "Where is the cat?"}'
    found = False
    for number, text in enumerate(read_bytes(file, remedy=remedy).splitlines(), start=1):
        if not text.strip():
            continue
        where, found = f"{file}:{number}", True
        line = _LINE.check(parse_json(text, where=where, remedy=remedy), where=where, remedy=remedy)
        own = [line["prompt"]] if "prompt" in line else prompts
        if not own:
            raise InputError(f"{where} has no prompt; add one, or give --prompt or --targets for all such lines")
        path = file.parent / os.path.expanduser(line["image"])
        yield _Asked(line["image"], path, picture_stem(line["image"]), own, line.get("id"))
    if not found:
        raise InputError(f"--input {file} is empty; {remedy}")

"""The photos and questions that the page offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from model.files import is_folder, read_object
from model.photo_file import read_image
from utils.data.registry import build_val_source
from utils.inference.questions import Prompt, read_questions

from .flags import DemoConfig
from .session import Kind, Photo, example_uri
from .uploads import Upload, shown_name

MOST = 12
TOY_BASE, TOY_DATASET = "llava-toy", "toy_world/dataset"
_OF_TOY_WORLD = 6


@dataclass(frozen=True)
class Example:
    """A photo, and what to ask about it; the question may be empty."""

    photo: Photo
    question: str
    kind: Kind
    thumbnail: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.photo.name, "question": self.question, "kind": self.kind, "url": self.thumbnail}


def find_examples(config: DemoConfig) -> list[Example]:
    """Those of ``--examples``, 12 at most; without it, some of the toy world for a model that was trained on it.

    A model is one of the toy world if its recipe names the base ``llava-toy``. The world is looked for in the current
    folder, where the quickstart makes it.

    Raises:
        InputError: if ``--examples`` names no photo, or one of them cannot be read.
    """
    asked = _named(config.examples) if config.examples else _of_toy_world(config.version)
    return [_example(path, prompt) for path, prompt in asked]


def _named(source: str) -> list[tuple[Path, Prompt]]:
    try:
        questions = read_questions(source, [""])[:MOST]
    except InputError as err:
        raise InputError(str(err).replace("--input", "--examples")) from err
    return [(question.path, question.prompt) for question in questions]


def _of_toy_world(version: str) -> list[tuple[Path, Prompt]]:
    try:
        recipe = read_object(Path(version, "config.json")).get("recipe") if is_folder(version) else None
        if isinstance(recipe, dict) and recipe.get("base") == TOY_BASE and is_folder(TOY_DATASET):
            return list(_toy_questions())[:_OF_TOY_WORLD]
    except InputError:  # the model's loader says what is wrong with the folder, and nobody has asked for examples
        pass
    return []


def _toy_questions() -> Iterator[tuple[Path, Prompt]]:
    """Of the held-out photos, the first question of each that asks for several things."""
    source = build_val_source(TOY_DATASET, "MultiReasonSeg|test_less")
    for index in range(len(source)):
        sample = source.get(index, np.random.default_rng(0))
        several = (turn for turns in sample.conversations for turn in turns if len(turn.targets) > 1)
        for turn in list(several)[:1]:
            yield Path(str(sample.image_path)), turn.question


def _example(path: Path, prompt: Prompt) -> Example:
    pixels = read_image(path)
    photo = Photo.of(Upload(shown_name(path.name), pixels))
    question, kind = (prompt, "ask") if isinstance(prompt, str) else (", ".join(prompt), "names")
    return Example(photo, question, kind, example_uri(pixels))

"""The flags of scripts/predict.py, apart from its work: reading them imports no torch."""

from __future__ import annotations

from typing import Literal

from model.errors import InputError
from model.values import Count, Seed, Text
from utils.cli.answering import AnswerFlags, ModelFlags
from utils.cli.args import flag, settings

Format = Literal["coco", "png", "labelme"]


@settings
class PredictConfig(AnswerFlags, ModelFlags):
    """Flags of scripts/predict.py."""

    input: str = flag("", "folder of images, image, glob in quotes, or JSON lines (docs/predict.md)")
    prompt: tuple[Text, ...] = flag((), "question about each image; several are asked one by one")
    targets: tuple[Text, ...] = flag((), "names of things, in place of questions: a mask for each, no text is written")
    output: str = flag("./predictions", "folder that is written; the same command goes on in it")
    format: Format = flag("coco", "masks in one annotations.json, as PNG files, or as polygons for labelme")
    batch_size: Count = flag(8, "questions that are answered together, per process")
    seed: Seed = flag(0, "of the tokens that are drawn, with a temperature")
    overwrite: bool = flag(False, "set an earlier output aside as OUTPUT.old-1 (or -2, ...), and start anew")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, what in (
            ("version", "the folder of a merged model"),
            ("input", "a folder of images, an image, a glob or a file of JSON lines"),
            ("output", "the folder to write"),
        ):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing; give {what}")
        if self.prompt and self.targets:
            raise InputError("--prompt and --targets exclude each other; give questions, or names of things")
        if not all(text.strip() for text in (*self.prompt, *self.targets)):
            raise InputError("--prompt or --targets has an empty text; leave it out")

    @property
    def prompts(self) -> list[str | list[str]]:
        """What each image is asked: questions, or the one list of names."""
        return [list(self.targets)] if self.targets else list(self.prompt)

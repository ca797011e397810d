"""The flags of scripts/predict.py, apart from its work: reading them imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from model.errors import InputError
from model.values import Count, NonNegative, NonNegativeInt, Positive, Seed, Share, Text
from utils.cli.args import flag, settings
from utils.cli.config import InferenceFlags, Template

Format = Literal["coco", "png", "labelme"]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
Threshold = Annotated[float, Field(gt=0, lt=1)]


@settings
class AnswerFlags:
    """How answers are written."""

    max_new_tokens: Count = flag(512, "longest answer, in tokens")
    max_targets: NonNegativeInt = flag(0, "masks of an answer, at most; 0 takes any number")
    temperature: NonNegative = flag(0.0, "0 takes the likeliest token; above it, tokens are drawn")
    top_p: ShareAboveZero = flag(1.0, "draw from the likeliest tokens that have this share; with --temperature")
    repetition_penalty: Positive = flag(1.0, "above 1, what an answer has said becomes less likely in it")
    seed: Seed = flag(0, "of the tokens that are drawn; with --temperature")
    mask_threshold: Threshold = flag(0.5, "probability above which a pixel belongs to a mask")

    def __post_init__(self) -> None:
        if not self.temperature and self.top_p < 1:
            raise InputError(f"--top_p {self.top_p} needs --temperature; without it no token is drawn")

    @property
    def options(self) -> dict[str, Any]:
        """By the names of ``AnswerOptions``."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "max_targets": self.max_targets or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "mask_threshold": self.mask_threshold,
        }


@settings
class PredictConfig(AnswerFlags, InferenceFlags):
    """Flags of scripts/predict.py."""

    version: str = flag("", "merged model: folder or hub id")
    vision_tower: str = flag("", "CLIP tower, when the model folder has none", aliases=("--vision-tower",))
    conv_type: Template = flag("llava_v1", "template of a published model; a folder of ours records its own")
    input: str = flag("", "folder of images, image, glob in quotes, or JSON lines (docs/predict.md)")
    prompt: tuple[Text, ...] = flag((), "question about each image; several are asked one by one")
    targets: tuple[Text, ...] = flag((), "names of things, in place of questions: a mask for each, no text is written")
    output: str = flag("./predictions", "folder that is written; the same command goes on in it")
    format: Format = flag("coco", "masks in one annotations.json, as PNG files, or as polygons for labelme")
    batch_size: Count = flag(8, "questions that are answered together, per process")
    alpha: Share = flag(0.3, "share of the color in a tinted pixel of the overlays")
    overwrite: bool = flag(False, "set an earlier output aside as OUTPUT.old-1 (or -2, ...), and start anew")

    def __post_init__(self) -> None:
        AnswerFlags.__post_init__(self)
        InferenceFlags.__post_init__(self)
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

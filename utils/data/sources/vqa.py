"""Dialogues with or without a photo: LLaVA-Instruct-150k. They have no masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NotRequired

import numpy as np
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import read_json
from model.text.conversation import IMAGE_MARK
from model.values import Schema, Text, shorten
from utils.data.family import Archive, Download, Family
from utils.data.packed import Packed
from utils.data.paths import DatasetPaths
from utils.data.photos import photo_hw
from utils.data.records import SEG_MARK, RawSample, Turn

from .coco_photos import COCO_2017

logger = logging.getLogger(__name__)


_Part = TypedDict("_Part", {"from": Text, "value": Text})  # "from" is no name in Python


class _Dialogue(TypedDict):
    """A record of the file."""

    image: NotRequired[Text | None]
    conversations: list[_Part]


_DIALOGUE = Schema(_Dialogue)


class Vqa:
    """One sample is one dialogue with all its rounds.

    Raises:
        MissingData: if the file does not exist.
        InputError: if it is not in LLaVA's format.
    """

    mask_share = 0.0

    def __init__(self, paths: DatasetPaths, name: str) -> None:
        self.name = name
        self._paths = paths
        file = paths.llava(name, asked_by=f"--dataset vqa with --vqa_data {name}")
        items = read_json(file)
        if not isinstance(items, list) or not items:
            raise InputError(f"{file} is not in LLaVA's format: expected a list of dialogues; download it again")
        self._items = Packed(items, where=file)
        logger.info("%s: %d dialogues", name, len(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        sample_id = f"{self.name}/{index}"
        item = _DIALOGUE.check(
            self._items[index],
            where=f"{sample_id}: the dialogue is not in LLaVA's format",
            remedy="Correct it, or download the file again",
        )
        turns = _turns(item["conversations"], where=sample_id)
        name = item.get("image")
        photo = self._paths.llava_image(name) if name else None
        hw = photo_hw(photo) if photo else (0, 0)
        return RawSample(sample_id, photo, (turns,), np.zeros((0, *hw), dtype=bool))


def _turns(parts: Sequence[_Part], *, where: str) -> tuple[Turn, ...]:
    """Pairs of question and answer; an opening turn of the model and a last question without answer are left out.

    Raises:
        InputError: if the speakers do not alternate, or an answer is empty or asks for a mask.
    """
    if parts and parts[0]["from"] != "human":
        parts = parts[1:]
    speakers = [part["from"] for part in parts]
    if speakers != (["human", "gpt"] * len(parts))[: len(parts)]:
        raise InputError(
            f"{where}: the dialogue is not in LLaVA's format: the speakers are {shorten(speakers)}; expected human and "
            "gpt in turn. Correct it",
            reason="bad record",
        )
    # The mark of the photo may stand anywhere; the encoder puts it before the first question.
    said = [part["value"].replace(IMAGE_MARK, "").strip() for part in parts]
    pairs = list(zip(said[::2], said[1::2], strict=False))
    if not pairs or not all(answer and SEG_MARK not in answer for _, answer in pairs):
        raise InputError(
            f"{where}: the dialogue is not in LLaVA's format: no question has an answer, or an answer is empty or "
            f"contains {SEG_MARK}. Correct it",
            reason="bad record",
        )
    return tuple(Turn(question, answer, ()) for question, answer in pairs)


_INSTRUCT_150K = Archive(
    "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K/resolve/main/llava_instruct_150k.json",
    "llava_dataset",
)


def _downloads(name: str) -> tuple[Download, ...]:
    dialogues = Download(
        f"LLaVA dialogues {name}",
        (lambda paths, flag: paths.llava(name, asked_by=flag),),
        "huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        "CC BY 4.0, and OpenAI's terms of use",
        archives=(_INSTRUCT_150K,) if name == _INSTRUCT_150K.name.removesuffix(".json") else (),
    )
    return dialogues, COCO_2017


FAMILY = Family("vqa", lambda options, part: Vqa(options.paths, part), _downloads, part_flag="vqa_data")

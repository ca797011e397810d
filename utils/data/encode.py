"""RawSample -> Sample: photo to pixels, words to ids, masks in the order of their token groups.

Shapes: R input side, M masks of a RawSample, N masks in token order, H, W size of the photo's visible region.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaTokenizer

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.image import ImageInput, read_image
from model.text.conversation import IMAGE, get_conversation
from model.text.tokens import SegCodebook, encode_conversation, seg_strings

from .photos import photo_hw
from .records import RawSample, Skip, Turn


@dataclass(frozen=True)
class KnownPhoto:
    """What is kept of a photo.

    Attributes:
        key: stands for the photo and how it is read; empty if nothing can be kept.
        features: (S, g*g, V) of the tower; None if they are not known.
    """

    key: str = ""
    features: Tensor | None = None


class KnownPhotos(Protocol):
    """Where features of photos are kept."""

    def find(self, photo: Path | None, *, upright: bool) -> KnownPhoto: ...


@dataclass(eq=False)
class Sample:
    """What collate puts together.

    Attributes:
        pixel_values: (3, R, R) float; (0,) if the features of the photo are known.
        valid_hw: rows and columns of the input that show the photo.
        orig_hw: (H, W) of the masks.
        input_ids, labels: one long tensor each per conversation.
        masks: (N, H, W) bool, one per complete token group, in reading order.
        ignore: (H, W) bool, pixels that neither loss nor score may look at; None when there are none.
        num_dropped_turns: turns left out because they exceed the token budget.
        photo: what is kept of it.
        skipped: samples that were drawn before this one and could not be used.
        source: the name of the dataset that it was drawn from; empty outside of a mixture.
    """

    pixel_values: Tensor
    valid_hw: tuple[int, int]
    orig_hw: tuple[int, int]
    input_ids: list[Tensor]
    labels: list[Tensor]
    masks: Tensor
    ignore: Tensor | None
    sample_id: str
    num_dropped_turns: int
    photo: KnownPhoto = KnownPhoto()
    skipped: tuple[Skip, ...] = ()
    source: str = ""


class Encoder:
    """Turns a RawSample into what the network reads; the same for training and validation.

    Args:
        known_photos: photos whose features are there are not decoded, and their samples have no pixels.
    """

    def __init__(
        self,
        tokenizer: LlamaTokenizer,
        codebook: SegCodebook,
        config: PixelLMConfig,
        known_photos: KnownPhotos | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.codebook = codebook
        self.config = config
        self._known_photos = known_photos
        self._conversation = get_conversation(config.conv_type)
        self._group = seg_strings(codebook.scales, codebook.tokens)

    def __call__(self, raw: RawSample, *, truncate: bool = True) -> Sample:
        """Encode a sample.

        Args:
            truncate: keep to ``config.model_max_length`` by dropping last turns with their masks, never a part of a
                turn. Validation passes False: the release does not shorten there, and no question may be skipped.
        Raises:
            InputError: if photo and masks differ in size, or nothing fits.
        """
        kept: list[Turn] = []
        input_ids, labels = [], []
        for turns in raw.conversations:
            fitting, ids, targets = self._fit(turns, truncate=truncate, shows_photo=raw.image_path is not None)
            if fitting:
                kept += fitting
                input_ids.append(torch.tensor(ids))
                labels.append(torch.tensor(targets))
        if not kept:
            raise InputError(
                f"{raw.sample_id}: none of its {len(raw.conversations)} conversations fits into --model_max_length "
                f"{self.config.model_max_length}, {self.config.num_image_tokens} of which go to the image; raise it",
                reason="too long",
            )
        known = KnownPhoto()
        if self._known_photos:
            known = self._known_photos.find(raw.image_path, upright=raw.upright)
        image = self._prepare_photo(raw) if known.features is None else self._place_photo(raw)
        order = [target for turn in kept for target in turn.targets]
        masks = np.ascontiguousarray(image.crop_masks(raw.masks)[order])
        return Sample(
            pixel_values=image.pixel_values,
            valid_hw=image.valid_hw,
            orig_hw=masks.shape[1:],
            input_ids=input_ids,
            labels=labels,
            masks=torch.from_numpy(masks),
            ignore=None if raw.ignore is None else torch.from_numpy(image.crop_masks(raw.ignore[None])[0]),
            sample_id=raw.sample_id,
            num_dropped_turns=sum(map(len, raw.conversations)) - len(kept),
            photo=known,
        )

    def _prepare_photo(self, raw: RawSample) -> ImageInput:
        """The photo as the network reads it; a blank one, which no conversation shows, where there is none."""
        if raw.image_path is None:
            size = self.config.image_size
            return ImageInput((size, size), (0, 0, 0, 0), (0, 0), torch.zeros(3, size, size))
        return self.config.preprocessor(read_photo(raw))

    def _place_photo(self, raw: RawSample) -> ImageInput:
        """The same without pixels."""
        size, nothing = self.config.image_size, torch.zeros(0)
        if raw.image_path is None:
            return ImageInput((size, size), (0, 0, 0, 0), (0, 0), nothing)
        hw = photo_hw(raw.image_path, upright=raw.upright)
        _check_photo_hw(raw, hw)
        place = self.config.preprocessor.place(hw)
        return ImageInput(place.valid_hw, place.region, place.photo_hw, nothing)

    def _fit(
        self, turns: Sequence[Turn], *, truncate: bool, shows_photo: bool
    ) -> tuple[Sequence[Turn], list[int], list[int]]:
        """As many first turns as the budget holds, with their ids and labels; none if the first is too long."""
        ids, labels = self._encode(turns, shows_photo=shows_photo)
        budget = self.config.model_max_length
        if not truncate or len(ids) <= budget:
            return turns, ids, labels
        lengths = range(1, len(turns))
        count = bisect_right(lengths, budget, key=lambda n: len(self._encode(turns[:n], shows_photo=shows_photo)[0]))
        return (turns[:count], *self._encode(turns[:count], shows_photo=shows_photo)) if count else ((), [], [])

    def _encode(self, turns: Sequence[Turn], *, shows_photo: bool) -> tuple[list[int], list[int]]:
        pairs = [(turn.question, turn.answer) for turn in turns]
        rendered = self._conversation.render(pairs, image=IMAGE if shows_photo else "", group=self._group)
        return encode_conversation(self.tokenizer, rendered, num_image_tokens=self.config.num_image_tokens)


def read_photo(raw: RawSample) -> np.ndarray:
    """The photo of a sample that has one: (H, W, 3) uint8 RGB, of the size of its masks.

    Raises:
        InputError: if it cannot be read, or has another size.
        ValueError: if the sample has no photo.
    """
    photo = read_image(check_photo(raw), as_stored=not raw.upright)  # a few bytes may claim a photo of seconds
    _check_photo_hw(raw, photo.shape[:2])
    return photo


def check_photo(raw: RawSample) -> Path:
    """Hold the photo of a sample, by its header alone, to the size of the masks; returns its file.

    Raises:
        InputError, ValueError: as ``read_photo``.
    """
    if raw.image_path is None:
        raise ValueError(f"{raw.sample_id} has no photo")
    _check_photo_hw(raw, photo_hw(raw.image_path, upright=raw.upright))
    return raw.image_path


def _check_photo_hw(raw: RawSample, hw: tuple[int, ...]) -> None:
    if raw.masks.shape[1:] != hw:
        raise InputError(
            f"{raw.sample_id}: its masks are {raw.masks.shape[1:]}, its photo {raw.image_path} is "
            f"{hw} (height, width); the annotations belong to another version of the photo",
            reason="mask of another size",
        )

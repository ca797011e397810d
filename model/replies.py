"""What a user gets: the words of an answer and a mask for everything that it names.

Shapes: N masks, H, W size of the photo.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaTokenizer

from .asking import AnswerOptions
from .drawing import FILL, annotate, write_image
from .errors import InputError
from .image import Photo, photo_pixels
from .rle import encode_rle
from .text.tokenizer import answer_text
from .text.tokens import SegCodebook, name_groups

_MARKS = " ,.;:()\"'"
# What stands around a name in an answer and is no part of it. The lookahead keeps "in" of "inner".
_LEADING = re.compile(
    r"^(?:sure|yes|certainly|of course|okay|and|or|also|then|while|as well as|it|this|that|these|those|they|there|here|"
    r"you can see|i can see|the masks? (?:of|for)|is|are|was|were|the|a|an)(?=[\s,.:;]|$)",
    re.IGNORECASE,
)
_TRAILING = re.compile(
    r"(?:^|(?<=[\s,.:;]))(?:is|are|was|were|at|by|as|in|shown|marked|segmented|located|found|here|there)$",
    re.IGNORECASE,
)


@dataclass
class Target:
    """One object of a reply.

    Attributes:
        phrase: what the words just before the token group call it, as in "red star"; see ``bare_phrase``.
        token_span: half-open range of the group in ``Reply.output_ids``.
        mask: (H, W) bool at the size of the photo.
        score: mean foreground probability over the mask, 0 when it is empty (the release's score). It says how sure the
            network is of the mask's pixels, not whether they are the object that was asked for.
        logits: (H, W) float, minus infinity where the network does not see the photo; None unless they were asked for
            (``keep_logits``).
    """

    phrase: str
    token_span: tuple[int, int]
    mask: Tensor
    score: float
    logits: Tensor | None = None


@dataclass
class Reply:
    """The answer to one question.

    Attributes:
        text: the answer, with its token groups as they were generated.
        output_ids: generated ids, without the prompt.
        targets: the objects, in the order of the text.
        group: one token group as it stands in ``text``.
        reason: why there is no target, or which groups were dropped; None when all is well.
    """

    text: str
    output_ids: list[int]
    targets: list[Target]
    group: str
    reason: str | None = None

    def masks(self, photo_hw: tuple[int, int]) -> np.ndarray:
        """(N, H, W) bool.

        Args:
            photo_hw: (H, W) of the photo, for an answer without targets.
        """
        if not self.targets:
            return np.zeros((0, *photo_hw), dtype=bool)
        return np.stack([target.mask.cpu().numpy() for target in self.targets])

    def draw(self, photo: Photo, *, alpha: float = FILL) -> np.ndarray:
        """The photo with every target tinted, outlined and numbered as in ``numbered``; see ``drawing.annotate``.

        Args:
            photo: what the question was about: a file name, a PIL image or an (H, W, 3) uint8 RGB array.
            alpha: share of the color in a tinted pixel, 0 to 1.
        Returns:
            (h, w, 3) uint8 RGB, larger than a small photo.
        Raises:
            InputError: if the photo cannot be read, or is of another size than the masks.
        """
        pixels = photo_pixels(photo)
        masks = self.masks(pixels.shape[:2])
        if masks.shape[1:] != pixels.shape[:2]:
            raise InputError(
                f"the photo is {pixels.shape[0]} x {pixels.shape[1]} pixels, the masks are {masks.shape[1]} x "
                f"{masks.shape[2]}; give the photo that the question was about"
            )
        return annotate(pixels, masks, alpha=alpha)

    def save(self, path: str | Path, photo: Photo, *, alpha: float = FILL) -> None:
        """Write what ``draw`` gives, whole or not at all; the suffix of the name says the format.

        Raises:
            InputError: as ``draw``, and if the file cannot be written.
        """
        write_image(path, self.draw(photo, alpha=alpha))

    def save_masks(self, folder: str | Path, stem: str) -> list[Path]:
        """Write each mask as ``STEM_mask_J.png`` of the photo's size: 255 where the target is, else 0.

        Returns:
            the files, in the order of the targets.
        Raises:
            InputError: if one cannot be written.
        """
        paths = [Path(folder, f"{stem}_mask_{number}.png") for number in range(len(self.targets))]
        for path, target in zip(paths, self.targets, strict=True):
            write_image(path, target.mask.cpu().numpy().astype(np.uint8) * 255)
        return paths

    def to_coco(self, image_id: int = 0, first_id: int = 1) -> list[dict[str, Any]]:
        """The targets as COCO writes results and annotations; ``COCO(...).loadRes`` reads the list.

        Args:
            image_id: of the photo.
            first_id: number of the first target; the others follow.
        Returns:
            per target ``id``, ``image_id``, ``category_id`` (1, as there are no classes), ``segmentation`` (compressed
            run lengths), ``area`` in pixels, ``bbox`` ([x, y, width, height] in pixels, zeros of an empty mask),
            ``iscrowd`` (0), ``score`` and ``phrase``. With ``bbox``, ``loadRes`` takes the area of the box.
        Raises:
            InputError: without pycocotools.
        """
        found = []
        for number, target in enumerate(self.targets):
            mask = target.mask.cpu().numpy()
            found.append(
                {
                    "id": first_id + number,
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": encode_rle(mask),
                    "area": int(mask.sum()),
                    "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
                    "iscrowd": 0,
                    "score": target.score,
                    "phrase": target.phrase,
                }
            )
        return found

    def numbered(self) -> str:
        """The text with each token group replaced by the number of its target, ``[0]`` for the first."""
        return name_groups(self.text, self.group, [f"[{number}]" for number in range(len(self.targets))])


def make_reply(
    ids: list[int],
    logits: Tensor | None,
    codebook: SegCodebook,
    tokenizer: LlamaTokenizer,
    *,
    is_cut: bool,
    asked: AnswerOptions,
    known: Sequence[Target] = (),
) -> Reply:
    """Put words and masks together.

    Args:
        ids: the answer, with its end mark if the model ended it itself.
        logits: (N, H, W), one mask per complete token group, in reading order, without those of ``known``; None if the
            conversation was about no image.
        is_cut: the model did not end it itself.
        asked: its ``mask_threshold`` and ``keep_logits`` are read.
        known: the first targets, which were made before.
    """
    row = torch.tensor([ids], dtype=torch.long)
    spans = [(start, start + codebook.size) for start in codebook.find_groups(row)[1].tolist()]
    about_image = logits is not None
    if logits is None:
        logits, spans = torch.empty(0, 0, 0), []
    masks = logits > math.log(asked.mask_threshold / (1 - asked.mask_threshold))  # of 0.5: 0, as in the release
    phrases = _phrases(tokenizer, ids, spans)
    fresh = zip(phrases[len(known) :], spans[len(known) :], masks, logits, strict=True)
    targets = [
        *known,
        *(
            Target(phrase, span, mask, _foreground_score(of_target, mask), of_target if asked.keep_logits else None)
            for phrase, span, mask, of_target in fresh
        ),
    ]
    reason = _reason(
        about_image=about_image,
        num_targets=len(targets),
        num_stray=codebook.count_stray(row),
        cut_after=len(ids) if is_cut else None,
    )
    return Reply(answer_text(tokenizer, ids), ids, targets, codebook.group_text, reason)


def _phrases(tokenizer: LlamaTokenizer, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[str]:
    """What each group is called by the words before it, back to the group before."""
    phrases, previous = [], 0
    for start, end in spans:
        phrases.append(bare_phrase(answer_text(tokenizer, ids[previous:start])))
        previous = end
    return phrases


def bare_phrase(words: str) -> str:
    """The name in the words before a token group, as in "Sure, the red star is": "red star".

    Of several sentences the last counts. It is empty where the words name nothing, as in "It is".
    """
    name = re.split(r"[.!?;]\s+", words.strip(" .!?;"))[-1].strip(_MARKS)
    before = None
    while before != name:
        before = name
        name = _LEADING.sub("", _TRAILING.sub("", name)).strip(_MARKS)
    return name


def _foreground_score(logits: Tensor, mask: Tensor) -> float:
    """Mean probability of the pixels inside the mask (release), 0 when the mask is empty."""
    return float((logits.sigmoid() * mask).sum() / mask.sum().clamp(min=1))


def _reason(*, about_image: bool, num_targets: int, num_stray: int, cut_after: int | None) -> str | None:
    """What a user should know; ``cut_after`` is None for an answer that the model ended."""
    reasons = []
    if num_stray:
        reasons.append(f"{num_stray} segmentation tokens stood outside a complete group and were dropped")
    if cut_after is not None:
        reasons.append(f"the answer was cut after {cut_after} tokens")
    if not about_image:
        reasons.append("the question was about no image, so there are no masks")
    elif num_targets == 0 and not num_stray:
        reasons.append("the model answered without a segmentation token")
    return "; ".join(reasons) or None

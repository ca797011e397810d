"""What a source returns: text and masks, before any tokenizer or tensor.

Shapes: M masks of one sample, H, W size of its photo as stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.errors import InputError
from model.text.conversation import SEG_MARK

NOTHING_TO_ASK = "nothing to ask about"  # the reason to skip an intact photo; does not count as bad data


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: without image mark; the encoder puts one before the first question of a photo.
        answer: one ``{seg}`` per target, in order.
        targets: the mask of each ``{seg}``, as indices into ``RawSample.masks``.
        names: what the data call each target; empty where they call them nothing.
        kind: a group of questions that the data tell apart, such as ``short``; empty where they do not.
        has_target: whether the annotation says that the photo shows what is asked for, whatever pixels say.

    Raises:
        InputError: if marks and targets differ in number.
        ValueError: if names and targets do.
    """

    question: str
    answer: str
    targets: tuple[int, ...]
    names: tuple[str, ...] = ()
    kind: str = ""
    has_target: bool = True

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.targets):
            raise ValueError(f"{len(self.names)} names for {len(self.targets)} targets; expected one for each, or none")
        marks = self.answer.count(SEG_MARK)
        if marks != len(self.targets):
            raise InputError(
                f"the answer has {marks} {SEG_MARK} for {len(self.targets)} targets; expected one for each",
                reason="marks and masks disagree",
            )


@dataclass(frozen=True, eq=False)
class RawSample:
    """One photo and everything that is said about it.

    Attributes:
        sample_id: names dataset and photo, for messages.
        image_path: None for a dialogue without photo, whose masks are (0, 0, 0).
        conversations: each a sequence of turns about the photo, independent of the others.
        masks: (M, H, W) bool, H and W those of the photo as stored.
        ignore: (H, W) bool, pixels that neither loss nor score may look at; None when there are none.
        upright: the photo is rotated as its EXIF data say, and H and W are those of the rotated photo.

    Raises:
        ValueError: if masks, ignored pixels and targets do not fit together.
    """

    sample_id: str
    image_path: Path | None
    conversations: tuple[tuple[Turn, ...], ...]
    masks: np.ndarray
    ignore: np.ndarray | None = None
    upright: bool = False

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or self.masks.dtype != bool:
            raise ValueError(
                f"{self.sample_id}: masks are {self.masks.dtype} {self.masks.shape}; expected bool (M, H, W)"
            )
        if self.ignore is not None and (self.ignore.shape != self.masks.shape[1:] or self.ignore.dtype != bool):
            raise ValueError(
                f"{self.sample_id}: ignore is {self.ignore.dtype} {self.ignore.shape}; expected bool "
                f"{self.masks.shape[1:]}, as its masks"
            )
        targets = [target for turns in self.conversations for turn in turns for target in turn.targets]
        if targets and not 0 <= min(targets) <= max(targets) < len(self.masks):
            raise ValueError(f"{self.sample_id}: targets {targets} do not fit {len(self.masks)} masks")


@dataclass(frozen=True)
class Skip:
    """A sample that training could not use; ``reason`` is a few words, ``message`` the full error."""

    source: str
    reason: str
    message: str

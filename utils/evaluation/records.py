"""What is known of a question once it was answered: the truth about it, and what the model gave. No torch.

Every number of a result follows from these records, each of which is a line of ``predictions.jsonl``.

Shapes: P predicted masks, G true masks, H, W size of the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from typing_extensions import TypedDict

from model.values import NonNegativeInt, Schema, Share, Text
from utils.masks.rle import RunLengths, decode_rles

Protocol = Literal["generate", "teacher_forced", "named"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


class _Line(TypedDict):
    benchmark: Text
    protocol: Protocol
    index: NonNegativeInt
    conversation: NonNegativeInt
    sample_id: Text
    image: Text
    upright: bool
    size: list[NonNegativeInt]
    question: Text
    kind: Text
    has_target: bool
    names: list[Text]
    true_masks: list[RunLengths]
    ignored: RunLengths | None
    answer: Text
    numbered: Text
    reason: Text | None
    phrases: list[Text]
    confidences: list[Share]
    predictions: list[RunLengths]


_LINE = Schema(_Line)


@dataclass(frozen=True)
class QuestionRecord:
    """One question of a benchmark, the truth about it, and the answer of a model.

    Attributes:
        benchmark: the validation set that it is a question of, such as ``MultiReasonSeg|test_less``.
        protocol: how the model was asked. ``generate``: it wrote the answer. ``teacher_forced``: it read the true
            answer with its token groups. ``named``: it read an answer that gives the names, in one pass.
        index, conversation: the photo's place in the set, and the question's among those about the photo.
        image: file of the photo; upright: it is rotated as its EXIF data say.
        size: (H, W).
        kind: a group of questions that the benchmark tells apart, such as ``short``; empty if it does not.
        has_target: whether the annotation says that the photo shows what is asked for.
        names: of the G true masks; empty text where the data have none.
        true_masks, predictions: G and P masks as COCO run lengths, in the order of the annotation and of the answer.
        ignored: pixels that count for nothing; None when there are none.
        answer: as the model wrote it; numbered: every token group written as the number of its mask, ``[0]`` first.
        reason: why there is no target, or which groups were dropped; None when all is well.
        phrases, confidences: of the P masks.
    """

    benchmark: str
    protocol: Protocol
    index: int
    conversation: int
    sample_id: str
    image: str
    upright: bool
    size: tuple[int, int]
    question: str
    kind: str
    has_target: bool
    names: tuple[str, ...]
    true_masks: tuple[RunLengths, ...]
    ignored: RunLengths | None
    answer: str
    numbered: str
    reason: str | None
    phrases: tuple[str, ...]
    confidences: tuple[float, ...]
    predictions: tuple[RunLengths, ...]

    @classmethod
    def of_line(cls, line: Any, *, where: str, remedy: str) -> QuestionRecord:
        """A record from JSON.

        Raises:
            InputError: if it is none.
        """
        checked = _LINE.check(line, where=where, remedy=remedy)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in checked.items()
        }
        return cls(**values)

    def to_line(self) -> dict[str, Any]:
        """Plain data for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Which question of which row of a result: no two records have the same."""
        return self.benchmark, self.protocol, self.index, self.conversation

    @property
    def num_predicted(self) -> int:
        """P."""
        return len(self.predictions)

    @property
    def num_true(self) -> int:
        """G."""
        return len(self.true_masks)

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """(P, H, W) and (G, H, W) bool, predicted and true ones, without the pixels that count for nothing."""
        predicted, true = decode_rles(self.predictions, hw=self.size), decode_rles(self.true_masks, hw=self.size)
        if self.ignored is None:
            return predicted, true
        counts = ~decode_rles([self.ignored], hw=self.size)[0]
        return predicted & counts, true & counts


def sort_records(records: Sequence[QuestionRecord]) -> list[QuestionRecord]:
    """In the order of the set, however many processes wrote them."""
    return sorted(records, key=lambda record: record.key)

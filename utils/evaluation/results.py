"""What an evaluation found: every question with its matched masks, the scores that follow, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import isnan
from typing import Any

import numpy as np

from .matching import MatchedPairs
from .metrics import IoUMeter, ReleasedMuseMeter

PROTOCOL = "generative, one-to-one matched on IoU"


@dataclass(frozen=True)
class QuestionRecord:
    """One question, what the model answered, and how well it fits.

    Attributes:
        index, conversation: where the question stands in the source.
        numbered: the answer with every token group written as the number of its mask.
        reason: why there is no target, or which groups were dropped; None when all is well.
        pairs: predicted and true masks, matched.
        predictions: the predicted masks as COCO RLE, in the order of the answer.
    """

    index: int
    conversation: int
    sample_id: str
    question: str
    answer: str
    numbered: str
    reason: str | None
    pairs: MatchedPairs
    predictions: tuple[dict[str, Any], ...]

    @property
    def num_predicted(self) -> int:
        """P, the masks of the answer."""
        return len(self.predictions)

    @property
    def num_true(self) -> int:
        """G, the masks asked for."""
        return int((~self.pairs.is_extra).sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; enough to compute every score again without the model."""
        pairs = {name: values.tolist() for name, values in vars(self.pairs).items()}
        scores = {"ious": self.pairs.iou.round(6).tolist(), "pairs": pairs}
        counts = {"num_pred": self.num_predicted, "num_true": self.num_true}
        kept = {name: value for name, value in vars(self).items() if name not in ("pairs", "predictions")}
        return {**kept, **counts, **scores, "predictions": list(self.predictions)}


@dataclass(frozen=True)
class Scores:
    """The numbers of a set of questions; nan where there is nothing to divide by.

    Attributes:
        giou, ciou: over the matched pairs (utils.evaluation.metrics.IoUMeter).
        released_muse_giou: the release's own "gIoU" (utils.evaluation.metrics.ReleasedMuseMeter).
        mean_pred, mean_true: masks per question.
        right_count: share of the questions answered with the right number of masks.
    """

    num_questions: int
    giou: float
    ciou: float
    released_muse_giou: float
    mean_pred: float
    mean_true: float
    right_count: float

    @classmethod
    def of(cls, records: Sequence[QuestionRecord]) -> Scores:
        """Score questions; those of one image must stand together."""
        meter, released = IoUMeter(), ReleasedMuseMeter()
        for _, group in groupby(records, key=lambda record: record.index):
            of_image = list(group)
            intersection = np.concatenate([record.pairs.intersection for record in of_image])
            union = np.concatenate([record.pairs.union for record in of_image])
            meter.add_pairs(intersection, union, is_extra=np.concatenate([r.pairs.is_extra for r in of_image]))
            released.add_image(
                intersection,
                union,
                num_predicted=sum(record.num_predicted for record in of_image),
                num_true=sum(record.num_true for record in of_image),
            )
        return cls(
            num_questions=len(records),
            giou=meter.giou,
            ciou=meter.ciou,
            released_muse_giou=released.giou,
            mean_pred=_mean([record.num_predicted for record in records]),
            mean_true=_mean([record.num_true for record in records]),
            right_count=_mean([record.num_predicted == record.num_true for record in records]),
        )

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which knows no nan."""
        return {name: None if isnan(value) else value for name, value in asdict(self).items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


@dataclass(frozen=True)
class EvaluationResult:
    """All questions of a validation set, and the settings that the answers depend on."""

    name: str
    records: tuple[QuestionRecord, ...]
    max_new_tokens: int

    @classmethod
    def join(cls, parts: Sequence[EvaluationResult]) -> EvaluationResult:
        """Put the shards of several processes together; gives exactly what one process gives."""
        records = sorted((record for part in parts for record in part.records), key=lambda r: (r.index, r.conversation))
        return cls(parts[0].name, tuple(records), parts[0].max_new_tokens)

    @property
    def scores(self) -> dict[str, Scores]:
        """Of all questions, of those with one true mask, and of those with two or more."""
        single = [record for record in self.records if record.num_true == 1]
        multi = [record for record in self.records if record.num_true >= 2]
        slices = {"all": self.records, "single-target": single, "multi-target": multi}
        return {name: Scores.of(records) for name, records in slices.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "protocol": PROTOCOL,
            "max_new_tokens": self.max_new_tokens,
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "questions": [record.to_dict() for record in self.records],
        }

    def table(self) -> str:
        """Scores as plain text, IoUs and shares in percent."""
        head = f"{'':15}{'questions':>10}{'gIoU':>8}{'cIoU':>8}{'pred':>7}{'true':>7}{'count ok':>10}"
        lines = [f"{self.name}   protocol: {PROTOCOL}", f"{head}{'released MUSE gIoU':>20}"]
        for name, s in self.scores.items():
            cells = f"{s.giou:8.1%}{s.ciou:8.1%}{s.mean_pred:7.2f}{s.mean_true:7.2f}{s.right_count:10.1%}"
            line = f"{name:15}{s.num_questions:10d}{cells}{s.released_muse_giou:20.1%}"
            lines.append(line.replace("nan%", "   -").replace("nan", "  -"))
        return "\n".join(lines)

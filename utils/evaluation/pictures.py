"""Pictures of an evaluation: true masks beside predicted masks, for utils.pictures.contact_sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.drawing import PALETTE, fit, overlay
from utils.data.encode import read_photo
from utils.data.sources import Source
from utils.masks.rle import decode_rles

from .questions import get_sample
from .report_samples import color_slots
from .scores import ScoredQuestion

_PANEL_SIDE = 440


def picture_panels(
    questions: Sequence[ScoredQuestion], source: Source, *, num_questions: int
) -> list[tuple[np.ndarray, str]]:
    """Panels and captions for two columns: true masks | predicted masks.

    The questions are taken evenly from the whole set. A predicted mask has the color of the true mask that it was
    matched with; extra ones have colors of their own. Numbers are the order in the annotation and in the answer.
    """
    chosen = np.linspace(0, len(questions) - 1, min(num_questions, len(questions))).round().astype(int)
    panels = []
    for question in (questions[position] for position in chosen):
        record = question.record
        sample = get_sample(source, record.index)
        turn = sample.conversations[record.conversation][0]
        image = read_photo(sample)
        true, predicted = sample.masks[list(turn.targets)], decode_rles(record.predictions, hw=image.shape[:2])
        slots, _ = color_slots(question)
        colors_of_predicted = [PALETTE[slot % len(PALETTE)] for slot in slots]
        for masks, colors, caption in (
            (true, PALETTE, record.question),
            (predicted, colors_of_predicted, _answer_caption(question)),
        ):
            small, small_masks = fit(image, masks, side=_PANEL_SIDE)
            panels.append((overlay(small, small_masks, colors=colors), caption))
    return panels


def _answer_caption(question: ScoredQuestion) -> str:
    """The answer with every token group written as the number of its mask, and the mean IoU of the pairs."""
    record = question.record
    score = f"mean IoU {question.pairs.iou.mean():.1%}" if len(question.pairs.iou) else "no masks"
    return f"{record.numbered}\n{score}, masks: {record.num_predicted} given, {record.num_true} asked for"

"""What a run does to see how far it has come: masks for given answers, answers of its own, and pictures of both.

It draws no random number, so training goes on as if there had been no validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.configuration import PRECISIONS
from model.drawing import fit, overlay
from model.predictor import PixelLMPredictor
from utils import dist
from utils.cli.config import RunConfig
from utils.data.collate import Collator
from utils.data.encode import Encoder, read_photo
from utils.data.records import RawSample, Turn
from utils.data.sources import Source
from utils.evaluation.asking import MAX_NEW_TOKENS, ask
from utils.evaluation.metrics import IoUMeter
from utils.evaluation.pictures import picture_panels
from utils.evaluation.questions import get_sample
from utils.evaluation.records import QuestionRecord
from utils.evaluation.scores import ScoringOptions, score_records
from utils.evaluation.teacher_forced import validate_teacher_forced
from utils.pictures import contact_sheet

from .engine import Engine
from .guards import Guards
from .journal import Journal
from .start import TrainingModel

NUM_PICTURES = 4  # samples of each set
GENERATED = "generated"
_PANEL_SIDE, _COLUMNS = 320, 4
_LONGEST_CAPTION = 120


@dataclass
class Validation:
    """Every process calls ``score`` at the same time.

    Attributes:
        engine: around the network of ``training``.
        sources: the validation sets.
    """

    run: RunConfig
    engine: Engine
    training: TrainingModel
    sources: Sequence[Source]
    encoder: Encoder
    collator: Collator
    device: torch.device
    journal: Journal
    guards: Guards

    def score(self, update: int, *, before_pass: Callable[[], object]) -> list[float]:
        """Score, write down and draw every validation set.

        Args:
            update: those made so far.
            before_pass: called by all processes at the same time; what it raises ends the validation.
        Returns:
            ``--best_metric`` of each set, teacher-forced.
        Raises:
            InputError: from any sample that cannot be used.
        """
        scores = []
        for source in self.sources:
            found = validate_teacher_forced(
                self.engine, source, self.encoder, self.collator,
                batch_size=self.run.val_batch_size, device=self.device, dtype=PRECISIONS[self.run.precision],
                before_pass=before_pass,
            )  # fmt: skip
            self.journal.log_validation(update, source.name, found.meter)
            self.guards.see_validation(update, source.name, found.blanks)
            scores.append(found.meter.giou if self.run.best_metric == "giou" else found.meter.ciou)
            self._draw(source, update, before_pass)
            if self.run.val_generate:
                self._generate(source, update, before_pass)
        return scores

    def _draw(self, source: Source, update: int, before_pass: Callable[[], object]) -> None:
        """A picture of the same few samples each time: true masks, and those that the network draws for them.

        Every process makes every pass, because ZeRO-3 gathers weights from all of them.
        """
        panels, captions = [], []
        for index in spread(len(source), NUM_PICTURES):
            before_pass()
            raw = get_sample(source, index)
            if raw.image_path is None:
                continue
            turns, masks_of_turns = first_question(raw)
            true, predicted = (masks[masks_of_turns] for masks in self._predict(raw))
            if dist.is_main():
                photo = read_photo(raw)
                for masks in (true, predicted):
                    small, small_masks = fit(photo, masks, side=_PANEL_SIDE)
                    panels.append(overlay(small, small_masks))
                captions += [question_caption(turns), prediction_caption(true, predicted, raw.ignore)]
        if panels:
            sheet = contact_sheet(panels, columns=_COLUMNS, captions=captions)
            self.journal.log_picture(update, source.name, sheet)

    @torch.no_grad()
    def _predict(self, raw: RawSample) -> tuple[np.ndarray, np.ndarray]:
        """True and predicted masks, (N, H, W) bool each, in the order of the token groups."""
        sample = self.encoder(raw, truncate=False)
        batch = self.collator([sample]).to(self.device, PRECISIONS[self.run.precision])
        self.engine.eval()
        output = self.engine(**batch.inputs())
        self.engine.train()
        return sample.masks.numpy(), (output.photo_logits[0] > 0).cpu().numpy()

    def _generate(self, source: Source, update: int, before_pass: Callable[[], object]) -> None:
        """Let the network answer the questions about the first ``--val_generate`` images, divided over processes."""
        predictor = PixelLMPredictor(self.training.network, self.training.tokenizer)
        num_images, records = min(self.run.val_generate, len(source)), list[QuestionRecord]()
        self.engine.eval()
        for first in range(0, num_images, dist.world_size()):
            before_pass()
            index = first + dist.rank()
            with dist.stop_together():
                if index < num_images:
                    records += ask(predictor, source, [index], max_new_tokens=MAX_NEW_TOKENS)
        self.engine.train()
        gathered = [record for of_process in dist.gather_objects(records) for record in of_process]
        _, questions = score_records(gathered, "matched", options=ScoringOptions())
        meter = IoUMeter()
        for one in questions:
            meter.add_pairs(one.pairs.intersection, one.pairs.union, is_extra=one.pairs.is_extra)
        right = sum(record.num_predicted == record.num_true for record in gathered)
        counts = {"images": num_images, "questions": len(gathered), "right_count": right}
        self.journal.log_validation(update, source.name, meter, protocol=GENERATED, **counts)
        if dist.is_main() and questions:
            images, captions = zip(*picture_panels(questions, source, num_questions=NUM_PICTURES), strict=True)
            sheet = contact_sheet(images, columns=2, captions=captions)
            self.journal.log_picture(update, source.name, sheet, protocol=GENERATED)


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below ``count``, evenly, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def first_question(raw: RawSample) -> tuple[Sequence[Turn], slice]:
    """The first conversation that asks for masks, else the first one, and where its masks are in token order."""
    for turns in raw.conversations:  # none before it has a mask
        if count := sum(len(turn.targets) for turn in turns):
            return turns, slice(count)
    return raw.conversations[0], slice(0)


def question_caption(turns: Sequence[Turn]) -> str:
    """The questions of a conversation, cut where they are long."""
    text = " / ".join(turn.question for turn in turns)
    return text if len(text) <= _LONGEST_CAPTION else text[: _LONGEST_CAPTION - 4] + " ..."


def prediction_caption(true: np.ndarray, predicted: np.ndarray, ignore: np.ndarray | None) -> str:
    """How well (N, H, W) predicted masks fit the true ones; pixels of ``ignore`` do not count."""
    if not len(true):
        return "no masks"
    meter, counts = IoUMeter(), True if ignore is None else ~ignore
    for mask, truth in zip(predicted, true, strict=True):
        meter.add(mask & counts, truth & counts)
    return f"teacher-forced, {len(true)} masks: mean IoU {meter.giou:.0%}"
